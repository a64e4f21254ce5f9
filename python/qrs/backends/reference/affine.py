"""Linear quantization: ranges, scales and zero points, codes and values."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...constants import DTYPES
from ...errors import KernelFault
from .arrays import (
    Array,
    Bytes,
    Codes,
    Float32,
    Integers,
    into,
    raise_first,
    spread,
    widened,
    zeros_or,
)
from .packing import PackingOperations


class AffineOperations(PackingOperations):
    """Rules 1 to 7 of the contract."""

    def group_range(self, x: Array, group_size: int) -> tuple[Float32, Float32]:
        """The least and the greatest value of each group, widened to hold 0. Class A."""
        values = widened(x)
        if not np.isfinite(values).all():
            raise KernelFault("nonfinite", 0)
        rows, cols = values.shape
        group_size = min(group_size, max(cols, 1))
        groups = -(-cols // group_size)
        # Padding with zeros changes nothing, because every range holds 0.
        padded = np.zeros((rows, groups * group_size), np.float32)
        padded[:, :cols] = values
        grouped = padded.reshape(rows, groups, group_size)
        # "+ 0" turns -0.0 into +0.0: which of the two a minimum returns is nobody's contract.
        lo = np.min(grouped, axis=2, initial=0) + np.float32(0)
        hi = np.max(grouped, axis=2, initial=0) + np.float32(0)
        return lo, hi

    def choose_qparams_affine(
        self, lo: Float32, hi: Float32, qmin: int, qmax: int, symmetric: bool, scale_dtype: str
    ) -> tuple[Float32, NDArray[np.int32] | None]:
        """Scale (rounded to `scale_dtype`, as float32) and zero point of ranges. Class A."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            if symmetric:
                scale = np.maximum(hi / np.float32(qmax), lo / np.float32(qmin))
            else:
                n, width = np.float32(qmax - qmin), hi - lo
                scale = np.where(np.isinf(width), hi / n - lo / n, width / n)
            scale = scale.astype(DTYPES[scale_dtype]).astype(np.float32)
            scale[scale == 0] = 1
            overflow = np.isinf(scale)
            zero_point = None
            first, last = np.float32(qmin) * scale, np.float32(qmax) * scale
            if not symmetric:
                z = np.rint(np.float32(qmin) - lo / scale)
                zero_point = np.clip(z, qmin, qmax).astype(np.int32)
                first = (qmin - zero_point).astype(np.float32) * scale
                last = (qmax - zero_point).astype(np.float32) * scale
        raise_first(overflow, ~np.isfinite(first) | ~np.isfinite(last))
        return scale, zero_point

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
        """Codes (rows, cols) with known scales: int8 where qmin < 0, else uint8. Class A."""
        values = widened(x)
        if not np.isfinite(values).all():
            raise KernelFault("nonfinite", 0)
        z = spread(zeros_or(zero_point, scale), group_size, x)
        with np.errstate(over="ignore", under="ignore"):
            v = values / spread(scale, group_size, x)
        v = np.clip(v, (qmin - z).astype(np.float32), (qmax - z).astype(np.float32))
        codes = (np.rint(v).astype(np.int32) + z).astype(np.int8 if qmin < 0 else np.uint8)
        return into(out, codes)

    def dequantize_affine(
        self,
        codes: Codes,
        group_size: int,
        scale: Float32,
        zero_point: Integers | None,
        dtype: str,
        out: Array | None = None,
    ) -> Array:
        """(q - zero_point) * scale in float32, then rounded to `dtype`. Class A."""
        q = codes.astype(np.int32) - spread(zeros_or(zero_point, scale), group_size, codes)
        with np.errstate(over="ignore", under="ignore"):
            x_hat = q.astype(np.float32) * spread(scale, group_size, codes)
            return into(out, x_hat.astype(DTYPES[dtype]))

    # Fused operations. A backend that can do them in one pass over memory overrides them.

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
        """Range, scale, codes and packing; with `scale` given, codes and packing. Class A."""
        if scale is None:
            lo, hi = self.group_range(x, group_size)
            scale, zero_point = self.choose_qparams_affine(
                lo, hi, qmin, qmax, symmetric, scale_dtype
            )
        codes = self.quantize_affine(x, group_size, scale, zero_point, qmin, qmax)
        return self.pack_bits(codes, bits, out), scale, zero_point

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
        """Unpacking and decoding. Class A."""
        codes = self.unpack_bits(packed, bits, cols, signed)
        return self.dequantize_affine(codes, group_size, scale, zero_point, dtype, out)

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
        """Encode and decode again: what `x` becomes, in its own dtype. Class A."""
        if scale is None:
            lo, hi = self.group_range(x, group_size)
            scale, zero_point = self.choose_qparams_affine(
                lo, hi, qmin, qmax, symmetric, scale_dtype
            )
        codes = self.quantize_affine(x, group_size, scale, zero_point, qmin, qmax)
        return self.dequantize_affine(codes, group_size, scale, zero_point, x.dtype.name, out)
