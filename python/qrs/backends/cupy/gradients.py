"""Gradients straight through codes, of which there is no kernel: torch computes them on GPUs."""

from __future__ import annotations

from ..reference import Array, Float32, Integers
from .absent import refused
from .solving import SolvingOperations


class GradientOperations(SolvingOperations):
    """Says that they run on the host."""

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
        refused("clip_gradient_affine")

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
        refused("step_gradients_affine")
