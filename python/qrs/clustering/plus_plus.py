"""The start of k-means: points far from one another, drawn by chance."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backends.reference import Float32, Float64, Reference
from ..backends.reference.kmeans import BLOCK
from ..devices import library_of, on_host


def plus_plus(
    x: Float32, k: int, weights: Float32 | None, rng: np.random.Generator, backend: Reference
) -> Float32:
    """`k` points of `x` (n, d) as centers (k, d), by greedy k-means++.

    Each but the first is the best of 2 + int(log k) points, drawn with probabilities in proportion
    to weight * squared distance to the centers so far: the one that leaves the least sum of those.
    Arthur and Vassilvitskii, "k-means++: the advantages of careful seeding", 2007, section 2.2 for
    the greedy variant. `rng` gives one uniform number for each draw, and nothing else is random.
    """
    minimum = library_of(x).minimum
    first = _first(len(x), weights, rng, x, backend)
    chosen = [first]
    closest = backend.kmeans_assign(x, x[first : first + 1])[1]
    sums = on_host(backend.kmeans_potentials(x, x[first : first + 1], closest, weights))[0]
    scratch = None
    trials = 2 + int(math.log(k))
    while len(chosen) < k:
        drawn = [_draw(u, sums, closest, weights) for u in rng.random(trials)]
        potentials = on_host(backend.kmeans_potentials(x, x[drawn], closest, weights))
        best = int(np.argmin([math.fsum(row) for row in potentials]))
        new, sums = drawn[best], potentials[best]
        scratch = backend.kmeans_assign(x, x[new : new + 1], scratch)
        minimum(closest, scratch[1], out=closest)
        chosen.append(new)
    centers: Float32 = x[chosen]
    return centers


def _first(
    n: int, weights: Float32 | None, rng: np.random.Generator, x: Any, backend: Reference
) -> int:
    """A point drawn by weight."""
    u = rng.random()
    if weights is None:
        return int(u * n)
    # Weights as if they were distances, and a candidate that is nearest to nothing.
    nowhere = x[:1] * 0 + np.float32(np.inf)
    return _draw(u, on_host(backend.kmeans_potentials(x, nowhere, weights, None))[0], weights, None)


def _draw(u: float, sums: Float64, values: Float32, weights: Float32 | None) -> int:
    """Index i with probability weights[i] * values[i] in proportion to all; `sums` are of blocks.

    >>> _draw(0.7, np.array([10.0]), np.float32([4, 2, 0, 4]), None)
    3
    """
    block, rest = _position(u * float(sums.cumsum()[-1]), sums)
    part = slice(block * BLOCK, block * BLOCK + BLOCK)
    summands = on_host(values[part]).astype(np.float64)
    if weights is not None:
        summands *= on_host(weights[part])
    return block * BLOCK + _position(rest, summands)[0]


def _position(target: float, summands: NDArray[np.float64]) -> tuple[int, float]:
    """In which summand a running sum passes `target`, and how far into it.

    >>> _position(5.0, np.array([4.0, 0.0, 2.0]))
    (2, 1.0)
    """
    ends = summands.cumsum()
    # Rounding may put the target at the very end, which belongs to the last summand there is.
    at = min(int(ends.searchsorted(target, "right")), int(ends.searchsorted(ends[-1])))
    return at, target - float(ends[at - 1] if at else 0.0)
