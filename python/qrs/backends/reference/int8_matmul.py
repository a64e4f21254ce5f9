"""Products of integer codes: matrices, convolutions, and the way back from their int32 sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...convolution import Convolution
from .arrays import Codes, Float32, Integers, into
from .functional import FunctionalOperations

Int32 = NDArray[np.int32]
Int8Weights = Any
"""What `pack_int8` returns; each backend has its own, and takes no other's."""


@dataclass(frozen=True)
class PlainInt8Weights:
    """Weights of the reference: the codes themselves."""

    codes: NDArray[np.int8]
    zero_point: Int32
    groups: int


class Int8MatmulOperations(FunctionalOperations):
    """r = S (q - Z), summed in integers: exact, in whatever order. Class A, all of it.

    Sums wrap like int32 does; whoever calls has made sure that none is too large.
    """

    def pack_int8(
        self, codes: NDArray[np.int8], zero_point: Int32 | None = None, groups: int = 1
    ) -> Int8Weights:
        """Weights made ready once: codes (n, k), zero points (n, 1).

        Of a convolution in `groups`, each takes n / groups outputs, in order.
        """
        z = np.zeros((len(codes), 1), np.int32) if zero_point is None else zero_point
        return PlainInt8Weights(codes, z, groups)

    def matmul_int8(
        self,
        x: Codes,
        weights: Int8Weights,
        x_zero_point: Int32 | None = None,
        bias: Int32 | None = None,
        out: Int32 | None = None,
    ) -> Int32:
        """Sums (m, n) of (x - x_zero_point) * (w - zero_point) over k, plus bias (1, n).

        x: int8 or uint8 (m, k); x_zero_point: (m, 1) or (1, 1).

        >>> x, w = np.array([[130, 128]], np.uint8), np.array([[3, 5], [-1, 0]], np.int8)
        >>> ops = Int8MatmulOperations()
        >>> ops.matmul_int8(x, ops.pack_int8(w), np.array([[128]], np.int32)).tolist()
        [[6, -2]]
        """
        centered = x.astype(np.float64) - (0 if x_zero_point is None else x_zero_point)
        return into(out, _wrapped(_product(centered, weights), bias))

    def conv_int8(
        self,
        x: Codes,
        weights: Int8Weights,
        conv: Convolution,
        x_zero_point: int = 0,
        bias: Int32 | None = None,
        out: Int32 | None = None,
    ) -> Int32:
        """The same over windows of images: x (batch * channels, height * width), bias (1, n).

        Codes (n, channels / groups * kh * kw). Outside the image is x_zero_point, which adds
        nothing. Sums (batch * n, out_height * out_width).
        """
        (height, width), (top, left, bottom, right) = conv.size, conv.padding
        images = x.astype(np.float64).reshape(-1, conv.channels, height, width) - x_zero_point
        images = np.pad(images, ((0, 0), (0, 0), (top, bottom), (left, right)))
        rows, cols = conv.out_size
        windows = np.empty((len(images), conv.channels, *conv.kernel, rows, cols))
        for i, j in np.ndindex(*conv.kernel):
            y, x0 = i * conv.dilation[0], j * conv.dilation[1]
            picked = images[:, :, y:, x0:][:, :, :: conv.stride[0], :: conv.stride[1]]
            windows[:, :, i, j] = picked[:, :, :rows, :cols]
        n, k = weights.codes.shape
        columns = windows.reshape(len(images), conv.groups, k, rows * cols)
        w = (weights.codes - weights.zero_point.astype(np.float64)).reshape(conv.groups, -1, k)
        sums = np.matmul(w, columns).reshape(len(images) * n, rows * cols)
        biases = None if bias is None else np.tile(bias.T, (len(images), 1))
        return into(out, _wrapped(sums, biases))

    def dequantize_sums(
        self,
        sums: Int32,
        scale: Float32,
        bias: Float32 | None = None,
        relu: bool = False,
        out: Float32 | None = None,
    ) -> Float32:
        """float32(sums) * scale + bias, negative ones 0 with `relu`: (rows, cols).

        scale, bias: (rows or 1, cols or 1).
        """
        with np.errstate(over="ignore", under="ignore"):
            y = sums.astype(np.float32) * scale
            if bias is not None:
                y = y + bias
        return into(out, np.where(y > 0, y, np.float32(0)) if relu else y)

    def requantize(
        self,
        sums: Int32,
        scale: Float32,
        zero_point: int,
        qmin: int,
        qmax: int,
        out: Codes | None = None,
    ) -> Codes:
        """clip(rne(sums * scale + zero_point), qmin, qmax): int8 if qmin < 0, else uint8.

        In float64 up to the rounding, as ONNX defines QLinearMatMul. scale, float32, of the inputs
        over that of the output: (rows or 1, cols or 1). A ReLU is qmin = zero_point.

        >>> sums = np.array([[5, -3, 1000]], np.int32)
        >>> half = np.array([[0.5]], np.float32)
        >>> Int8MatmulOperations().requantize(sums, half, 10, 0, 255).tolist()
        [[12, 8, 255]]
        """
        v = sums * scale.astype(np.float64) + zero_point
        return into(out, np.rint(np.clip(v, qmin, qmax)).astype(_code_dtype(qmin)))

    def requantize_fixed_point(
        self,
        sums: Int32,
        multiplier: Int32,
        shift: Int32,
        zero_point: int,
        qmin: int,
        qmax: int,
        out: Codes | None = None,
    ) -> Codes:
        """The same in integers alone: scale = multiplier * 2^(shift - 31) (Jacob et al. 2018, 2.2).

        multiplier in [2^30, 2^31), or 0, shift in [-31, 31]: (rows or 1, cols or 1). Sums shifted
        left saturate; the product is rounded to nearest, ties up, then divided by 2^-shift and
        rounded to nearest, ties away from zero, as gemmlowp does.

        >>> sums = np.array([[5, -3, 1000]], np.int32)
        >>> half, shift = np.array([[2**30]], np.int32), np.array([[0]], np.int32)
        >>> Int8MatmulOperations().requantize_fixed_point(sums, half, shift, 10, 0, 255).tolist()
        [[13, 9, 255]]
        """
        low, high = -(2**31), 2**31 - 1
        left, right = np.maximum(shift, 0), np.maximum(-shift, 0)
        shifted = np.clip(sums.astype(np.int64) << left, low, high)
        product = shifted * multiplier.astype(np.int64)
        # Halves are added with the sign of the product, and the division truncates.
        nudged = product + np.where(product >= 0, 1 << 30, 1 - (1 << 30))
        v = np.where(nudged >= 0, nudged >> 31, -(-nudged >> 31))
        mask = (np.int64(1) << right) - 1
        v = (v >> right) + ((v & mask) > (mask >> 1) + (v < 0))
        return into(out, np.clip(v + zero_point, qmin, qmax).astype(_code_dtype(qmin)))

    # Fused operations. A backend that can do them in one pass over memory overrides them.

    def linear_int8(
        self,
        x: Codes,
        weights: Int8Weights,
        x_scale: Float32,
        x_zero_point: Int32 | None,
        w_scale: Float32,
        bias: Float32 | None = None,
        relu: bool = False,
        out: Float32 | None = None,
    ) -> Float32:
        """float32(sums) * (x_scale * w_scale) + bias: (m, n).

        x_scale: (m, 1) or (1, 1); w_scale, bias: (1, n).
        """
        with np.errstate(over="ignore", under="ignore"):
            scale = x_scale * w_scale
        sums = self.matmul_int8(x, weights, x_zero_point)
        return self.dequantize_sums(sums, scale, bias, relu, out)


def _product(x: NDArray[np.float64], weights: PlainInt8Weights) -> NDArray[np.float64]:
    """In float64, where such sums are exact: below 2^53 for k below 10^11."""
    product: NDArray[np.float64] = x @ (weights.codes - weights.zero_point.astype(np.float64)).T
    return product


def _wrapped(sums: NDArray[np.float64], bias: Integers | None) -> Int32:
    total = sums.astype(np.int64)
    return (total if bias is None else total + bias).astype(np.int32)


def _code_dtype(qmin: int) -> type[np.int8 | np.uint8]:
    return np.int8 if qmin < 0 else np.uint8
