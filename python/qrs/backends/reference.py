"""The definition of correct: every kernel operation in plain numpy, short before fast.

The numeric contract. Every backend gives the same bits as this file, on every SIMD level and with
every number of threads:

1. Arithmetic is float32. float16 and bfloat16 inputs widen exactly; float64 rounds to float32, and
   a value that overflows is an error (`qrs.arrays`).
2. Rounding is to nearest, ties to even. Encode is a true division, a clamp in float to
   [qmin - zero_point, qmax - zero_point], a rounding, then the addition of the zero point.
   Decode is (q - zero_point) * scale.
3. Symmetric: scale = max(hi / qmax, lo / qmin), zero_point = 0. Asymmetric: the range is widened
   to hold 0, scale = (hi - lo) / (qmax - qmin), or hi / n - lo / n where hi - lo overflows, and
   zero_point = clip(rne(qmin - lo / scale), qmin, qmax). A range whose extreme codes would decode
   to infinity is a fault.
4. A scale that comes out as zero becomes 1. Subnormals are kept.
5. NaN and infinities are a fault.
6. Float32 sums have a fixed order of lanes; no operation here has one yet.
7. Scales are rounded to their stored dtype first; zero points and codes use the rounded ones. A
   scale that overflows its dtype is a fault.

All operations take `x` as (rows, cols) in C order; groups of `group_size` run along the columns,
the last one of a row may be shorter, and there are G = ceil(cols / group_size) of them. `scale`,
`zero_point`, `lo` and `hi` have the shape (rows, G). There are no axes, schemes or files here.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..constants import DTYPES
from ..errors import KernelFault

Array = NDArray[Any]
Float32 = NDArray[np.float32]
Codes = NDArray[Any]
"""int8 or uint8."""
Bytes = NDArray[np.uint8]
Integers = NDArray[Any]
"""Any integer dtype; kernels return int32."""


class Reference:
    """Every operation in numpy. Other backends override what they accelerate.

    >>> x = np.array([[1.6, -0.7, -3.4, 1.7, -2.9, 0.5, 2.3, 6.2]], np.float32)
    >>> packed, scale, _ = Reference().quantize_affine_packed(x, 8, 8, -127, 127, True, "float32")
    >>> packed.view(np.int8).tolist()
    [[33, -14, -70, 35, -59, 10, 47, 127]]
    """

    name: ClassVar[str] = "reference"

    def group_range(self, x: Array, group_size: int) -> tuple[Float32, Float32]:
        """The least and the greatest value of each group, widened to hold 0. Class A."""
        values = _widened(x)
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
        faults = np.flatnonzero(overflow | ~np.isfinite(first) | ~np.isfinite(last))
        if faults.size:
            group = int(faults[0])
            raise KernelFault(
                "scale_overflow" if overflow.flat[group] else "decode_overflow", group
            )
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
        values = _widened(x)
        if not np.isfinite(values).all():
            raise KernelFault("nonfinite", 0)
        z = _spread(_zeros_or(zero_point, scale), group_size, x)
        with np.errstate(over="ignore", under="ignore"):
            v = values / _spread(scale, group_size, x)
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
        q = codes.astype(np.int32) - _spread(_zeros_or(zero_point, scale), group_size, codes)
        with np.errstate(over="ignore", under="ignore"):
            x_hat = q.astype(np.float32) * _spread(scale, group_size, codes)
            return into(out, x_hat.astype(DTYPES[dtype]))

    def pack_bits(self, codes: Codes, bits: int, out: Bytes | None = None) -> Bytes:
        """Codes (rows, cols) to bytes (rows, ceil(cols * bits / 8)). Class A.

        Least significant bits first; every row starts on a byte and ends with zero bits. Signed
        codes are two's complement cut to `bits`. 4 bits, codes a b c -> bytes [b<<4 | a, c]:

        >>> Reference().pack_bits(np.array([[1, -1, 7]], np.int8), 4).tolist()
        [[241, 7]]
        """
        rows, cols = codes.shape
        planes = np.unpackbits(codes.view(np.uint8)[..., None], axis=2, bitorder="little")
        stream = planes[..., :bits].reshape(rows, cols * bits)
        return into(out, np.packbits(stream, axis=1, bitorder="little"))

    def unpack_bits(
        self, packed: Bytes, bits: int, cols: int, signed: bool, out: Codes | None = None
    ) -> Codes:
        """The inverse of `pack_bits`: int8 codes if `signed`, else uint8. Class A."""
        rows = packed.shape[0]
        stream = np.unpackbits(packed, axis=1, count=cols * bits, bitorder="little")
        planes = stream.reshape(rows, cols, bits)
        codes = np.packbits(planes, axis=2, bitorder="little").reshape(rows, cols)
        if not signed:
            return into(out, codes)
        sign = np.uint8(1 << (bits - 1))
        return into(out, ((codes ^ sign) - sign).view(np.int8))

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


OPERATIONS = tuple(name for name in vars(Reference) if not name.startswith("_") and name != "name")
"""The names of all kernel operations, in the order of this file."""


def _widened(x: Array) -> Float32:
    # Unlike copies of quiet NaNs, conversions of signalling ones raise a flag; both are refused.
    with np.errstate(invalid="ignore"):
        return x.astype(np.float32, copy=False)


def _zeros_or(zero_point: Integers | None, scale: Float32) -> NDArray[np.int32]:
    return np.zeros(scale.shape, np.int32) if zero_point is None else zero_point.astype(np.int32)


def _spread(per_group: Array, group_size: int, x: Array) -> Array:
    """(rows, G) -> something that broadcasts against (rows, cols)."""
    if per_group.shape[1] == 1:
        return per_group
    return np.repeat(per_group, group_size, axis=1)[:, : x.shape[1]]


def into(out: Array | None, result: Array) -> Array:
    """`result`, or `out` filled with it."""
    if out is None:
        return result
    out[...] = result
    return out
