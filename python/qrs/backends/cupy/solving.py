"""Solving in float64, of which there is no kernel."""

from __future__ import annotations

from ..reference import Bytes, Float32, Float64, Int32
from .absent import refused
from .grouped_matmul import GroupedMatmulOperations


class SolvingOperations(GroupedMatmulOperations):
    """Says that they run on the host."""

    def cholesky(self, h: Float64, out: Float64 | None = None) -> Float64:
        refused("cholesky")

    def matmul_float64(self, a: Float64, b: Float64, out: Float64 | None = None) -> Float64:
        refused("matmul_float64")

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
        refused("round_with_feedback")

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
        refused("descend")
