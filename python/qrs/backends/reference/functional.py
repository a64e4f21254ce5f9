"""What stands between the layers of a network: GELU, softmax, layer normalization.

exp and erf are defined here, by polynomials in float32 without fused multiply-adds, so that all
backends give the same bits. The coefficients are minimax fits on Chebyshev nodes (iteratively
reweighted least squares in float64).
"""

from __future__ import annotations

import numpy as np

from ...errors import KernelFault
from .arrays import Array, Float32, into, lane_sums, narrowed, widened
from .kmeans import KmeansOperations

LOG2_E = np.float32(1.442695)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.1219444e-4)
"""Their sum is ln 2; products of the first with integers up to 2^15 are exact."""
EXP = (0.5, 0.16666666, 0.041666295, 0.0083334967, 0.001394466, 0.00019790346)
"""(exp(r) - 1 - r) / r^2 for |r| <= ln 2 / 2, of rising powers; exp is within 1 ulp."""
LEAST_EXPONENT = np.float32(-104)
"""exp of less is 0 in float32."""

ERF_END = np.float32(4)
"""erf of more is 1 in float32."""
ERF_ABOVE = (1.1283791, 0.19354466, 0.05310164, 0.0038833099, 0.0002845626, 1.986755e-06)
ERF_BELOW = (1.0, 0.50485706, 0.115349784, 0.015207187, 0.0011855579, 3.741971e-05)
"""erf(z) / z as a ratio of polynomials of z^2, of rising powers; erf is within 4e-7."""


class FunctionalOperations(KmeansOperations):
    """Functions of rows (rows, cols), in float32; the result has the dtype of x. Class A."""

    def gelu(self, x: Array, out: Array | None = None) -> Array:
        """x Phi(x) = (x / 2) (1 + erf(x / sqrt 2)) (Hendrycks and Gimpel 2016).

        Within 2.4e-7 max(|x|, 1).

        >>> FunctionalOperations().gelu(np.float32([[-1, 0, 1]])).round(4).tolist()
        [[-0.15870000422000885, 0.0, 0.8413000106811523]]
        """
        values = _finite(x)
        half = values * np.float32(0.5)
        y = half * (np.float32(1) + erf(values * np.float32(np.sqrt(0.5))))
        return into(out, narrowed(y, x.dtype.name))

    def softmax(self, x: Array, out: Array | None = None) -> Array:
        """exp(x - max) over its sum, of each row.

        >>> FunctionalOperations().softmax(np.float32([[0, 0, -200]])).tolist()
        [[0.5, 0.5, 0.0]]
        """
        values = _finite(x)
        if values.shape[1] == 0:
            return into(out, x.copy())
        with np.errstate(over="ignore", under="ignore"):
            powers = exp(values - values.max(axis=1, keepdims=True))
            y: Array = powers / lane_sums(powers)[:, None]
        return into(out, narrowed(y, x.dtype.name))

    def layer_norm(
        self, x: Array, weight: Float32, bias: Float32, eps: float, out: Array | None = None
    ) -> Array:
        """(x - mean) / sqrt(variance + eps) * weight + bias, of each row (Ba et al. 2016).

        weight, bias: (1, cols). The variance is over cols, not cols - 1. A row whose sums overflow
        float32 is a fault ("scale_overflow").

        >>> one, zero = np.ones((1, 4), np.float32), np.zeros((1, 4), np.float32)
        >>> FunctionalOperations().layer_norm(np.float32([[1, 1, 3, 3]]), one, zero, 0.0).tolist()
        [[-1.0, -1.0, 1.0, 1.0]]
        """
        values = _finite(x)
        count = np.float32(max(values.shape[1], 1))
        with np.errstate(all="ignore"):
            centered = values - (lane_sums(values) / count)[:, None]
            variance = lane_sums(centered * centered) / count
            overflow = np.flatnonzero(~np.isfinite(variance))
            if overflow.size:
                raise KernelFault("scale_overflow", int(overflow[0]))
            inverse = np.float32(1) / np.sqrt(variance + np.float32(eps))
            y: Array = centered * inverse[:, None] * weight + bias
        return into(out, narrowed(y, x.dtype.name))


def exp(x: Float32) -> Float32:
    """e^x for x <= 0.

    >>> exp(np.float32([0, -1, -87.5, -103, -1000])).tolist()[2:]
    [9.982351397596697e-39, 1.401298464324817e-45, 0.0]
    """
    x = np.maximum(x, LEAST_EXPONENT)
    n = np.rint(x * LOG2_E)
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    y = (_polynomial(r, EXP) * (r * r) + r) + np.float32(1)
    # In two steps, of which the second alone may round: to a subnormal.
    first = np.floor(n * np.float32(0.5))
    scaled: Float32 = y * _power_of_two(first) * _power_of_two(n - first)
    return scaled


def erf(x: Float32) -> Float32:
    """The error function.

    >>> erf(np.float32([0, 1, -9])).round(5).tolist()
    [0.0, 0.8427000045776367, -1.0]
    """
    z = np.clip(x, -ERF_END, ERF_END)
    t = z * z
    return z * _polynomial(t, ERF_ABOVE) / _polynomial(t, ERF_BELOW)


def _polynomial(x: Float32, coefficients: tuple[float, ...]) -> Float32:
    """By Horner's rule, from the highest power."""
    y = np.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        y = y * x + np.float32(c)
    return y


def _power_of_two(n: Float32) -> Float32:
    powers: Float32 = ((n.astype(np.int32) + 127) << 23).view(np.float32)
    return powers


def _finite(x: Array) -> Float32:
    values = widened(x)
    if not np.isfinite(values).all():
        raise KernelFault("nonfinite", 0)
    return values
