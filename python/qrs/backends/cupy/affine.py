"""Linear quantization and packing, and what all operations stand on."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...constants import DTYPES
from ..cuda.kernels import Kernels
from ..cuda.launch import Faults, Load, cubins
from ..reference import Array, Bytes, Codes, Float32, Integers, Reference


class AffineOperations(Reference):
    """`xp` is cupy and `load` compiles kernels; tests pass stand-ins for both."""

    def __init__(self, xp: Any = None, load: Load | None = None) -> None:
        self.xp = importlib.import_module("cupy") if xp is None else xp
        self._kernels = Kernels(self.xp, load or cubins(self.xp))

    def _out(self, out: Array | None, shape: tuple[int, ...], dtype: Any) -> Array:
        """`out`, or fresh memory on the current device."""
        fresh: Array = self.xp.empty(shape, dtype) if out is None else out
        return fresh

    def group_range(self, x: Array, group_size: int) -> tuple[Float32, Float32]:
        with self._kernels.on_device_of(x=x):
            faults = Faults(self.xp)
            ranges = self._kernels.group_range(x, group_size, faults)
            faults.check()
        return ranges

    def choose_qparams_affine(
        self, lo: Float32, hi: Float32, qmin: int, qmax: int, symmetric: bool, scale_dtype: str
    ) -> tuple[Float32, NDArray[np.int32] | None]:
        with self._kernels.on_device_of(lo=lo, hi=hi):
            faults = Faults(self.xp)
            chosen = self._kernels.choose_qparams_affine(
                lo, hi, qmin, qmax, symmetric, scale_dtype, faults
            )
            faults.check()
        return chosen

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
        with self._kernels.on_device_of(x=x, scale=scale, zero_point=zero_point, out=out):
            out = self._out(out, x.shape, np.int8 if qmin < 0 else np.uint8)
            faults = Faults(self.xp)
            self._kernels.quantize_affine(
                x, group_size, (scale, zero_point), 8, qmin, qmax, out, faults
            )
            faults.check()
        return out

    def dequantize_affine(
        self,
        codes: Codes,
        group_size: int,
        scale: Float32,
        zero_point: Integers | None,
        dtype: str,
        out: Array | None = None,
    ) -> Array:
        with self._kernels.on_device_of(codes=codes, scale=scale, zero_point=zero_point, out=out):
            out = self._out(out, codes.shape, DTYPES[dtype])
            signed = bool(codes.dtype == np.int8)
            self._kernels.dequantize_affine(codes, group_size, 8, signed, (scale, zero_point), out)
        return out

    def pack_bits(self, codes: Codes, bits: int, out: Bytes | None = None) -> Bytes:
        with self._kernels.on_device_of(codes=codes, out=out):
            out = self._out(out, packed_shape(codes.shape, bits), np.uint8)
            self._kernels.pack_bits(codes, bits, out)
        return out

    def unpack_bits(
        self, packed: Bytes, bits: int, cols: int, signed: bool, out: Codes | None = None
    ) -> Codes:
        with self._kernels.on_device_of(packed=packed, out=out):
            out = self._out(out, (packed.shape[0], cols), np.int8 if signed else np.uint8)
            self._kernels.unpack_bits(packed, bits, signed, out)
        return out

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
        kernels, rule = self._kernels, (qmin, qmax, symmetric, scale_dtype)
        with kernels.on_device_of(x=x, scale=scale, zero_point=zero_point, out=out):
            out = self._out(out, packed_shape(x.shape, bits), np.uint8)
            faults = Faults(self.xp)
            if scale is None and kernels.fits_registers(x, group_size, bits, out):
                scale, zero_point = kernels.quantize_affine_packed(
                    x, group_size, bits, *rule, out, faults
                )
            else:
                if scale is None:
                    lo, hi = kernels.group_range(x, group_size, faults)
                    scale, zero_point = kernels.choose_qparams_affine(lo, hi, *rule, faults)
                parameters = (scale, zero_point)
                kernels.quantize_affine(x, group_size, parameters, bits, qmin, qmax, out, faults)
            faults.check()
        return out, scale, zero_point

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
        with self._kernels.on_device_of(packed=packed, scale=scale, zero_point=zero_point, out=out):
            out = self._out(out, (packed.shape[0], cols), DTYPES[dtype])
            parameters = (scale, zero_point)
            self._kernels.dequantize_affine(packed, group_size, bits, signed, parameters, out)
        return out

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
        kernels = self._kernels
        with kernels.on_device_of(x=x, scale=scale, zero_point=zero_point, out=out):
            out = self._out(out, x.shape, x.dtype)
            faults = Faults(self.xp)
            if scale is None:
                lo, hi = kernels.group_range(x, group_size, faults)
                scale, zero_point = kernels.choose_qparams_affine(
                    lo, hi, qmin, qmax, symmetric, scale_dtype, faults
                )
            parameters = (scale, zero_point)
            kernels.fake_quantize_affine(x, group_size, parameters, qmin, qmax, out, faults)
            faults.check()
        return out


def packed_shape(shape: tuple[int, ...], bits: int) -> tuple[int, int]:
    """Of the bytes of codes: every row starts on a byte."""
    return shape[0], -(-shape[1] * bits // 8)
