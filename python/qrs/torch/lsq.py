"""Learned step sizes: scales that are trained beside the weights.

Esser et al., "Learned Step Size Quantization", 2020. With v = x / s and codes from Qn to Qp the
gradient of x_hat = s * round(clip(v, Qn, Qp)) with respect to s is round(v) - v inside, Qn below
and Qp above (equation 3), times 1 / sqrt(N Qp) (section 2.2), N the values that share the step.
"""

from __future__ import annotations

from typing import Any

import torch

from ..errors import bad
from ..granularity import PerAxis, PerTensor
from ..schemes import Int, Scheme, as_scheme
from .fake_quantize import quantized_values

__all__ = ["LSQ"]


class LSQ(torch.nn.Module):
    """Fake quantization with a step that is learned, one for the tensor or one for each channel.

    Parameters
    ----------
    scheme : symmetric integers, or unsigned ones (whose zero point is 0 here), per tensor or axis.
    x : what the steps begin with: 2 mean|x| / sqrt(Qp) of each (section 2.1).

    `step` is the parameter; `qrs.quantize(x, scheme, scale=lsq.scale())` stores what was trained,
    bit for bit.

    >>> lsq = LSQ("int4", torch.tensor([1.0, -3.0]))
    >>> round(lsq.step.item(), 4), lsq.scheme.qmax  # 2 * 2 / sqrt(7)
    (1.5119, 7)
    """

    def __init__(self, scheme: Scheme | str, x: torch.Tensor) -> None:
        super().__init__()
        self.scheme = checked(as_scheme(scheme))
        mean = x.detach().abs().float()
        if isinstance(self.scheme.granularity, PerAxis):
            axis = self.scheme.granularity.axis % x.ndim
            mean = mean.mean(dim=[a for a in range(x.ndim) if a != axis])
        else:
            mean = mean.mean()
        step = 2 * mean / self.scheme.qmax**0.5
        tiny = torch.finfo(torch.float32).tiny
        self.step = torch.nn.Parameter(torch.where(step > tiny, step, torch.ones_like(step)))

    def scale(self) -> torch.Tensor:
        """The steps as they are: positive, of the shape that the scheme stores."""
        return self.step.detach().abs().clamp(min=torch.finfo(torch.float32).tiny)

    @torch.compiler.disable
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x_hat, in the shape and dtype of `x`."""
        result: torch.Tensor = _LearnedStep.apply(x, self.step, self.scale(), self.scheme)
        return result


class _LearnedStep(torch.autograd.Function):
    """Equations 1 to 3."""

    @staticmethod
    def forward(ctx: Any, x: Any, step: Any, scale: Any, scheme: Int) -> Any:
        ctx.scheme = scheme
        ctx.save_for_backward(x, step, scale)
        zero_point = None if scheme.symmetric else torch.zeros_like(scale, dtype=torch.uint8)
        return quantized_values(x, scheme, scale, zero_point)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, step, scale = ctx.saved_tensors
        scheme = ctx.scheme
        each = along_axis(scale, scheme, x.ndim)
        v = x / each
        code = torch.round(v).clamp(scheme.qmin, scheme.qmax)
        within = (v > scheme.qmin) & (v < scheme.qmax)
        of_step = torch.where(within, code - v, code) * grad
        axes = [a for a in range(x.ndim) if each.ndim == 0 or each.shape[a] == 1]
        total = of_step.float().sum(dim=axes).reshape(step.shape) if axes else of_step.float()
        share = 1.0 / (x.numel() / step.numel() * scheme.qmax) ** 0.5
        # What is stored is |step|.
        return grad * within, total * share * torch.sign(step), None, None


def along_axis(scale: torch.Tensor, scheme: Int, ndim: int) -> torch.Tensor:
    """Scales of channels in a shape that broadcasts over the tensor."""
    if not isinstance(scheme.granularity, PerAxis):
        return scale
    shape = [1] * ndim
    shape[scheme.granularity.axis % ndim] = -1
    return scale.reshape(shape)


def checked(scheme: Scheme) -> Int:
    """Integers whose zero is the code 0."""
    known = isinstance(scheme, Int) and isinstance(scheme.granularity, PerTensor | PerAxis)
    if not isinstance(scheme, Int) or not known or (scheme.signed and not scheme.symmetric):
        expected = "symmetric or unsigned integers per tensor or axis, such as 'int4-axis0'"
        raise bad("scheme", f"got {scheme}", str(scheme), expected)
    return scheme
