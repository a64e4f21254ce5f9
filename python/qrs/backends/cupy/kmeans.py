"""k-means by CuPy's own kernels, which flush subnormals and add in any order: class B.

What differs from the reference, its docstrings say.
"""

from __future__ import annotations

import numpy as np

from ..reference import Float32, Float64, Labels
from ..reference.kmeans import BLOCK
from .kmeans_1d import Kmeans1dOperations

_PAIRS = 1 << 26
"""Of a point and a center that are looked at at a time: 256 MB, three times."""


class KmeansOperations(Kmeans1dOperations):
    """The steps of Lloyd's algorithm."""

    def kmeans_assign(
        self, x: Float32, centers: Float32, out: tuple[Labels, Float32] | None = None
    ) -> tuple[Labels, Float32]:
        with self._kernels.on_device_of(x=x, centers=centers):
            labels, distances = out or (
                self.xp.empty(len(x), np.int32),
                self.xp.empty(len(x), np.float32),
            )
            if x.shape[1] == 1:
                c = centers[:, 0]
                middles = (c[:-1].astype(np.float64) + c[1:].astype(np.float64)) * 0.5
                labels[...] = self.xp.searchsorted(middles, x[:, 0].astype(np.float64))
                difference = x[:, 0] - c[labels]
                distances[...] = difference * difference
                return labels, distances
            step = max(1, _PAIRS // len(centers))
            for start in range(0, len(x), step):
                part = slice(start, start + step)
                squares = self._squared_distances(x[part], centers)
                labels[part], distances[part] = squares.argmin(axis=1), squares.min(axis=1)
        return labels, distances

    def kmeans_update(
        self, x: Float32, labels: Labels, weights: Float32 | None, k: int
    ) -> tuple[Float64, Float64]:
        with self._kernels.on_device_of(x=x, labels=labels, weights=weights):
            bincount = self.xp.bincount
            weight = self.xp.ones(len(x)) if weights is None else weights.astype(np.float64)
            sums = self.xp.empty((k, x.shape[1]), np.float64)
            for column in range(x.shape[1]):
                sums[:, column] = bincount(labels, x[:, column].astype(np.float64) * weight, k)
            return sums, bincount(labels, weight, k)

    def kmeans_potentials(
        self, x: Float32, candidates: Float32, closest: Float32, weights: Float32 | None
    ) -> Float64:
        with self._kernels.on_device_of(
            x=x, candidates=candidates, closest=closest, weights=weights
        ):
            blocks = -(-len(x) // BLOCK)
            potentials: Float64 = self.xp.empty((len(candidates), blocks), np.float64)
            summands = self.xp.zeros(blocks * BLOCK, np.float64)
            for index in range(len(candidates)):
                squares = self._squared_distances(x, candidates[index : index + 1])[:, 0]
                least = self.xp.minimum(squares, closest).astype(np.float64)
                summands[: len(x)] = least if weights is None else least * weights
                potentials[index] = summands.reshape(blocks, BLOCK).sum(axis=1)
        return potentials

    def _squared_distances(self, x: Float32, centers: Float32) -> Float32:
        squares: Float32 = self.xp.zeros((len(x), len(centers)), np.float32)
        for column in range(x.shape[1]):
            difference = x[:, column, None] - centers[None, :, column]
            squares += difference * difference
        return squares
