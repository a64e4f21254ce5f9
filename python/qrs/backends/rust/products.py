"""Products of codes: `int8_matmul` and `grouped_matmul` of the reference."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ... import _qrs
from ...convolution import Convolution
from ..reference import (
    Array,
    Bytes,
    Codes,
    Float32,
    GroupedWeights,
    Int8Weights,
    Int32,
    Integers,
    Reference,
)
from .raw import int32, raw


class Products(Reference):
    """What layers multiply with."""

    def pack_int8(
        self, codes: NDArray[np.int8], zero_point: Int32 | None = None, groups: int = 1
    ) -> Int8Weights:
        return _qrs.pack_int8(codes, zero_point, groups)

    def matmul_int8(
        self,
        x: Codes,
        weights: Int8Weights,
        x_zero_point: Int32 | None = None,
        bias: Int32 | None = None,
        out: Int32 | None = None,
    ) -> Int32:
        return _qrs.matmul_int8(x, weights, x_zero_point, bias, out)

    def conv_int8(
        self,
        x: Codes,
        weights: Int8Weights,
        conv: Convolution,
        x_zero_point: int = 0,
        bias: Int32 | None = None,
        out: Int32 | None = None,
    ) -> Int32:
        shape = (
            conv.channels, *conv.size, *conv.kernel, *conv.stride, *conv.padding[:2],
            *conv.dilation, conv.groups, *conv.out_size,
        )  # fmt: skip
        return _qrs.conv_int8(x, weights, shape, x_zero_point, bias, out)

    def dequantize_sums(
        self,
        sums: Int32,
        scale: Float32,
        bias: Float32 | None = None,
        relu: bool = False,
        out: Float32 | None = None,
    ) -> Float32:
        return _qrs.dequantize_sums(sums, scale, bias, relu, out)

    def requantize(
        self,
        sums: Int32,
        scale: Float32,
        zero_point: int,
        qmin: int,
        qmax: int,
        out: Codes | None = None,
    ) -> Codes:
        return _qrs.requantize(sums, scale, zero_point, qmin, qmax, out)

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
        return _qrs.requantize_fixed_point(sums, multiplier, shift, zero_point, qmin, qmax, out)

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
        return _qrs.linear_int8(x, weights, x_scale, x_zero_point, w_scale, bias, relu, out)

    def column_absmax(self, x: Array) -> Float32:
        return _qrs.column_absmax(*raw(x))

    def pack_grouped(
        self,
        packed: Bytes,
        cols: int,
        group_size: int,
        bits: int,
        signed: bool,
        scale: Float32,
        zero_point: Integers | None = None,
        books: Float32 | None = None,
    ) -> GroupedWeights:
        z = int32(zero_point)
        return _qrs.pack_grouped(packed, cols, group_size, bits, signed, scale, z, books)

    def matmul_grouped(
        self,
        x: Array,
        weights: GroupedWeights,
        bias: Float32 | None = None,
        compute: str = "float32",
        out: Float32 | None = None,
    ) -> Float32:
        return _qrs.matmul_grouped(*raw(x), weights, bias, compute == "bf16x2", out)

    def linear_grouped_int8(
        self,
        x: Codes,
        weights: GroupedWeights,
        x_scale: Float32,
        bias: Float32 | None = None,
        out: Float32 | None = None,
    ) -> Float32:
        return _qrs.linear_grouped_int8(x, weights, x_scale, bias, out)

    def add_matmul(
        self,
        y: Float32,
        x: Array,
        w: Float32,
        bias: Float32 | None = None,
        relu: bool = False,
        out: Float32 | None = None,
    ) -> Float32:
        return _qrs.add_matmul(y, *raw(x), w, bias, relu, out)
