"""The Rust backend: every operation of the reference with SIMD and threads, the same bits.

Arguments and results are those of `qrs.backends.reference`; see there. float16 and bfloat16
arrays cross the border as uint16 views with the name of their dtype.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ... import _qrs
from ...float_formats import FORMATS
from ..reference import (
    Array,
    Bytes,
    Codes,
    Float32,
    Float64,
    Integers,
    Labels,
    into,
)
from .gradients import Gradients
from .raw import bits_of, column, int32, raw, row, typed


class Rust(Gradients):
    """SIMD levels chosen at run time, rayon underneath; see `qrs.simd_level()`."""

    name: ClassVar[str] = "rust"

    def group_range(self, x: Array, group_size: int) -> tuple[Float32, Float32]:
        return _qrs.group_range(*raw(x), group_size)

    def choose_qparams_affine(
        self, lo: Float32, hi: Float32, qmin: int, qmax: int, symmetric: bool, scale_dtype: str
    ) -> tuple[Float32, NDArray[np.int32] | None]:
        return _qrs.choose_qparams_affine(lo, hi, qmin, qmax, symmetric, scale_dtype)

    def quantize_affine(
        self,
        x: Array,
        group_size: int,
        scale: Float32,
        zero_point: Integers | None,
        qmin: int,
        qmax: int,
        out: Codes | None = None,
    ) -> Codes:
        z = int32(zero_point)
        return _qrs.quantize_affine(*raw(x), group_size, scale, z, qmin, qmax, out)

    def dequantize_affine(
        self,
        codes: Codes,
        group_size: int,
        scale: Float32,
        zero_point: Integers | None,
        dtype: str,
        out: Array | None = None,
    ) -> Array:
        z, bits = int32(zero_point), bits_of(out)
        return typed(_qrs.dequantize_affine(codes, group_size, scale, z, dtype, bits), dtype)

    def pack_bits(self, codes: Codes, bits: int, out: Bytes | None = None) -> Bytes:
        return _qrs.pack_bits(codes, bits, out)

    def unpack_bits(
        self, packed: Bytes, bits: int, cols: int, signed: bool, out: Codes | None = None
    ) -> Codes:
        return _qrs.unpack_bits(packed, bits, cols, signed, out)

    def quantize_affine_packed(
        self,
        x: Array,
        group_size: int,
        bits: int,
        qmin: int,
        qmax: int,
        symmetric: bool,
        scale_dtype: str,
        scale: Float32 | None = None,
        zero_point: Integers | None = None,
        out: Bytes | None = None,
    ) -> tuple[Bytes, Float32, Integers | None]:
        z = int32(zero_point)
        return _qrs.quantize_affine_packed(
            *raw(x), group_size, bits, qmin, qmax, symmetric, scale_dtype, scale, z, out
        )

    def dequantize_affine_packed(
        self,
        packed: Bytes,
        cols: int,
        group_size: int,
        bits: int,
        signed: bool,
        scale: Float32,
        zero_point: Integers | None,
        dtype: str,
        out: Array | None = None,
    ) -> Array:
        x_hat = _qrs.dequantize_affine_packed(
            packed, cols, group_size, bits, signed, scale, int32(zero_point), dtype, bits_of(out)
        )
        return typed(x_hat, dtype)

    def fake_quantize_affine(
        self,
        x: Array,
        group_size: int,
        qmin: int,
        qmax: int,
        symmetric: bool,
        scale_dtype: str,
        scale: Float32 | None = None,
        zero_point: Integers | None = None,
        out: Array | None = None,
    ) -> Array:
        bits, dtype = raw(x)
        x_hat = _qrs.fake_quantize_affine(
            bits, dtype, group_size, qmin, qmax, symmetric, scale_dtype, scale,
            int32(zero_point), bits_of(out),
        )  # fmt: skip
        return typed(x_hat, dtype)

    def encode_float(
        self, x: Array, format: str, saturate: bool, out: Codes | None = None
    ) -> Codes:
        return _qrs.encode_float(*raw(x), format, saturate, out)

    def decode_float(
        self, codes: Codes, format: str, dtype: str, out: Array | None = None
    ) -> Array:
        return typed(_qrs.decode_float(codes, format, dtype, bits_of(out)), dtype)

    def choose_scale_float(
        self, lo: Float32, hi: Float32, format: str, scale_dtype: str
    ) -> Float32:
        return _qrs.choose_scale_float(lo, hi, format, scale_dtype)

    def choose_scale_float_nested(
        self, lo: Float32, hi: Float32, format: str, scale_format: str
    ) -> tuple[Codes, Float32]:
        return _qrs.choose_scale_float_nested(lo, hi, format, scale_format)

    def quantize_float(
        self,
        x: Array,
        group_size: int,
        format: str,
        scale: Float32 | None,
        out: Codes | None = None,
    ) -> Codes:
        return _qrs.quantize_float(*raw(x), group_size, format, scale, out)

    def dequantize_float(
        self,
        codes: Codes,
        group_size: int,
        format: str,
        scale: Float32 | None,
        dtype: str,
        out: Array | None = None,
    ) -> Array:
        x_hat = _qrs.dequantize_float(codes, group_size, format, scale, dtype, bits_of(out))
        return typed(x_hat, dtype)

    def quantize_float_packed(
        self,
        x: Array,
        group_size: int,
        format: str,
        scale_dtype: str | None,
        scale: Float32 | None = None,
        out: Bytes | None = None,
    ) -> tuple[Bytes, Float32 | None]:
        place = None if out is None else out.view(FORMATS[format].code_dtype)
        aligned = place is None or place.flags.aligned
        codes, scale = _qrs.quantize_float_packed(
            *raw(x), group_size, format, scale_dtype, scale, place if aligned else None
        )
        packed = codes.view(np.uint8)
        return (packed if aligned else into(out, packed)), scale

    def dequantize_float_packed(
        self,
        packed: Bytes,
        cols: int,
        group_size: int,
        format: str,
        scale: Float32 | None,
        dtype: str,
        out: Array | None = None,
    ) -> Array:
        codes = np.require(packed.view(FORMATS[format].code_dtype), requirements="A")
        x_hat = _qrs.dequantize_float_packed(
            codes, cols, group_size, format, scale, dtype, bits_of(out)
        )
        return typed(x_hat, dtype)

    def choose_scale_codebook(
        self, lo: Float32, hi: Float32, low: float, high: float, scale_dtype: str
    ) -> Float32:
        return _qrs.choose_scale_codebook(lo, hi, low, high, scale_dtype)

    def quantize_codebook(
        self,
        x: Array,
        group_size: int,
        scale: Float32 | None,
        thresholds: Float32,
        codes: Codes | None,
        out: Codes | None = None,
    ) -> Codes:
        return _qrs.quantize_codebook(*raw(x), group_size, scale, thresholds, row(codes), out)

    def dequantize_codebook(
        self,
        codes: Codes,
        group_size: int,
        scale: Float32 | None,
        offset: Float32 | None,
        book: Float32,
        dtype: str,
        out: Array | None = None,
    ) -> Array:
        x_hat = _qrs.dequantize_codebook(
            codes, group_size, scale, offset, book, dtype, bits_of(out)
        )
        return typed(x_hat, dtype)

    def center_scales(self, scale: Float32) -> tuple[Float32, Float32]:
        return _qrs.center_scales(scale)

    def choose_scale_lsq(
        self,
        x: Array,
        group_size: int,
        weights: Float32 | None,
        levels: Float32,
        thresholds: Float32,
        factors: Float32,
        scale: Float32,
        scale_dtype: str,
    ) -> tuple[Float32, Float64]:
        table = row(levels), row(thresholds), row(factors)
        return _qrs.choose_scale_lsq(*raw(x), group_size, weights, *table, scale, scale_dtype)

    def quantize_codebook_packed(
        self,
        x: Array,
        group_size: int,
        bits: int,
        ends: tuple[float, float],
        scale_dtype: str | None,
        scale: Float32 | None,
        thresholds: Float32,
        codes: Codes | None,
        out: Bytes | None = None,
    ) -> tuple[Bytes, Float32 | None]:
        return _qrs.quantize_codebook_packed(
            *raw(x), group_size, bits, ends, scale_dtype, scale, thresholds, row(codes), out
        )

    def dequantize_codebook_packed(
        self,
        packed: Bytes,
        cols: int,
        group_size: int,
        bits: int,
        scale: Float32 | None,
        offset: Float32 | None,
        book: Float32,
        dtype: str,
        out: Array | None = None,
    ) -> Array:
        x_hat = _qrs.dequantize_codebook_packed(
            packed, cols, group_size, bits, scale, offset, book, dtype, bits_of(out)
        )
        return typed(x_hat, dtype)

    def gelu(self, x: Array, out: Array | None = None) -> Array:
        return typed(_qrs.gelu(*raw(x), bits_of(out)), x.dtype.name)

    def softmax(self, x: Array, out: Array | None = None) -> Array:
        return typed(_qrs.softmax(*raw(x), bits_of(out)), x.dtype.name)

    def layer_norm(
        self, x: Array, weight: Float32, bias: Float32, eps: float, out: Array | None = None
    ) -> Array:
        y = _qrs.layer_norm(*raw(x), weight, bias, eps, bits_of(out))
        return typed(y, x.dtype.name)

    def kmeans_1d(
        self, x: Array, k: int, weights: Float64 | None, with_labels: bool
    ) -> tuple[Float64, NDArray[np.int32] | None, Float64, NDArray[np.int32]]:
        return _qrs.kmeans_1d(*raw(x), k, weights, with_labels)

    def kmeans_assign(
        self, x: Float32, centers: Float32, out: tuple[Labels, Float32] | None = None
    ) -> tuple[Labels, Float32]:
        places = () if out is None else (column(out[0]), column(out[1]))
        labels, distances = _qrs.kmeans_assign(x, centers, *places)
        return labels.reshape(-1), distances.reshape(-1)

    def kmeans_update(
        self, x: Float32, labels: Labels, weights: Float32 | None, k: int
    ) -> tuple[Float64, Float64]:
        sums, totals = _qrs.kmeans_update(x, column(labels), column(weights), k)
        return sums, totals.reshape(-1)

    def kmeans_potentials(
        self, x: Float32, candidates: Float32, closest: Float32, weights: Float32 | None
    ) -> Float64:
        return _qrs.kmeans_potentials(x, candidates, column(closest), column(weights))
