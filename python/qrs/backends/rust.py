"""The Rust backend: every operation of the reference with SIMD and threads, the same bits.

Arguments and results are those of `qrs.backends.reference`; see there. float16 and bfloat16
arrays cross the border as uint16 views with the name of their dtype.
"""

from __future__ import annotations

from typing import ClassVar, overload

import numpy as np
from numpy.typing import NDArray

from .. import _qrs
from ..constants import DTYPE_NAMES, DTYPES
from ..float_formats import FORMATS
from .reference import Array, Bytes, Codes, Float32, Float64, Integers, Reference, into


class Rust(Reference):
    """SIMD levels chosen at run time, rayon underneath; see `qrs.simd_level()`."""

    name: ClassVar[str] = "rust"

    def group_range(self, x: Array, group_size: int) -> tuple[Float32, Float32]:
        return _qrs.group_range(*_raw(x), group_size)

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
        z = _int32(zero_point)
        return _qrs.quantize_affine(*_raw(x), group_size, scale, z, qmin, qmax, out)

    def dequantize_affine(
        self,
        codes: Codes,
        group_size: int,
        scale: Float32,
        zero_point: Integers | None,
        dtype: str,
        out: Array | None = None,
    ) -> Array:
        z, bits = _int32(zero_point), _bits_of(out)
        return _typed(_qrs.dequantize_affine(codes, group_size, scale, z, dtype, bits), dtype)

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
        z = _int32(zero_point)
        return _qrs.quantize_affine_packed(
            *_raw(x), group_size, bits, qmin, qmax, symmetric, scale_dtype, scale, z, out
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
            packed, cols, group_size, bits, signed, scale, _int32(zero_point), dtype, _bits_of(out)
        )
        return _typed(x_hat, dtype)

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
        bits, dtype = _raw(x)
        x_hat = _qrs.fake_quantize_affine(
            bits, dtype, group_size, qmin, qmax, symmetric, scale_dtype, scale,
            _int32(zero_point), _bits_of(out),
        )  # fmt: skip
        return _typed(x_hat, dtype)

    def encode_float(
        self, x: Array, format: str, saturate: bool, out: Codes | None = None
    ) -> Codes:
        return _qrs.encode_float(*_raw(x), format, saturate, out)

    def decode_float(
        self, codes: Codes, format: str, dtype: str, out: Array | None = None
    ) -> Array:
        return _typed(_qrs.decode_float(codes, format, dtype, _bits_of(out)), dtype)

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
        return _qrs.quantize_float(*_raw(x), group_size, format, scale, out)

    def dequantize_float(
        self,
        codes: Codes,
        group_size: int,
        format: str,
        scale: Float32 | None,
        dtype: str,
        out: Array | None = None,
    ) -> Array:
        x_hat = _qrs.dequantize_float(codes, group_size, format, scale, dtype, _bits_of(out))
        return _typed(x_hat, dtype)

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
            *_raw(x), group_size, format, scale_dtype, scale, place if aligned else None
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
            codes, cols, group_size, format, scale, dtype, _bits_of(out)
        )
        return _typed(x_hat, dtype)

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
        return _qrs.quantize_codebook(*_raw(x), group_size, scale, thresholds, _row(codes), out)

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
            codes, group_size, scale, offset, book, dtype, _bits_of(out)
        )
        return _typed(x_hat, dtype)

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
    ) -> Float32:
        table = _row(levels), _row(thresholds), _row(factors)
        return _qrs.choose_scale_lsq(*_raw(x), group_size, weights, *table, scale, scale_dtype)

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
            *_raw(x), group_size, bits, ends, scale_dtype, scale, thresholds, _row(codes), out
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
            packed, cols, group_size, bits, scale, offset, book, dtype, _bits_of(out)
        )
        return _typed(x_hat, dtype)

    def kmeans_1d(
        self, x: Array, k: int, weights: Float64 | None, with_labels: bool
    ) -> tuple[Float64, NDArray[np.int32] | None, Float64, NDArray[np.int32]]:
        return _qrs.kmeans_1d(*_raw(x), k, weights, with_labels)


_FLOAT32 = DTYPES["float32"]


def _raw(x: Array) -> tuple[Array, str]:
    """An array as the kernels take it, and the name of its dtype."""
    if x.dtype is _FLOAT32:
        return x, "float32"
    name = DTYPE_NAMES[x.dtype]
    return (x if x.itemsize > 2 else x.view(np.uint16)), name


def _typed(raw: Array, dtype: str) -> Array:
    return raw if dtype == "float32" else raw.view(DTYPES[dtype])


def _bits_of(out: Array | None) -> Array | None:
    return None if out is None else _raw(out)[0]


def _int32(zero_point: Integers | None) -> NDArray[np.int32] | None:
    return None if zero_point is None else zero_point.astype(np.int32, copy=False)


@overload
def _row(vector: Array) -> Array: ...
@overload
def _row(vector: None) -> None: ...
def _row(vector: Array | None) -> Array | None:
    """A vector as kernels take it, with two axes."""
    return None if vector is None else vector.reshape(1, -1)
