"""Number formats: conversions, and codes with and without scales."""

from __future__ import annotations

import numpy as np

from ...constants import DTYPES
from ...float_formats import FORMATS
from ..cuda.kernels import CAST, ENCODE, SATURATE, SCALE
from ..cuda.launch import Faults
from ..reference import Array, Bytes, Codes, Float32
from .affine import AffineOperations, packed_shape


class FloatOperations(AffineOperations):
    """Rules 9 and 10 of the contract."""

    def encode_float(
        self, x: Array, format: str, saturate: bool, out: Codes | None = None
    ) -> Codes:
        with self._kernels.on_device_of(x=x, out=out):
            out = self._out(out, x.shape, FORMATS[format].code_dtype)
            faults = Faults(self.xp)
            conversion = SATURATE if saturate else ENCODE
            self._kernels.quantize_float(x, 1, format, conversion, None, False, out, faults)
            if FORMATS[format].nan_code is None:
                faults.check()
        return out

    def decode_float(
        self, codes: Codes, format: str, dtype: str, out: Array | None = None
    ) -> Array:
        return self.dequantize_float(codes, codes.shape[1], format, None, dtype, out)

    def choose_scale_float(
        self, lo: Float32, hi: Float32, format: str, scale_dtype: str
    ) -> Float32:
        with self._kernels.on_device_of(lo=lo, hi=hi):
            faults = Faults(self.xp)
            scale: Float32 = self._kernels.choose_scale_float(lo, hi, format, scale_dtype, faults)
            if scale_dtype != "e8m0":  # those reach every float32
                faults.check()
        return scale

    def choose_scale_float_nested(
        self, lo: Float32, hi: Float32, format: str, scale_format: str
    ) -> tuple[Codes, Float32]:
        with self._kernels.on_device_of(lo=lo, hi=hi):
            faults = Faults(self.xp)
            chosen = self._kernels.choose_scale_float_nested(lo, hi, format, scale_format, faults)
            faults.check()
        return chosen

    def quantize_float(
        self,
        x: Array,
        group_size: int,
        format: str,
        scale: Float32 | None,
        out: Codes | None = None,
    ) -> Codes:
        with self._kernels.on_device_of(x=x, scale=scale, out=out):
            out = self._out(out, x.shape, FORMATS[format].code_dtype)
            faults = Faults(self.xp)
            conversion = CAST if scale is None else SCALE
            self._kernels.quantize_float(
                x, group_size, format, conversion, scale, False, out, faults
            )
            faults.check()
        return out

    def dequantize_float(
        self,
        codes: Codes,
        group_size: int,
        format: str,
        scale: Float32 | None,
        dtype: str,
        out: Array | None = None,
    ) -> Array:
        with self._kernels.on_device_of(codes=codes, scale=scale, out=out):
            out = self._out(out, codes.shape, DTYPES[dtype])
            self._kernels.dequantize_float(codes, group_size, format, scale, False, out)
        return out

    def quantize_float_packed(
        self,
        x: Array,
        group_size: int,
        format: str,
        scale_dtype: str | None,
        scale: Float32 | None = None,
        out: Bytes | None = None,
    ) -> tuple[Bytes, Float32 | None]:
        kernels, bits = self._kernels, FORMATS[format].bits
        with kernels.on_device_of(x=x, scale=scale, out=out):
            out = self._out(out, packed_shape(x.shape, bits), np.uint8)
            faults = Faults(self.xp)
            if scale is None and scale_dtype is not None:
                lo, hi = kernels.group_range(x, group_size, faults)
                scale = kernels.choose_scale_float(lo, hi, format, scale_dtype, faults)
            conversion = CAST if scale is None else SCALE
            kernels.quantize_float(x, group_size, format, conversion, scale, bits == 4, out, faults)
            faults.check()
        return out, scale

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
        with self._kernels.on_device_of(packed=packed, scale=scale, out=out):
            out = self._out(out, (packed.shape[0], cols), DTYPES[dtype])
            is_packed = FORMATS[format].bits == 4
            self._kernels.dequantize_float(packed, group_size, format, scale, is_packed, out)
        return out
