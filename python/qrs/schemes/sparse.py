"""The largest values of a tensor, stored apart in compressed sparse rows.

Three parts, as scipy's `csr_matrix` takes them for the array with its leading axes flattened:
`sparse_values`, the differences that are added to what the codes decode to; `sparse_indices`,
int32, their columns; `sparse_indptr`, int64, where each row begins. Every row has the same number
of them, so that the size is known beforehand.

Kim et al., "SqueezeLLM: Dense-and-Sparse Quantization", 2024, section 4.2, which takes the largest
of a matrix.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..backends.reference import Reference
from ..devices import library_of, moved
from . import scales
from .checks import refuse_first

if TYPE_CHECKING:
    from .base import Array, PartSpecs, Shape

Float32 = NDArray[np.float32]
PARTS = ("sparse_values", "sparse_indices", "sparse_indptr")


def rows_of(shape: Shape) -> tuple[int, int]:
    """An array of `shape` as rows and columns."""
    return math.prod(shape[:-1]), shape[-1]


def outliers_in_a_row(shape: Shape, fraction: float) -> int:
    """How many values of each row are stored apart.

    >>> outliers_in_a_row((64, 4096), 0.0045)
    18
    """
    return min(round(fraction * shape[-1]), shape[-1])


def part_specs(shape: Shape, fraction: float, dtype: str) -> PartSpecs:
    """As `Scheme.part_specs`."""
    rows, _ = rows_of(shape)
    count = rows * outliers_in_a_row(shape, fraction)
    specs = (dtype, (count,)), ("int32", (count,)), ("int64", (rows + 1,))
    return dict(zip(PARTS, specs, strict=True))


def columns_of_outliers(x: Float32, count: int) -> NDArray[np.int32]:
    """Of each row of x (rows, cols) the columns of the largest magnitudes, ascending (rows, count).

    Of equal ones the first.

    >>> columns_of_outliers(np.array([[1, -3, 3, 2]], np.float32), 2).tolist()
    [[1, 2]]
    """
    if count == 0:  # of short rows
        return np.empty((len(x), 0), np.int32)
    magnitude, first = np.abs(x), x.shape[1] - count
    least = np.partition(magnitude, first, axis=1)[:, first : first + 1]
    above, equal = magnitude > least, magnitude == least
    missing = count - np.count_nonzero(above, axis=1)[:, None]
    chosen = above | (equal & (np.cumsum(equal, axis=1) <= missing))
    return np.nonzero(chosen)[1].reshape(len(x), count).astype(np.int32)


class Outliers:
    """Those of an array, before and after the rest has been quantized."""

    def __init__(self, x: Array, columns: NDArray[np.int32]) -> None:
        self.x, self.columns = x, columns

    @classmethod
    def of(cls, x: Array, fraction: float) -> Outliers:
        """The largest magnitudes of each row."""
        values = x.astype(np.float32, copy=False).reshape(rows_of(x.shape))
        return cls(x, columns_of_outliers(values, outliers_in_a_row(x.shape, fraction)))

    def taken(self, x: Array) -> Float32:
        """Their values in an array of the same shape: (rows, count)."""
        values = x.reshape(rows_of(self.x.shape))
        return np.take_along_axis(values, self.columns, axis=1).astype(np.float32)

    def left_out(self, weights: Float32 | None) -> Float32:
        """Weights, ones if there were none, but zeros for outliers."""
        rows = np.ones(rows_of(self.x.shape), np.float32)
        if weights is not None:
            rows[...] = weights.reshape(rows.shape)
        np.put_along_axis(rows, self.columns, 0, axis=1)
        return rows.reshape(self.x.shape)

    def parts(self, x_hat: Float32, dtype: str, backend: Reference) -> dict[str, Array]:
        """What is stored: x - x_hat of each, rounded to `dtype`."""
        rows, count = self.columns.shape
        with np.errstate(over="ignore"):
            rest = self.taken(self.x) - self.taken(x_hat) + np.float32(0)  # never -0.0
        values = scales.stored(rest, dtype, (rows * count,), backend)
        infinite = ~np.isfinite(scales.decoded(values, dtype, backend))
        if infinite.any():
            wrong = np.zeros(rows_of(self.x.shape), bool)
            np.put_along_axis(wrong, self.columns, infinite.reshape(rows, count), axis=1)
            refuse_first(wrong.reshape(self.x.shape), self.x, "x", f"outliers within {dtype}")
        indptr = np.arange(rows + 1, dtype=np.int64) * count
        return dict(zip(PARTS, (values, self.columns.reshape(-1), indptr), strict=True))


def add_to(x_hat: Any, parts: dict[str, Any], dtype: str, backend: Reference) -> None:
    """Add the stored differences to decoded values, in place."""
    values, columns, _ = (parts[name] for name in PARTS)
    count, cols = rows_of(x_hat.shape)
    rows = moved(np.arange(count)[:, None], library_of(x_hat).__name__)
    each = columns.reshape(count, -1)
    flat = x_hat.reshape(count, cols)
    flat[rows, each] += scales.decoded(values, dtype, backend).reshape(each.shape)


def select(parts: dict[str, Any], shape: Shape, index: Any) -> dict[str, Any]:
    """The parts of the rows `index` of the leading axis."""
    values, columns, indptr = (parts[name] for name in PARTS)
    count = int(indptr[1]) if len(indptr) > 1 else 0
    each = (shape[0], math.prod(shape[1:-1]), count)
    values, columns = (part.reshape(each)[index] for part in (values, columns))
    rows = values.shape[0] * values.shape[1]
    return dict(
        zip(PARTS, (values.reshape(-1), columns.reshape(-1), indptr[: rows + 1]), strict=True)
    )


def check(parts: dict[str, Any], shape: Shape, fraction: float) -> None:
    """Raise unless stored parts are what `parts_of` makes."""
    values, columns, indptr = (parts[name] for name in PARTS)
    (rows, cols), count = rows_of(shape), outliers_in_a_row(shape, fraction)
    expected = np.arange(rows + 1, dtype=np.int64) * count
    refuse_first(indptr != expected, indptr, "sparse_indptr", f"multiples of {count}")
    wrong = (columns < 0) | (columns >= cols)
    refuse_first(wrong, columns, "sparse_indices", f"columns from 0 to {cols - 1}")
    steps = np.diff(columns.reshape(rows, count), axis=1, prepend=-1).reshape(-1)
    refuse_first(steps <= 0, columns, "sparse_indices", "ascending columns in each row")
    infinite = ~np.isfinite(values.astype(np.float32))
    refuse_first(infinite, values.astype(np.float32), "sparse_values", "finite values")
