"""How weights are quantized in training: with steps that are learned, or that a solver finds."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from ...api import quantize
from ...qtensor import QTensor
from ...schemes import Int, Scheme, as_scheme
from ..arrays import DTYPES, as_array, as_tensor
from ..fake_quantize import fake_quantize
from ..lsq import LSQ

LEARNED = "learned"


class Solved(nn.Module):
    """Scales and codes that a solver finds anew in each pass; gradients pass as they are.

    >>> Solved("nf4-g2", "minmax")(torch.tensor([[0.5, 1.0]])).tolist()
    [[0.44070982933044434, 1.0]]
    """

    def __init__(self, scheme: Scheme | str, solver: str) -> None:
        super().__init__()
        self.scheme: Scheme = as_scheme(scheme)
        self.solver = solver

    def qtensor(self, weight: torch.Tensor) -> QTensor:
        """What is stored."""
        return quantize(as_array(weight), self.scheme, solver=self.solver)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        if self.solver == "minmax":
            return fake_quantize(weight, self.scheme)
        values: torch.Tensor = _Straight.apply(weight, self.qtensor(weight))
        return values

    def extra_repr(self) -> str:
        return f"{self.scheme}, {self.solver}"


class _Straight(torch.autograd.Function):
    """What a QTensor stands for, and the gradient as it is."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, qt: QTensor) -> torch.Tensor:
        return as_tensor(qt.dequantize(DTYPES[x.dtype]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return grad, None


WeightQuantizer = LSQ | Solved


def weight_quantizer(weight: torch.Tensor, scheme: Scheme, scales: str | None) -> WeightQuantizer:
    """The quantizer of a weight; `scales` is "learned", a solver, or None for what suits best.

    That is "learned" for integers whose groups divide the last axis, and "minmax" for others.
    """
    ragged = getattr(scheme.granularity, "ragged", False)
    if scales is None:
        scales = LEARNED if isinstance(scheme, Int) and not ragged else "minmax"
    if scales != LEARNED:
        return Solved(scheme, scales)
    has_zero_points = isinstance(scheme, Int) and not scheme.symmetric
    return LSQ(scheme, weight, learn_zero_point=has_zero_points)
