"""Solving in float64, of which there is no kernel."""

from __future__ import annotations

from typing import NoReturn

from ...errors import DeviceError
from ..reference import Bytes, Float32, Float64, Int32
from .grouped_matmul import GroupedMatmulOperations


def _refused(name: str) -> NoReturn:
    problem, fix = f"{name}: there is no kernel for GPUs", "arrays on the host: cupy.asnumpy(x)"
    raise DeviceError(f"{problem}; fix: {fix}", arg="x", value="cupy", expected=fix)


class SolvingOperations(GroupedMatmulOperations):
    """Says that they run on the host."""

    def cholesky(self, h: Float64, out: Float64 | None = None) -> Float64:
        _refused("cholesky")

    def matmul_float64(self, a: Float64, b: Float64, out: Float64 | None = None) -> Float64:
        _refused("matmul_float64")

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
        _refused("round_with_feedback")

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
        _refused("descend")
