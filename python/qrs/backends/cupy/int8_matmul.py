"""Products of integer codes: matrices, convolutions, and the way back from their sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...convolution import Convolution
from ..reference import Array, Codes, Float32, Int8Weights, Int32
from .functional import FunctionalOperations

_ROWS = 4
"""Rows of a thread: kRows in products.cu."""


@dataclass(frozen=True)
class DeviceInt8Weights:
    """Weights on a GPU: codes (n, k), and (k, n), as threads of a warp read them."""

    codes: Array
    columns: Array
    zero_point: Array
    groups: int


class Int8MatmulOperations(FunctionalOperations):
    """Sums are exact, in whatever order."""

    def pack_int8(
        self, codes: NDArray[np.int8], zero_point: Int32 | None = None, groups: int = 1
    ) -> Int8Weights:
        with self._kernels.on_device_of(codes=codes, zero_point=zero_point):
            z = self.xp.zeros((len(codes), 1), np.int32) if zero_point is None else zero_point
            columns = self.xp.ascontiguousarray(codes.T)
        return DeviceInt8Weights(codes, columns, z, groups)

    def matmul_int8(
        self,
        x: Codes,
        weights: Int8Weights,
        x_zero_point: Int32 | None = None,
        bias: Int32 | None = None,
        out: Int32 | None = None,
    ) -> Int32:
        (m, k), n = x.shape, len(weights.codes)
        with self._kernels.on_device_of(
            x=x, weights=weights.codes, x_zero_point=x_zero_point, bias=bias, out=out
        ):
            out = self._out(out, (m, n), np.int32)
            zeros = 0 if x_zero_point is None else 1 if len(x_zero_point) == 1 else 2
            self._kernels.launch(
                "matmul_int8", (bool(x.dtype == np.int8),), tiles(m, n),
                x, m, n, k, weights.columns, weights.zero_point,
                weights.zero_point if x_zero_point is None else x_zero_point, np.int32(zeros),
                *optional(bias, weights.zero_point), out,
            )  # fmt: skip
        return out

    def conv_int8(
        self,
        x: Codes,
        weights: Int8Weights,
        conv: Convolution,
        x_zero_point: int = 0,
        bias: Int32 | None = None,
        out: Int32 | None = None,
    ) -> Int32:
        n, k = weights.codes.shape
        batch, (rows, cols) = len(x) // conv.channels, conv.out_size
        with self._kernels.on_device_of(x=x, weights=weights.codes, bias=bias, out=out):
            out = self._out(out, (batch * n, rows * cols), np.int32)
            self._kernels.launch(
                "conv_int8", (bool(x.dtype == np.int8),), out.size,
                x, batch, n, k, weights.codes, weights.zero_point, conv.channels, *conv.size,
                *conv.kernel, *conv.stride, *conv.padding[:2], *conv.dilation, conv.groups,
                rows, cols, np.int32(x_zero_point), *optional(bias, weights.zero_point), out,
            )  # fmt: skip
        return out

    def dequantize_sums(
        self,
        sums: Int32,
        scale: Float32,
        bias: Float32 | None = None,
        relu: bool = False,
        out: Float32 | None = None,
    ) -> Float32:
        with self._kernels.on_device_of(sums=sums, scale=scale, bias=bias, out=out):
            out = self._out(out, sums.shape, np.float32)
            self._dequantize_sums(sums, scale, None, bias, relu, out)
        return out

    def requantize(
        self,
        sums: Int32,
        scale: Float32,
        zero_point: int,
        qmin: int,
        qmax: int,
        out: Codes | None = None,
    ) -> Codes:
        with self._kernels.on_device_of(sums=sums, scale=scale, out=out):
            out = self._out(out, sums.shape, np.int8 if qmin < 0 else np.uint8)
            target = map(np.int32, (zero_point, qmin, qmax))
            args = (sums, *sums.shape, *spread(scale), *target, out)
            self._kernels.launch("requantize", (), sums.size, *args)
        return out

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
        with self._kernels.on_device_of(sums=sums, multiplier=multiplier, shift=shift, out=out):
            out = self._out(out, sums.shape, np.int8 if qmin < 0 else np.uint8)
            target = map(np.int32, (zero_point, qmin, qmax))
            args = (sums, *sums.shape, *spread(multiplier), *spread(shift), *target, out)
            self._kernels.launch("requantize_fixed_point", (), sums.size, *args)
        return out

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
        sums = self.matmul_int8(x, weights, x_zero_point)
        with self._kernels.on_device_of(sums=sums, x_scale=x_scale, w_scale=w_scale, bias=bias):
            out = self._out(out, sums.shape, np.float32)
            self._dequantize_sums(sums, x_scale, w_scale, bias, relu, out)
        return out

    def _dequantize_sums(
        self,
        sums: Array,
        scale: Array,
        factor: Array | None,
        bias: Array | None,
        relu: bool,
        out: Array,
    ) -> None:
        self._kernels.launch(
            "dequantize_sums", (), sums.size,
            sums, *sums.shape, *spread(scale), *spread(scale if factor is None else factor),
            np.int32(factor is not None), *spread(scale if bias is None else bias),
            np.int32(bias is not None), np.int32(relu), out,
        )  # fmt: skip


def tiles(rows: int, cols: int) -> int:
    """Threads' work: some rows of a column each."""
    return -(-rows // _ROWS) * cols


def spread(values: Array) -> tuple[Array, int, int]:
    """An array that spreads over rows and columns, and its steps along both."""
    rows, cols = values.shape
    return values, cols if rows > 1 else 0, 1 if cols > 1 else 0


def optional(array: Any, other: Any) -> tuple[Any, np.int32]:
    """An array, or one that is never read, and whether it is there."""
    return other if array is None else array, np.int32(array is not None)
