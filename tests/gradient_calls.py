"""Calls of the gradient of what is clipped, of which there is no CUDA kernel."""

from collections.abc import Iterator

import numpy as np

from kernel_calls import RULES
from nasty import FLOATS

GRADIENTS = ("clip_gradient_affine", "step_gradients_affine")
SHAPES = [(1, 1, 1), (3, 7, 3), (5, 64, 16), (2, 1000, 1000), (7, 129, 64), (4, 0, 4), (0, 4, 2)]


def clip_arguments(shape, rule, dtype, seed=0):
    """Gradients and values around the ends of the range, ties among them."""
    rows, cols, group = shape
    draw = np.random.default_rng(seed)
    groups = -(-cols // group)
    scale = (2.0 ** draw.integers(-3, 3, (rows, groups))).astype(np.float32)
    scale[draw.random(scale.shape) < 0.3] *= np.float32(0.9)
    z = draw.integers(rule.qmin, rule.qmax + 1, (rows, groups)).astype(np.int32)
    zero_point = None if rule.symmetric else z
    offset = 0 if rule.symmetric else np.repeat(z, group, axis=1)[:, :cols]
    ends = draw.choice([rule.qmin, rule.qmax], (rows, cols)) - offset
    steps = ends + draw.integers(-4, 5, (rows, cols)) / 4
    x = (steps * np.repeat(scale, group, axis=1)[:, :cols]).astype(FLOATS[dtype])
    grad = draw.standard_normal((rows, cols)).astype(FLOATS[dtype])
    return grad, x, group, scale, zero_point, rule.qmin, rule.qmax


def step_calls(dtype: str) -> Iterator[tuple]:
    """The same, of groups that divide the columns."""
    for case in clip_calls(dtype):
        dy, _, group = case[:3]
        if dy.shape[1] % group == 0:
            yield case


def clip_calls(dtype: str) -> Iterator[tuple]:
    """The arguments of a call for each shape and rule."""
    for seed, (shape, rule) in enumerate((s, r) for s in SHAPES for r in RULES.values()):
        yield clip_arguments(shape, rule, dtype, seed)
