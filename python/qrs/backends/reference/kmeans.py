"""The steps that Lloyd's k-means repeats; which centers come next is decided in `qrs.clustering`.

Points are the rows of `x`, float32 of shape (n, d); centers are (k, d), weights (n,), or None where
each is 1. Sums over points are float64 with an order of their own: block after block of
`block_of_sums(k)` or `BLOCK` points.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .arrays import Float32, Float64, lane_sums
from .kmeans_1d import Kmeans1dOperations

BLOCK = 1 << 14
"""Points of a block of a sum."""
_PAIRS = 1 << 20  # of a point and a center that are looked at at a time: memory, and no result

Labels = NDArray[np.int32]


def block_of_sums(k: int) -> int:
    """Points of a block of the sums over `k` clusters; not more sums than points."""
    return max(BLOCK, 16 * k)


def squared_distances(x: Float32, centers: Float32) -> Float32:
    """(n, k): (x - center)^2, summed in float32 from the first column to the last."""
    squares = np.zeros((len(x), len(centers)), np.float32)
    for column in range(x.shape[1]):
        difference = x[:, column, None] - centers[None, :, column]
        squares += difference * difference
    return squares


class KmeansOperations(Kmeans1dOperations):
    """Lloyd, "Least squares quantization in PCM", 1982; k-means++ by Arthur and Vassilvitskii."""

    def kmeans_assign(
        self, x: Float32, centers: Float32, out: tuple[Labels, Float32] | None = None
    ) -> tuple[Labels, Float32]:
        """Which center is nearest to each point (n,), and the square of its distance (n,). Class B.

        The first one of those that are equally near by `squared_distances`. Where d is 1, centers
        must ascend, and x belongs to the lower neighbour up to and including the middle,
        (lower + upper) / 2 in float64. On the CPU the same bits everywhere; on a GPU too, but that
        numbers and squares below 2^-126 are zeros there.

        >>> from qrs.backends.reference import Reference
        >>> x, centers = np.float32([[0, 0], [3, 4], [9, 9]]), np.float32([[0, 0], [6, 8]])
        >>> [part.tolist() for part in Reference().kmeans_assign(x, centers)]
        [[0, 0, 1], [0.0, 25.0, 10.0]]
        """
        labels, distances = out or (np.empty(len(x), np.int32), np.empty(len(x), np.float32))
        if x.shape[1] == 1:
            c = centers[:, 0]
            middles = (c[:-1].astype(np.float64) + c[1:]) / 2
            labels[...] = np.searchsorted(middles, x[:, 0].astype(np.float64))
            distances[...] = (x[:, 0] - c[labels]) ** 2
            return labels, distances
        step = max(1, _PAIRS // len(centers))
        for start in range(0, len(x), step):
            part = slice(start, start + step)
            squares = squared_distances(x[part], centers)
            labels[part], distances[part] = squares.argmin(axis=1), squares.min(axis=1)
        return labels, distances

    def kmeans_update(
        self, x: Float32, labels: Labels, weights: Float32 | None, k: int
    ) -> tuple[Float64, Float64]:
        """The sum of weight * x over each cluster (k, d), and of its weights (k,). Class B.

        In order within a block of `block_of_sums(k)` points, the sums of blocks in order; products
        are exact. On the CPU the same bits everywhere; on a GPU, whose additions come in any order,
        within n * 2^-53 * sum |weight * x|.

        >>> from qrs.backends.reference import Reference
        >>> x, labels = np.float32([[1], [5], [2]]), np.int32([0, 1, 0])
        >>> sums, totals = Reference().kmeans_update(x, labels, np.float32([1, 2, 3]), 2)
        >>> sums.tolist(), totals.tolist()
        ([[7.0], [10.0]], [4.0, 2.0])
        """
        n, d = x.shape
        sums, totals = np.zeros((k, d)), np.zeros(k)
        for start in range(0, n, block_of_sums(k)):
            part = slice(start, start + block_of_sums(k))
            cluster, values = labels[part], x[part].astype(np.float64)
            weight = np.ones(len(values)) if weights is None else weights[part].astype(np.float64)
            for column in range(d):
                sums[:, column] += np.bincount(cluster, weight * values[:, column], k)
            totals += np.bincount(cluster, weight, k)
        return sums, totals

    def kmeans_potentials(
        self, x: Float32, candidates: Float32, closest: Float32, weights: Float32 | None
    ) -> Float64:
        """Sums of weight * min(closest, squared distance) for each candidate. Class B.

        What k-means++ chooses by: `closest` (n,) has the squared distances to the centers so far.
        (candidates, blocks), a sum for each block of `BLOCK` points. Within one, element i is added
        to lane i mod 16, and lanes fold as rule 6 says. On the CPU the same bits everywhere; on a
        GPU within 2^-38 times each sum, of distances as `kmeans_assign` has them there.

        >>> from qrs.backends.reference import Reference
        >>> x, closest = np.float32([[0], [3], [4]]), np.float32([1, 1, 9])
        >>> Reference().kmeans_potentials(x, np.float32([[0], [3]]), closest, None).tolist()
        [[10.0], [2.0]]
        """
        n = len(x)
        blocks = -(-n // BLOCK)
        potentials = np.empty((len(candidates), blocks))
        for index in range(len(candidates)):
            squares = squared_distances(x, candidates[index : index + 1])[:, 0]
            summands = np.zeros(blocks * BLOCK)
            summands[:n] = np.minimum(squares, closest)
            if weights is not None:
                summands[:n] *= weights
            potentials[index] = lane_sums(summands.reshape(blocks, BLOCK))
        return potentials
