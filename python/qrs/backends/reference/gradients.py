"""Gradients straight through codes: of what is clipped, and of steps that are learned."""

from __future__ import annotations

import numpy as np

from .arrays import Array, Float32, Integers, into, lane_sums, spread, widened, zeros_or
from .solving import SolvingOperations


class GradientOperations(SolvingOperations):
    """Bengio et al., 2013, and Esser et al., 2020."""

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
        """The gradient of `x` straight through its codes: `dy`, of the same dtype, where the code
        before clamping is one of qmin..qmax, and 0 elsewhere. Class A.

        >>> dy, x = np.array([[1.0, 2.0, 3.0]], np.float32), np.array([[0.4, 1.4, -1.6]])
        >>> one, x = np.ones((1, 1), np.float32), x.astype(np.float32)
        >>> GradientOperations().clip_gradient_affine(dy, x, 3, one, None, -1, 1).tolist()
        [[1.0, 2.0, 0.0]]
        """
        z = spread(zeros_or(zero_point, scale), group_size, x)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            v = np.rint(widened(x) / spread(scale, group_size, x))
        inside = (v >= (qmin - z).astype(np.float32)) & (v <= (qmax - z).astype(np.float32))
        return into(out, np.where(inside, dy, np.zeros((), dy.dtype)))

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
        """The gradients of x, of scales and of zero points that are learned, from that of
        x_hat = scale * (round(clip(v, qmin, qmax)) - zero_point), v = x / scale + zero_point.

        For `x` they are `dy` where v lies between qmin and qmax, and else 0. For a scale it is the
        sum of (round(v) - v) dy there, and of (qmin or qmax - zero_point) dy elsewhere; for a zero
        point that of -scale dy elsewhere (Esser et al., 2020, equation 3; Bhalgat et al., 2020).
        Sums are those of rule 6. Groups divide the columns. Class A.

        >>> dy, x = np.array([[1.0, 2.0, 3.0]], np.float32), np.array([[0.25, 1.5, -2.0]])
        >>> one, x = np.ones((1, 1), np.float32), x.astype(np.float32)
        >>> dx, ds, dz = GradientOperations().step_gradients_affine(dy, x, 3, one, None, -1, 1)
        >>> dx.tolist(), ds.tolist(), dz.tolist()  # -0.25 * 1 + 1 * 2 - 1 * 3; -(2 + 3)
        ([[1.0, 0.0, 0.0]], [[-1.25]], [[-5.0]])
        """
        z = spread(zeros_or(zero_point, scale), group_size, x).astype(np.float32)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            v = widened(x) / spread(scale, group_size, x) + z
            code = np.rint(np.clip(v, np.float32(qmin), np.float32(qmax)))
            within = (qmin < v) & (v < qmax)
            of_scale = (code - np.where(within, v, z)) * widened(dy)
            beyond = np.where(within, np.float32(0), widened(dy))
            groups = (*scale.shape, group_size)
            d_scale = lane_sums(of_scale.reshape(groups))
            d_zero = -scale * lane_sums(beyond.reshape(groups))
        return into(out, np.where(within, dy, np.zeros((), dy.dtype))), d_scale, d_zero
