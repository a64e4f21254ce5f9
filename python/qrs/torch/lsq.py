"""Learned step sizes: scales, and zero points, that are trained beside the weights.

Esser et al., "Learned Step Size Quantization", 2020. With v = x / s + z, where s and z are as they
are stored, z rounded (gradients pass that straight through), and codes from Qn to Qp the
gradient of x_hat = s * (round(clip(v, Qn, Qp)) - z) with respect to s is round(v) - v inside,
Qn - z below and Qp - z above (equation 3; Bhalgat et al., "LSQ+", 2020, for z), with respect to z 0
inside and -s outside, both times 1 / sqrt(N Qp) (section 2.2), N the values that share the step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from ..api import quantize
from ..errors import ArgTypeError, bad
from ..granularity import PerAxis, PerGroup
from ..qtensor import QTensor
from ..schemes import Int, Scheme, as_scheme
from .arrays import as_array, as_tensor, check_floats
from .fake_quantize import has_kernel, quantized_values

__all__ = ["LSQ"]

TINY = torch.finfo(torch.float32).tiny


class LSQ(torch.nn.Module):
    """Fake quantization with steps that are learned: of the tensor, of each channel or each group.

    Parameters
    ----------
    scheme : integers, with groups that divide the last axis.
    x : what the steps begin with: 2 mean|x| / sqrt(Qp) of each (section 2.1), or where zero points
        are learned the scale and zero point that `qrs.quantize` takes.
    learn_zero_point : whether zero points are learned too. Without it they are 0, which unsigned
        codes take for the outputs of a ReLU.

    `step` and, if it is learned, `zero_point` are the parameters, in the shape of the stored ones;
    `qtensor(x)` stores what was trained, bit for bit what `forward` computes.

    >>> lsq = LSQ("int4", torch.tensor([1.0, -3.0]))
    >>> round(lsq.step.item(), 4), lsq.scheme.qmax  # 2 * 2 / sqrt(7)
    (1.5119, 7)
    """

    def __init__(
        self, scheme: Scheme | str, x: torch.Tensor, *, learn_zero_point: bool = False
    ) -> None:
        super().__init__()
        self.scheme = checked(as_scheme(scheme), learn_zero_point)
        check_floats(x)
        if not bool(torch.isfinite(x).all()):
            raise bad("x", "has NaN or infinite values", None, "finite numbers")
        self.scheme.granularity.check(tuple(x.shape))
        zero = None
        if learn_zero_point:
            qt = quantize(as_array(x), self.scheme)
            step, zero = as_tensor(qt.scale).float(), as_tensor(qt.zero_point).float()
        else:
            mean = as_groups(x.detach().abs().float(), self.scheme).mean(dim=1)
            step = 2 * mean / self.scheme.qmax**0.5
            step = torch.where(step > TINY, step, torch.ones_like(step))
            step = step.reshape(self.scheme.granularity.scale_shape(tuple(x.shape)))
        self.step = torch.nn.Parameter(step)
        self.zero_point = None if zero is None else torch.nn.Parameter(zero)

    def scale(self) -> torch.Tensor:
        """The steps as they are stored: positive, of the shape and precision of the scheme's."""
        stored = getattr(torch, self.scheme.scale_dtype)
        least = torch.finfo(stored).tiny
        return self.step.detach().abs().clamp(min=least).to(stored).float()

    def zero(self) -> torch.Tensor | None:
        """Zero points as they are stored, of the dtype of codes; None of symmetric schemes."""
        if self.scheme.symmetric:
            return None
        scheme, dtype = self.scheme, torch.int8 if self.scheme.signed else torch.uint8
        if self.zero_point is None:
            return torch.zeros_like(self.step, dtype=dtype)
        rounded = self.zero_point.detach().round()
        if not bool(torch.isfinite(rounded).all()):
            found = "has NaN or infinite values"
            raise bad("zero_point", found, rounded, "finite numbers")
        return rounded.clamp(scheme.qmin, scheme.qmax).to(dtype)

    def qtensor(self, x: torch.Tensor) -> QTensor:
        """`x` quantized with what was learned."""
        zero = self.zero()
        z = None if zero is None else as_array(zero)
        return quantize(as_array(x), self.scheme, scale=as_array(self.scale()), zero_point=z)

    @torch.compiler.disable
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x_hat, in the shape and dtype of `x`."""
        scale, zero = self.scale(), self.zero()
        parameters = self.step, self.zero_point, scale, zero
        result: torch.Tensor = _LearnedStep.apply(x, *parameters, self.scheme)
        return result

    def extra_repr(self) -> str:
        return f"{self.scheme}{'' if self.zero_point is None else ', learned zero point'}"


class _LearnedStep(torch.autograd.Function):
    """The forward pass of qrs, and the gradients of equation 3."""

    @staticmethod
    def forward(
        ctx: Any, x: Any, step: Any, zero_point: Any, scale: Any, zero: Any, scheme: Int
    ) -> Any:
        ctx.scheme = scheme
        ctx.save_for_backward(x, step, zero_point, scale, zero)
        return quantized_values(x, scheme, scale, zero)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Any) -> Any:
        x, step, zero_point, scale, zero = ctx.saved_tensors
        scheme = ctx.scheme
        d_x, d_step, d_zero = gradients(grad, x, scheme, scale, zero)
        share = 1.0 / (x.numel() / max(step.numel(), 1) * scheme.qmax) ** 0.5
        # What is stored is |step|.
        of_step = d_step.reshape(step.shape) * share * torch.where(step < 0, -1.0, 1.0)
        of_zero = None if zero_point is None else d_zero.reshape(step.shape) * share
        return d_x, of_step, of_zero, None, None, None


def gradients(
    dy: torch.Tensor, x: torch.Tensor, scheme: Int, scale: torch.Tensor, zero: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Those of x, and before their scale of the steps and zero points."""
    if has_kernel(dy, x):
        z = None if zero is None else as_array(zero)
        arrays = as_array(dy), as_array(x), as_array(scale), z
        d_x, d_step, d_zero = scheme.step_gradients(*arrays)
        return as_tensor(d_x).reshape(x.shape), as_tensor(d_step), as_tensor(d_zero)
    return gradients_by_torch(dy, x, scheme, scale, zero)


def gradients_by_torch(
    dy: torch.Tensor, x: torch.Tensor, scheme: Int, scale: torch.Tensor, zero: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same where there is no kernel: on GPUs, and for float64."""
    values, upstream = as_groups(x, scheme), as_groups(dy, scheme)
    s = scale.reshape(-1, 1)
    z = torch.zeros_like(s) if zero is None else zero.float().reshape(-1, 1)
    v = values / s + z
    code = torch.round(v).clamp_(scheme.qmin, scheme.qmax)
    within = (v > scheme.qmin).logical_and_(v < scheme.qmax)
    of_step = ((code - torch.where(within, v, z)) * upstream).float().sum(dim=1)
    of_zero = -s[:, 0] * torch.where(within, 0, upstream).float().sum(dim=1)
    d_x = from_groups(torch.where(within, upstream, 0), scheme, dy.shape)
    return d_x, of_step, of_zero


def as_groups(x: torch.Tensor, scheme: Int) -> torch.Tensor:
    """(groups, values): what shares a step in one row.

    >>> as_groups(torch.tensor([[1, 2], [3, 4]]), Int(8, axis=1)).tolist()
    [[1, 3], [2, 4]]
    """
    granularity = scheme.granularity
    if isinstance(granularity, PerGroup):
        return x.reshape(-1, granularity.group_size)
    if isinstance(granularity, PerAxis):
        return x.movedim(granularity.axis, 0).flatten(1)
    return x.reshape(1, -1)


def from_groups(groups: torch.Tensor, scheme: Int, shape: torch.Size) -> torch.Tensor:
    """The inverse of `as_groups`."""
    if not isinstance(scheme.granularity, PerAxis):
        return groups.reshape(shape)
    axis = scheme.granularity.axis % len(shape)
    moved = (shape[axis], *shape[:axis], *shape[axis + 1 :])
    return groups.reshape(moved).movedim(0, axis)


def checked(scheme: Scheme, learn_zero_point: bool) -> Int:
    """Integers whose zero is the code 0, or is learned."""
    known = isinstance(scheme, Int) and not getattr(scheme.granularity, "ragged", False)
    if not isinstance(learn_zero_point, bool):
        found = f"got {learn_zero_point!r}"
        raise bad("learn_zero_point", found, learn_zero_point, "True or False", ArgTypeError)
    if not isinstance(scheme, Int) or not known:
        expected = "integers whose groups divide the last axis, such as 'int4-axis0'"
        raise bad("scheme", f"got {scheme}", str(scheme), expected)
    if learn_zero_point and scheme.symmetric:
        found, expected = f"got True for {scheme}", "False: symmetric schemes have none"
        raise bad("learn_zero_point", found, True, expected)
    if scheme.signed and not scheme.symmetric and not learn_zero_point:
        found, expected = f"got False for {scheme}", "True, or unsigned codes whose zero is 0"
        raise bad("learn_zero_point", found, False, expected)
    return scheme
