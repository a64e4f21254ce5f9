"""Solving in float64, of which there is no kernel."""

from __future__ import annotations

from typing import Any, NoReturn

from ...errors import DeviceError
from .grouped_matmul import GroupedMatmulOperations


def _refused(name: str) -> NoReturn:
    problem, fix = f"{name}: there is no kernel for GPUs", "arrays on the host: cupy.asnumpy(x)"
    raise DeviceError(f"{problem}; fix: {fix}", arg="x", value="cupy", expected=fix)


class SolvingOperations(GroupedMatmulOperations):
    """Says that they run on the host."""

    def cholesky(self, h: Any, out: Any = None) -> Any:
        _refused("cholesky")

    def matmul_float64(self, a: Any, b: Any, out: Any = None) -> Any:
        _refused("matmul_float64")

    def round_with_feedback(self, w: Any, factor: Any, *levels: Any, out: Any = None) -> Any:
        _refused("round_with_feedback")

    def descend(self, w: Any, h: Any, w_hat: Any, *levels: Any, out: Any = None) -> Any:
        _refused("descend")
