"""What stands between the layers of a network."""

from __future__ import annotations

import numpy as np

from ...float_formats import ALIASES
from ..cuda.launch import Faults
from ..reference import Array, Float32
from .kmeans import KmeansOperations

_LANES = 16
"""Threads of a row: kLanes in sums.cuh."""


class FunctionalOperations(KmeansOperations):
    """GELU, softmax, layer normalization."""

    def gelu(self, x: Array, out: Array | None = None) -> Array:
        with self._kernels.on_device_of(x=x, out=out):
            out, faults = self._out(out, x.shape, x.dtype), Faults(self.xp)
            types = (ALIASES[x.dtype.name],)
            self._kernels.launch("gelu", types, x.size, x, x.size, out, faults.words)
            faults.check()
        return out

    def softmax(self, x: Array, out: Array | None = None) -> Array:
        with self._kernels.on_device_of(x=x, out=out):
            out, faults = self._out(out, x.shape, x.dtype), Faults(self.xp)
            if x.size:
                args = (x, *x.shape, out, faults.words)
                types = (ALIASES[x.dtype.name],)
                self._kernels.launch("softmax", types, _LANES * len(x), *args)
            faults.check()
        return out

    def layer_norm(
        self, x: Array, weight: Float32, bias: Float32, eps: float, out: Array | None = None
    ) -> Array:
        with self._kernels.on_device_of(x=x, weight=weight, bias=bias, out=out):
            out, faults = self._out(out, x.shape, x.dtype), Faults(self.xp)
            if x.size:
                args = (x, *x.shape, weight, bias, np.float32(eps), out, faults.words)
                types = (ALIASES[x.dtype.name],)
                self._kernels.launch("layer_norm", types, _LANES * len(x), *args)
            faults.check()
        return out
