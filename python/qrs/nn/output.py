"""From int32 sums to codes again: how an integer layer hands on to the next one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backends.reference import Codes, Float32, Int32, Reference
from ..devices import contiguous, on_host
from ..errors import bad
from ..schemes.scales import moved_like
from .activations import Static

REQUANTIZE = ("float", "fixed-point")


def quantized_multiplier(scale: Any) -> tuple[Int32, Int32]:
    """Scales of 0 or more as multiplier * 2^(shift - 31) with a multiplier in [2^30, 2^31).

    Scales beyond the reach of shifts in [-31, 31] become 0, or the largest there is (Jacob et al.
    2018, section 2.2).

    >>> [int(part[0]) for part in quantized_multiplier(np.array([0.75]))]
    [1610612736, 0]
    """
    mantissa, exponent = np.frexp(np.asarray(scale, np.float64))
    multiplier = np.rint(np.ldexp(mantissa, 31)).astype(np.int64)
    rounded_up = multiplier == 1 << 31
    multiplier, shift = np.where(rounded_up, 1 << 30, multiplier), exponent + rounded_up
    multiplier = np.where(shift < -31, 0, np.where(shift > 31, (1 << 31) - 1, multiplier))
    return multiplier.astype(np.int32), np.clip(shift, -31, 31).astype(np.int32)


@dataclass(frozen=True)
class Requantize:
    """Sums of one layer to codes of the next: a scale, and a clamp that may be a ReLU."""

    target: Static
    scale: Float32
    """Of the inputs over that of the output: (1, n), or (n, 1) where outputs are rows."""
    relu: bool
    how: str
    ops: Reference

    def __call__(self, sums: Int32) -> Codes:
        target, scheme, ops = self.target, self.target.scheme, self.ops
        qmin = max(scheme.qmin, target.zero_point) if self.relu else scheme.qmin
        scale = self._spread(on_host(self.scale), sums)
        if self.how == "float":
            scale = moved_like(scale, sums)
            codes = ops.requantize(sums, scale, target.zero_point, qmin, scheme.qmax)
        else:
            multiplier, shift = (moved_like(a, sums) for a in quantized_multiplier(scale))
            codes = ops.requantize_fixed_point(
                sums, multiplier, shift, target.zero_point, qmin, scheme.qmax
            )
        # A ReLU whose qmin is not negative gives bytes of the other dtype, the same codes.
        return codes.view(scheme.code_dtype)

    def _spread(self, scale: Float32, sums: Int32) -> Float32:
        """Scales of rows once for each image."""
        images = sums.shape[0] // scale.shape[0] if scale.shape[1] == 1 else 1
        return scale if images == 1 or sums.shape[0] == 1 else np.tile(scale, (images, 1))


def combined_scale(source: Static, weights: Float32, target: Static) -> Float32:
    """x_scale * w_scale / y_scale in float32, (1, n), in the order that ONNX multiplies."""
    with np.errstate(over="ignore", under="ignore"):
        scale: Float32 = source.scale * on_host(weights) / target.scale
    if not np.isfinite(scale).all() or math.isnan(float(scale.sum())):
        raise bad("output", "its scale is too small beside those of x and w", None, "a larger one")
    return scale


def integer_bias(bias: Float32 | None, scale: Float32) -> Int32 | None:
    """Bias over x_scale * w_scale, rounded: (1, n). Raises where int32 cannot hold it."""
    if bias is None:
        return None
    quotient = np.rint(on_host(bias).astype(np.float64) / on_host(scale).astype(np.float64))
    if not (np.abs(quotient) < 2**31).all():
        worst = float(np.abs(quotient).max())
        found, expected = f"reaches {worst:.4g} steps of the sums", "less than 2**31"
        raise bad("bias", found, worst, expected)
    steps: NDArray[np.int32] = quotient.astype(np.int32)
    moved: Int32 = moved_like(contiguous(steps), bias)
    return moved
