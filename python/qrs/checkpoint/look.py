"""One tensor from inside: its parts, scales, codebook, and how its values are distributed.

A tensor is looked at as it is stored, quantized or not; or a plain one is quantized in memory, to
see what a scheme would make of it. What the histogram shows (`Look.drawn`) fits the levels of the
codebook, if there is one:

- Without scales, values: levels are values.
- With scales and the true values at hand, each over the scale of its group.
- With scales and decoded values, each over the largest magnitude of its group, with the sign of the
  scale; levels over the largest of them. Over their scales they would be nothing but levels.
- Where rows or groups have tables of their own, the values of one of them.

Each of two or three passes reads the tensor again, in blocks of rows where it can be.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..formats.header import nbytes as file_nbytes
from ..granularity import PerAxis, PerGroup
from ..qtensor import QTensor
from ..schemes import Scheme
from ..schemes.layout import layout_of
from .distribution import Histogram, Spread, Statistics
from .plan import finite
from .report import PIECE, ErrorSums
from .source import open_checkpoint
from .subject import Subject, Values, subject_of, table_count, table_rows

Array = NDArray[Any]

BINS = 72
"""Of a histogram, where nobody says how many there is room for."""


@dataclass(frozen=True)
class Part:
    """One stored array of a quantized tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass
class CodebookUse:
    """Levels by code, and how many values have each; of one table where there are several.

    `low` and `high` are the least and the greatest level of each code in all tables.
    """

    tables: int
    levels: Array
    counts: Array
    low: Array
    high: Array

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        arrays = (self.levels, self.counts, self.low, self.high)
        names = ("levels", "counts", "low", "high")
        lists = {name: array.tolist() for name, array in zip(names, arrays, strict=True)}
        return {"tables": self.tables, **lists}


@dataclass
class Look:
    """What there is to see of a tensor; None where it has no such thing.

    `values` are the true ones of a plain tensor, else the decoded ones. `marks` are the levels of
    the codebook in the unit of the histogram, `drawn` says what that shows.
    """

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    scheme: str | None = None
    fallback: str = ""
    bits_per_weight: float | None = None
    parts: list[Part] = field(default_factory=list)
    values: Statistics = field(default_factory=Statistics)
    errors: ErrorSums | None = None
    scale: Spread | None = None
    zero_point: Spread | None = None
    outliers: int | None = None
    codebook: CodebookUse | None = None
    drawn: str = "values"
    marks: list[float] = field(default_factory=list)
    histogram: Histogram | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        first = ("name", "file", "dtype", "nbytes", "scheme", "fallback", "bits_per_weight")
        errors, book, drawn = self.errors, self.codebook, self.histogram
        return {
            **{name: getattr(self, name) for name in first},
            "shape": list(self.shape),
            "sqnr_db": None if errors is None else finite(errors.sqnr_db),
            "max_abs_error": None if errors is None else finite(errors.max_abs_error),
            "parts": [asdict(part) for part in self.parts],
            "values": self.values.to_dict(),
            "scale": None if self.scale is None else asdict(self.scale),
            "zero_point": None if self.zero_point is None else asdict(self.zero_point),
            "outliers": self.outliers,
            "codebook": None if book is None else book.to_dict(),
            "drawn": self.drawn,
            "marks": self.marks,
            "histogram": None if drawn is None else drawn.to_dict(),
        }


def look_into(
    model: str | os.PathLike[str],
    tensor: str,
    *,
    scheme: Scheme | str | None = None,
    solver: str = "minmax",
    row: int | None = None,
    bins: int = BINS,
) -> Look:
    """Look into one tensor of a checkpoint.

    Parameters
    ----------
    model : a folder, a .safetensors file, or an index.
    tensor : its name.
    scheme, solver : quantize a plain tensor in memory, and look at that.
    row : whose codebook to show where each row (or index of an axis) has its own; by default that
        of the first. Of several groups in a row it is the first.
    bins : of the histogram.

    Raises FormatError, StorageError, and ArgValueError.
    """
    source = open_checkpoint(model)
    return look_at(subject_of(source, tensor, scheme=scheme, solver=solver, row=row), bins)


def look_at(subject: Subject, bins: int = BINS) -> Look:
    """Read the tensor, and quantize it if that was asked for."""
    found = described(subject)
    with subject.shard.open() as file:
        values, gathered = Values(file, subject), Gathered()
        found.errors = values.errors
        for x, part in values.blocks():
            found.values.add(x)
            if part is not None:
                gathered.add(part)
        gathered.give(found)
        drawn = choose_drawn(values, found)
        seen = found.values if found.drawn == "values" else Statistics.of(drawn())
        found.histogram = Histogram.of(drawn(), seen.range(), bins)
    return found


def described(subject: Subject) -> Look:
    """What the headers say."""
    entry, name, file = subject.entry, subject.name, subject.shard.path.name
    if entry is None:
        nbytes = subject.shard.tensors[name].nbytes
        return Look(name, file, subject.dtype, subject.shape, nbytes)
    parts = [
        Part(leaf.removeprefix(f"{name}."), dtype, shape, file_nbytes(dtype, shape))
        for leaf, dtype, shape in entry.layout(name)
    ]
    nbytes, size = sum(part.nbytes for part in parts), np.prod(subject.shape, dtype=object)
    outliers = [part.shape[0] for part in parts if part.name == "sparse_values"]
    return Look(
        name, file, subject.dtype, subject.shape, nbytes, str(entry.scheme),
        fallback="" if subject.plan is None else subject.plan.fallback,
        bits_per_weight=8 * nbytes / size if size else None,
        parts=parts,
        outliers=outliers[0] if outliers else None,
    )  # fmt: skip


class Gathered:
    """What blocks of a quantized tensor have beside values."""

    def __init__(self) -> None:
        self.scales: list[Array] = []
        self.zero_points: list[Array] = []
        self.codebook: CodebookUse | None = None

    def add(self, part: QTensor) -> None:
        """Count in a block of rows."""
        if part.scale is not None and (
            not self.scales or part.scheme.granularity.is_rowwise(part.ndim)
        ):
            self.scales.append(part.scale)
            if part.zero_point is not None:
                self.zero_points.append(part.zero_point)
        if part.codebook is not None:
            self._add_codes(part.codebook.reshape(-1, part.codebook.shape[-1]), part.codes)

    def _add_codes(self, tables: Array, codes: Array) -> None:
        low, high, k = tables.min(axis=0), tables.max(axis=0), tables.shape[1]
        book = self.codebook
        if book is None:
            book = self.codebook = CodebookUse(1, tables[0], np.zeros(k, np.int64), low, high)
        book.low, book.high = np.minimum(book.low, low), np.maximum(book.high, high)
        flat = codes.reshape(-1)
        for start in range(0, flat.size, PIECE):
            book.counts += np.bincount(flat[start : start + PIECE], minlength=k)

    def give(self, found: Look) -> None:
        """Say it in `found`."""
        found.codebook = self.codebook
        for name, arrays in (("scale", self.scales), ("zero_point", self.zero_points)):
            if sum(array.size for array in arrays):
                numbers = np.concatenate([array.reshape(-1) for array in arrays])
                setattr(found, name, Spread.of(numbers))


def choose_drawn(values: Values, found: Look) -> Callable[[], Iterator[Array]]:
    """What the histogram is of, in blocks; `found` says it, and gets the marks."""
    book, entry, row = found.codebook, values.subject.entry, values.subject.row
    if book is None or entry is None:
        return lambda: (x for x, _ in values.blocks())
    book.tables = table_count(entry)
    if table_rows(entry):
        of_row = values_of_row(values, row, book)
        found.drawn, found.marks = words_of_row(entry.scheme, row), book.levels.tolist()
        return lambda: iter([of_row])
    found.marks = book.levels.tolist()
    if entry.scheme.scale_dtype is None:
        return lambda: (x for x, _ in values.blocks())
    decoded = not values.are_true
    found.drawn = "values / scale of their group"
    if decoded:
        found.drawn = "decoded values / absmax of their group"
        found.marks = (book.levels / (np.abs(book.levels).max() or 1)).tolist()
    return lambda: (relative(x, part, decoded) for x, part in values.blocks() if part is not None)


def words_of_row(scheme: Scheme, row: int) -> str:
    """What is drawn where tables are many.

    >>> import qrs
    >>> words_of_row(qrs.parse("kmeans4-g32"), 3), words_of_row(qrs.parse("kmeans4-axis1"), 3)
    ('values of row 3, its first group', 'values at 3 of axis 1')
    """
    granularity = scheme.granularity
    if isinstance(granularity, PerAxis) and granularity.axis:
        return f"values at {row} of axis {granularity.axis}"
    return f"values of row {row}" + ", its first group" * isinstance(granularity, PerGroup)


def values_of_row(values: Values, row: int, book: CodebookUse) -> Array:
    """Those of a row (of its first group), whose levels and counts `book` gets."""
    x, part, row = values.around(row)
    granularity, layout = part.scheme.granularity, layout_of(part.scheme, part.shape)
    assert part.codebook is not None
    book.levels = part.codebook.reshape(layout.rows, -1, len(book.low))[row, 0]
    codes = granularity.to_rows(part.codes)[row, : layout.group_size]
    book.counts = np.bincount(codes, minlength=len(book.low))
    return granularity.to_rows(x)[row, : layout.group_size]


def relative(x: Array, part: QTensor, decoded: bool) -> Array:
    """Values over the scale of their group; decoded ones over its largest magnitude.

    >>> import qrs
    >>> qt = qrs.quantize([[2.0, 0.1], [-4.0, 1.0]], "nf4-g2")
    >>> relative(qt.dequantize(), qt, True).round(2).tolist()
    [[1.0, 0.07999999821186066], [-1.0, 0.25]]
    """
    layout = layout_of(part.scheme, part.shape)
    rows = part.scheme.granularity.to_rows(x).astype(np.float32)
    rows -= part.parts.get("offset", np.float32(0))
    unit = part.scale.reshape(layout.rows, layout.groups)
    if decoded:
        starts = np.arange(0, layout.cols, layout.group_size)
        unit = np.copysign(np.maximum.reduceat(np.abs(rows), starts, axis=1), unit)
    divisor = np.repeat(unit, layout.group_size, axis=1)[:, : layout.cols]
    found: Array = np.divide(rows, divisor, out=np.zeros_like(rows), where=divisor != 0)
    return found
