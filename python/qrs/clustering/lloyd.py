"""Lloyd's k-means for points of any number of columns, and for long vectors.

Points stay where they are, and backends go through them; the k centers are averaged here, on the
host, in float64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import backends
from ..arrays import Held, as_input, reports_memory
from ..backends.reference import Float32, Labels, Reference
from ..devices import device_of, library_of, moved, on_host
from .arguments import (
    as_points,
    as_start,
    as_weights,
    check_range,
    checked_count,
    checked_seed,
    checked_tolerance,
)
from .plus_plus import plus_plus
from .result import KMeansResult


@reports_memory
def kmeans(
    x: Any,
    k: int,
    *,
    sample_weight: Any = None,
    init: Any = "k-means++",
    n_init: int = 1,
    max_iter: int = 300,
    tol: float = 1e-4,
    seed: int = 0,
    backend: str | None = None,
) -> KMeansResult:
    """Cluster points around `k` centers so that the sum of squared distances becomes small.

    Lloyd's algorithm finds a minimum that is a local one. It is made for points of several columns
    and for vectors that are too long for anything exact.

    Parameters
    ----------
    x : points (n, d), or n numbers (n,), which count as (n, 1); dtypes as in `qrs.quantize`,
        float16 and bfloat16 widened, float64 narrowed to float32. Squared distances must fit
        float32; differences below 1e-22 count as none.
    k : how many centers, 1 to n.
    sample_weight : weights of the points (n,), not negative and not all zero; 1 by default.
    init : "k-means++", or the centers to start from (k, d); for numbers (k,) will do.
    n_init : how many starts of k-means++ to try; the result of least inertia is returned.
    max_iter : how often the centers may move.
    tol : stop when the squares of what centers moved by sum to no more than `tol` times the mean
        variance of the columns. 0: only when no point changes its cluster.
    seed : 0 to 2^64 - 1, of the random numbers of k-means++.
    backend : "reference", "rust" or "cupy"; by default the type of `x` decides.

    Returns `KMeansResult(centers, labels, inertia, n_iter)`: float32 (k, d), int32 (n,), float and
    int; arrays on the device of `x`. Centers of numbers are (k, 1), and ascend. Every label is that
    of the nearest center, which in case of a tie is the first.

    A center is the weighted mean of its points, in float64, rounded to float32. One that has no
    points moves to the point that is farthest from its center, the first of them.

    Raises `ArgTypeError` and `ArgValueError` naming the argument. Class B: the same seed gives the
    same bits on every CPU, SIMD level and number of threads, with "reference" and with "rust"; on a
    GPU sums differ in their last bits from run to run, and so may everything that follows.

    Lloyd, "Least squares quantization in PCM", 1982; Arthur and Vassilvitskii, 2007.

    >>> result = kmeans([[0.0, 0.0], [0.0, 1.0], [9.0, 9.0], [9.0, 7.0]], 2)
    >>> sorted(result.centers.tolist()), result.inertia
    ([[0.0, 0.5], [9.0, 8.0]], 2.5)
    """
    chosen = backends.resolve(backend, x, sample_weight, init)
    given = as_input(x)
    with Held(given), device_of(given):
        points = as_points(given)
        n, d = points.shape
        k = checked_count(k, "k", n)
        start = as_start(init, (k, d), given.ndim)
        n_init = checked_count(n_init, "n_init", None if start is None else 1)
        max_iter, tol = checked_count(max_iter, "max_iter"), checked_tolerance(tol)
        rng = np.random.Generator(np.random.PCG64(checked_seed(seed)))
        check_range(points, given, start, chosen)
        weights = as_weights(sample_weight, n, chosen)
        tolerance = tol * _mean_variance(points, chosen)

        def run() -> KMeansResult:
            centers = plus_plus(points, k, weights, rng, chosen) if start is None else start
            return _lloyd(points, on_host(centers), weights, max_iter, tolerance, chosen)

        return min((run() for _ in range(n_init)), key=lambda result: result.inertia)


def _lloyd(
    x: Float32,
    centers: Float32,
    weights: Float32 | None,
    max_iter: int,
    tolerance: float,
    backend: Reference,
) -> KMeansResult:
    """From `centers` on, until no label changes or centers hardly move."""
    centers, spare = _ordered(centers), None
    assigned = _assign(x, centers, backend)
    n_iter, settled = 0, False
    while n_iter < max_iter and not settled:
        before = centers
        centers = _ordered(_means(x, *assigned, weights, centers, backend))
        # Fresh memory for every iteration would take longer than what is written to it.
        assigned, spare = _assign(x, centers, backend, spare), assigned
        shift = centers.astype(np.float64) - before
        settled = math.fsum((shift * shift).ravel()) <= tolerance
        settled = settled or bool((assigned[0] == spare[0]).all())
        n_iter += 1
    labels, distances = assigned
    inertias, _ = backend.kmeans_update(distances.reshape(-1, 1), labels, weights, len(centers))
    inertia = math.fsum(on_host(inertias).ravel())
    return KMeansResult(moved(centers, backend.library), labels, inertia, n_iter)


def _ordered(centers: Float32) -> Float32:
    """Numbers ascend: then the nearest one is found without a distance to each."""
    return np.sort(centers, axis=0) if centers.shape[1] == 1 else centers


def _assign(
    x: Float32, centers: Float32, backend: Reference, out: tuple[Labels, Float32] | None = None
) -> tuple[Labels, Float32]:
    return backend.kmeans_assign(x, moved(centers, backend.library), out)


def _means(
    x: Float32,
    labels: Labels,
    distances: Float32,
    weights: Float32 | None,
    centers: Float32,
    backend: Reference,
) -> Float32:
    """The means of the clusters (k, d), on the host; one that stays empty keeps its center."""
    k = len(centers)
    sums, totals = map(on_host, backend.kmeans_update(x, labels, weights, k))
    empty = np.flatnonzero(totals == 0)
    if empty.size:
        labels = _relocated(labels, distances, weights, empty.tolist())
        sums, totals = map(on_host, backend.kmeans_update(x, labels, weights, k))
    means, filled = centers.copy(), totals > 0
    means[filled] = sums[filled] / totals[filled, None]
    return means


def _relocated(
    labels: Labels, distances: Float32, weights: Float32 | None, empty: list[int]
) -> Labels:
    """Labels in which each empty cluster has taken a point, the farthest from its center first."""
    labels = labels.copy()
    distances = distances.copy() if weights is None else distances * (weights > 0)
    for cluster in empty:
        farthest = int(distances.argmax())
        if not float(distances[farthest]) > 0:
            break  # fewer points differ than there are clusters
        labels[farthest] = cluster
        distances[farthest] = 0
    return labels


def _mean_variance(x: Float32, backend: Reference) -> float:
    """The mean over columns of the variance of each."""
    n, d = x.shape
    one_cluster = library_of(x).zeros(n, np.int32)
    sums, _ = backend.kmeans_update(x, one_cluster, None, 1)
    mean = (on_host(sums) / n).astype(np.float32)
    _, distances = _assign(x, mean, backend)
    inertia, _ = backend.kmeans_update(distances.reshape(-1, 1), one_cluster, None, 1)
    variance: float = on_host(inertia).item() / (n * d)
    return variance
