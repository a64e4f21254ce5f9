"""Clustering in one dimension, of which there is no kernel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..reference import Array, Float64
from .absent import refused
from .codebooks import CodebookOperations


class Kmeans1dOperations(CodebookOperations):
    """Says that it runs on the host."""

    def kmeans_1d(
        self, x: Array, k: int, weights: Float64 | None, with_labels: bool
    ) -> tuple[Float64, NDArray[np.int32] | None, Float64, NDArray[np.int32]]:
        refused("kmeans_1d", "qrs.kmeans_1d(cupy.asnumpy(x), k)")
