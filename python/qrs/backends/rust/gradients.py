"""Gradients straight through codes: `gradients` of the reference."""

from __future__ import annotations

from ... import _qrs
from ..reference import Array, Float32, Integers
from .raw import bits_of, int32, raw, typed
from .solving import Solving


class Gradients(Solving):
    """In one pass over memory each."""

    def clip_gradient_affine(
        self,
        dy: Array,
        x: Array,
        group_size: int,
        scale: Float32,
        zero_point: Integers | None,
        qmin: int,
        qmax: int,
        out: Array | None = None,
    ) -> Array:
        bits, dtype = raw(x)
        clipped = _qrs.clip_gradient_affine(
            raw(dy)[0], bits, dtype, group_size, scale, int32(zero_point), qmin, qmax,
            bits_of(out),
        )  # fmt: skip
        return typed(clipped, dtype)

    def step_gradients_affine(
        self,
        dy: Array,
        x: Array,
        group_size: int,
        scale: Float32,
        zero_point: Integers | None,
        qmin: int,
        qmax: int,
        out: Array | None = None,
    ) -> tuple[Array, Float32, Float32]:
        bits, dtype = raw(x)
        dx, d_scale, d_zero = _qrs.step_gradients_affine(
            raw(dy)[0], bits, dtype, group_size, scale, int32(zero_point), qmin, qmax,
            bits_of(out),
        )  # fmt: skip
        return typed(dx, dtype), d_scale, d_zero
