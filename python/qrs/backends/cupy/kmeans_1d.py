"""Clustering in one dimension, of which there is no kernel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...errors import DeviceError
from ..reference import Array, Float64
from .codebooks import CodebookOperations


class Kmeans1dOperations(CodebookOperations):
    """Says that it runs on the host."""

    def kmeans_1d(
        self, x: Array, k: int, weights: Float64 | None, with_labels: bool
    ) -> tuple[Float64, NDArray[np.int32] | None, Float64, NDArray[np.int32]]:
        problem = "kmeans_1d: got an array on a GPU, expected one on the host: there is no kernel"
        fix = "qrs.kmeans_1d(cupy.asnumpy(x), k)"
        raise DeviceError(f"{problem}; fix: {fix}", arg="x", value="cupy", expected=fix)
