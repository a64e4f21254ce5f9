"""k-means of numbers, exactly: the global optimum. The algorithm is in `qrs.backends.reference`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import backends
from ..arrays import (
    Held,
    as_input,
    first_index,
    in_c_order,
    nonfinite_error,
    plain,
    reports_memory,
)
from ..checks import checked_integer
from ..errors import ArgTypeError, KernelFault, bad
from .result import KMeansResult

MAX_CLUSTERS = 1 << 20
MAX_POINTS = (1 << 31) - 1


@reports_memory
def kmeans_1d(
    x: Any, k: int, sample_weight: Any = None, *, backend: str | None = None
) -> KMeansResult:
    """The k centers with the least sum of weighted squared distances; no others have a lesser one.

    Parameters
    ----------
    x : (n,) or (rows, n) floats, each row clustered for itself: float32, float16, bfloat16 or
        float64 (kept as it is), any strides; see `qrs.arrays` for what else converts.
    k : the number of clusters, from 1 to 2**20. Where a row has fewer distinct values, its last
        center is repeated.
    sample_weight : weights of the shape of `x`, or (n,) for all rows; any real dtype, computed
        with as float64. A point of weight 0 moves no center and still gets a label. None: all 1.
    backend : "reference" or "rust"; by default "rust".

    Returns a `KMeansResult`; for a matrix, each field has the rows as its first axis:

    - `centers` (k,) float64, ascending: the means of the clusters;
    - `labels` (n,) int32: the index of the nearest center, of two the lower one;
    - `inertia` float64: sum of sample_weight * (x - centers[labels])^2;
    - `n_iter` int: passes over all distinct values that the search took.

    Sums are float64. Where weights span more than about eight powers of ten, or values differ by
    little more than their last digits, its rounding may hide the optimum, and a partition comes out
    that is worse.

    Raises `ArgTypeError` and `ArgValueError` naming the argument: NaN and infinities, and weights
    that are negative or not finite, are named by their first index; so is a row whose weights are
    all 0. `DeviceError` for arrays of a GPU. Class A: the same bits on both backends, on every
    SIMD level and with every number of threads.

    Source: Gronlund, Larsen, Mathiasen, Nielsen, Schneider, Song: Fast exact k-means, k-medians
    and Bregman divergence clustering in 1D (2017).

    >>> result = kmeans_1d([10.0, 1.0, 2.0, 12.0], 2)
    >>> result.centers.tolist(), result.labels.tolist(), result.inertia
    ([1.5, 11.0], [1, 0, 0, 1], 2.5)
    >>> kmeans_1d([10.0, 1.0, 2.0, 12.0], 2, [1, 1, 0, 3]).centers.tolist()
    [1.0, 11.5]
    """
    chosen = backends.resolve(backend, x, sample_weight)
    k = checked_integer(k, "k")
    if not 1 <= k <= MAX_CLUSTERS:
        raise bad("k", f"got {k}", k, f"an integer from 1 to {MAX_CLUSTERS}")
    values = as_input(x)
    if values.ndim > 2:
        raise bad("x", f"got shape {values.shape}", values.shape, "(n,) or (rows, n)")
    if not 1 <= values.shape[-1] <= MAX_POINTS:
        expected = f"1 to {MAX_POINTS} points"
        raise bad("x", f"got shape {values.shape}", values.shape, expected)
    with Held(values):
        rows = values.reshape(-1, values.shape[-1])
        weights = None if sample_weight is None else _weights(sample_weight, values.shape)
        try:
            centers, labels, inertia, passes = chosen.kmeans_1d(rows, k, weights, True)
        except KernelFault:
            raise nonfinite_error(values) from None
    assert labels is not None
    if values.ndim == 2:
        return KMeansResult(centers, labels, inertia[:, 0], passes[:, 0])
    return KMeansResult(centers[0], labels[0], float(inertia[0, 0]), int(passes[0, 0]))


def _weights(sample_weight: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Checked weights as float64 of shape (rows, n), or (1, n) for all rows."""
    arg = "sample_weight"
    given = plain(sample_weight, arg, integers=True)
    real = given.dtype.kind in "iuf" or np.can_cast(given.dtype, np.float64, "safe")
    if not real or given.dtype.kind in "bc" or given.dtype.itemsize > 8:
        raise bad(arg, f"got dtype {given.dtype}", given.dtype, "real numbers", ArgTypeError)
    if given.shape not in (shape, shape[-1:]):
        expected = f"{shape}" if len(shape) == 1 else f"{shape} or {shape[-1:]}"
        raise bad(arg, f"got shape {given.shape}", given.shape, expected)
    weights = in_c_order(given.astype(np.float64), arg)
    if not np.isfinite(weights).all():
        raise nonfinite_error(weights, arg)
    if (weights < 0).any():
        at, where = first_index(weights < 0)
        raise bad(arg, f"{weights[at]}{where}", float(weights[at]), "weights of 0 or more")
    if not (has_some := weights.any(axis=-1)).all():
        where = f" of row {int(np.argmin(has_some))}" if weights.ndim == 2 else ""
        raise bad(arg, f"all weights{where} are 0", 0.0, "a positive one")
    return weights.reshape(-1, shape[-1])
