"""Solving in float64: `solving` of the reference."""

from __future__ import annotations

from ... import _qrs
from ..reference import Bytes, Float32, Float64, Int32
from .products import Products


class Solving(Products):
    """What GPTQ and its like repeat."""

    def cholesky(self, h: Float64, out: Float64 | None = None) -> Float64:
        return _qrs.cholesky(h, out)

    def matmul_float64(self, a: Float64, b: Float64, out: Float64 | None = None) -> Float64:
        return _qrs.matmul_float64(a, b, out)

    def round_with_feedback(
        self,
        w: Float32,
        factor: Float64,
        scale: Float32,
        group_of: Int32,
        levels: Float32 | None = None,
        lowest: Int32 | None = None,
        count: int = 0,
        out: Bytes | None = None,
    ) -> Bytes:
        return _qrs.round_with_feedback(w, factor, scale, group_of, levels, lowest, count, out)

    def descend(
        self,
        w: Float32,
        h: Float64,
        w_hat: Float32,
        scale: Float32,
        group_of: Int32,
        levels: Float32 | None = None,
        lowest: Int32 | None = None,
        count: int = 0,
        out: Bytes | None = None,
    ) -> Bytes:
        return _qrs.descend(w, h, w_hat, scale, group_of, levels, lowest, count, out)
