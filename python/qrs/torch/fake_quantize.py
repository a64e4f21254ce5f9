"""Fake quantization that gradients pass: what `qrs.quantize` stores, decoded, in the forward pass.

The forward pass runs the kernels of qrs on the memory of the tensor, so that its values are bit for
bit `qrs.quantize(x, scheme).dequantize()`. The backward pass is the straight-through estimator
(Bengio et al., 2013): the gradient of what lies in the range that can be stored, and 0 outside.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from .. import api
from ..errors import bad
from ..float_formats import FORMATS
from ..granularity import PerAxis, PerTensor
from ..schemes import Codebook, Float, Int, Scheme, as_scheme, scales
from .arrays import as_array, as_tensor, check_floats

__all__ = ["fake_quantize"]


@torch.compiler.disable  # the kernels are no operations of torch: compiled graphs break here
def fake_quantize(
    x: torch.Tensor, scheme: Scheme | str, *, scale: Any = None, zero_point: Any = None
) -> torch.Tensor:
    """`qrs.quantize(x, scheme).dequantize()` as a tensor of the shape, dtype and device of `x`.

    Parameters
    ----------
    x : float32, float16, bfloat16 or float64 tensor, on the CPU or a CUDA device; not changed.
    scheme : a scheme of qrs, or its string.
    scale, zero_point : as for `qrs.quantize`, tensors or arrays; without them they come from `x`.
        With a scale that is given, values outside of what it can represent get no gradient.

    Raises `ArgTypeError` for what is no tensor, and what `qrs.quantize` raises.

    >>> x = torch.tensor([[0.3, 1.0, 9.0]], requires_grad=True)
    >>> y = fake_quantize(x, "int4", scale=1.0)  # codes from -7 to 7
    >>> y.sum().backward()
    >>> y.tolist(), x.grad.tolist()
    ([[0.0, 1.0, 7.0]], [[1.0, 1.0, 0.0]])
    """
    check_floats(x)
    known = as_scheme(scheme)
    result: torch.Tensor = _FakeQuantize.apply(x, known, scale, zero_point)
    return result


def quantized_values(
    x: torch.Tensor, scheme: Scheme, scale: Any = None, zero_point: Any = None
) -> torch.Tensor:
    """The forward pass alone."""
    parameters = {"scale": _plain(scale), "zero_point": _plain(zero_point)}
    return as_tensor(api.fake_quantize(as_array(x), scheme, **parameters)).reshape(x.shape)


def clipped(
    grad: torch.Tensor, x: torch.Tensor, scheme: Scheme, scale: Any, zero_point: Any = None
) -> torch.Tensor:
    """`grad` where `x` lies within what can be represented, and 0 elsewhere.

    Of integers that is where the code before clamping, round(x / scale) + zero_point, is one of the
    scheme, as torch has it; of tables and floats, where x / scale is within their levels.
    """
    if isinstance(scheme, Int) and has_kernel(grad, x):
        arrays = as_array(grad), as_array(x)
        return as_tensor(scheme.clip_gradient(*arrays, _plain(scale), _plain(zero_point)))
    return torch.where(inside(x, scheme, scale, zero_point), grad, 0)


def has_kernel(dy: torch.Tensor, x: torch.Tensor) -> bool:
    """Whether kernels compute gradients of these: on the CPU, of one dtype but float64."""
    return bool(x.device.type == "cpu" and dy.dtype == x.dtype != torch.float64)


def inside(x: torch.Tensor, scheme: Scheme, scale: Any, zero_point: Any = None) -> torch.Tensor:
    """Where values lie within what can be represented: see `clipped`."""
    code = x.detach().float() / _spread(_rounded(scale, scheme), scheme, x)
    if isinstance(scheme, Int):
        code = code.round_()
        if zero_point is not None:
            code += _spread(zero_point, scheme, x)
        low, high = float(scheme.qmin), float(scheme.qmax)
    else:
        low, high = _ends(scheme)
    return (code >= low).logical_and_(code <= high)


class _FakeQuantize(torch.autograd.Function):
    """Straight through, but for what is clipped."""

    @staticmethod
    def forward(ctx: Any, x: Any, scheme: Scheme, scale: Any, zero_point: Any) -> Any:
        ctx.scheme = scheme
        # As they are now: who trains them may change them in place.
        ctx.parameters = [
            p.clone() if isinstance(p, torch.Tensor) else copy(p) for p in (scale, zero_point)
        ]
        ctx.save_for_backward(*([] if scale is None else [x]))
        return quantized_values(x, scheme, scale, zero_point)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Any) -> Any:
        saved = ctx.saved_tensors  # once: checkpointing counts
        if saved:
            scale, zero_point = ctx.parameters
            grad = clipped(grad, saved[0], ctx.scheme, scale, zero_point)
        return grad, None, None, None


def _plain(parameter: Any) -> Any:
    """A parameter as qrs takes it."""
    return as_array(parameter, "scale") if isinstance(parameter, torch.Tensor) else parameter


def _rounded(scale: Any, scheme: Scheme) -> Any:
    """Scales as they are stored, as float32: an array of the host."""
    on_host = as_array(scale.cpu()) if isinstance(scale, torch.Tensor) else np.asarray(scale)
    if not isinstance(scheme.scale_dtype, str):
        return on_host
    return scales.given(on_host, on_host.shape, scheme.scale_dtype)


def _spread(parameter: Any, scheme: Scheme, x: torch.Tensor) -> torch.Tensor:
    """Stored parameters as float32 of a shape that broadcasts over `x`."""
    known = parameter if isinstance(parameter, torch.Tensor) else as_tensor(np.asarray(parameter))
    known = known.to(x.device, torch.float32)
    granularity, shape = scheme.granularity, tuple(x.shape)
    if isinstance(granularity, PerTensor):
        return known.reshape(())
    if isinstance(granularity, PerAxis):
        along = [1] * x.ndim
        along[granularity.axis % x.ndim] = -1
        return known.reshape(along)
    view = granularity.rows(shape)
    each = known.reshape(-1, 1).expand(-1, view.group_size).reshape(view.rows, -1)
    return each[:, : view.cols].reshape(shape)


def _ends(scheme: Scheme) -> tuple[float, float]:
    """The least and the greatest level."""
    if isinstance(scheme, Codebook) and scheme.table is not None:
        return min(scheme.table), max(scheme.table)
    if isinstance(scheme, Float):
        largest = float(FORMATS[scheme.format].largest)
        return -largest, largest
    raise bad("scale", f"given for {scheme}", str(scheme), "None: its levels are learned")
