"""Conversions between number formats, and floats with scales."""

from __future__ import annotations

import numpy as np

from ...constants import DTYPES
from ...errors import KernelFault
from ...float_formats import FORMATS
from .affine import AffineOperations
from .arrays import (
    Array,
    Bytes,
    Codes,
    Float32,
    into,
    narrowed,
    raise_first,
    spread,
    widened,
)


class FloatOperations(AffineOperations):
    """Rules 9 and 10 of the contract. Formats go by their names in `qrs.float_formats`."""

    def encode_float(
        self, x: Array, format: str, saturate: bool, out: Codes | None = None
    ) -> Codes:
        """The nearest numbers of a format, as its codes: unsigned integers. Class A.

        A pure conversion (rule 9): 0.3 lies between 0.28125 (e4m3 code 0x29) and 0.3125 (0x2a).

        >>> from qrs.backends.reference import Reference
        >>> x = np.array([[0.3, -1e9, np.nan]], np.float32)
        >>> Reference().encode_float(x, "e4m3", True).tolist()
        [[42, 254, 127]]
        """
        f = FORMATS[format]
        values = widened(x)
        magnitude = np.abs(values.view(np.int32).astype(np.int64) & 0x7FFFFFFF)
        nan = magnitude > 0x7F800000
        if f.nan_code is None and nan.any():
            raise KernelFault("nan", 0)
        # Counted in units of the last place at this exponent, a number is rounded by `rint`; the
        # exponent field adds 2^mantissa_bits for each step above that of the subnormals.
        exponent = np.maximum((magnitude >> 23) - 127, f.min_exponent)
        with np.errstate(invalid="ignore"):
            units = np.ldexp(np.abs(values).astype(np.float64), f.mantissa_bits - exponent)
        units[magnitude >= 0x7F800000] = 0  # not numbers
        codes = np.rint(units).astype(np.int64) + ((exponent - f.min_exponent) << f.mantissa_bits)
        beyond = f.nan_code if f.infinity_code is None else f.infinity_code
        if saturate or beyond is None:
            beyond = f.max_code
        codes[codes > f.max_code] = beyond
        codes[magnitude == 0x7F800000] = beyond if f.infinity_code is None else f.infinity_code
        codes[nan] = f.nan_code or 0
        codes |= np.where(values.view(np.int32) < 0, f.sign_bit, 0)
        return into(out, codes.astype(f.code_dtype))

    def decode_float(
        self, codes: Codes, format: str, dtype: str, out: Array | None = None
    ) -> Array:
        """The numbers of codes as made by `encode_float`, rounded to `dtype`. Class A.

        >>> from qrs.backends.reference import Reference
        >>> codes = np.array([[42, 254, 127]], np.uint8)
        >>> Reference().decode_float(codes, "e4m3", "float32").tolist()
        [[0.3125, -448.0, nan]]
        """
        f = FORMATS[format]
        code = codes.astype(np.int64)
        magnitude = code & (f.sign_bit - 1)
        mantissa = magnitude & ((1 << f.mantissa_bits) - 1)
        field = magnitude >> f.mantissa_bits
        # Where the exponent field is not 0, the mantissa has a bit more, and the exponent counts.
        units = mantissa + (np.where(field > 0, 1, 0) << f.mantissa_bits)
        value = np.ldexp(units.astype(np.float64), np.maximum(field, 1) - f.bias - f.mantissa_bits)
        if f.nan_code is not None:
            value[magnitude > f.max_code] = np.nan
        if f.infinity_code is not None:
            value[magnitude == f.infinity_code] = np.inf
        value = np.copysign(value, np.where(code & f.sign_bit, -1.0, 1.0))
        return into(out, narrowed(value.astype(np.float32), dtype))

    def choose_scale_float(
        self, lo: Float32, hi: Float32, format: str, scale_dtype: str
    ) -> Float32:
        """Scales of groups with these ranges: absmax / largest, rounded to `scale_dtype`. Class A.

        With "e8m0", 2^(floor(log2 absmax) - max_exponent) (rule 10): 5.0 in e2m1, whose largest
        number is 6 = 1.5 * 2^2, has the scale 2^(2 - 2).

        >>> from qrs.backends.reference import Reference
        >>> hi = np.array([[5.0, 6.0]], np.float32)
        >>> Reference().choose_scale_float(0 * hi, hi, "e2m1", "e8m0").tolist()
        [[1.0, 1.0]]
        >>> Reference().choose_scale_float(0 * hi, hi, "e2m1", "float16").tolist()
        [[0.83349609375, 1.0]]
        """
        f, absmax = FORMATS[format], _absmax(lo, hi)
        if scale_dtype == "e8m0":
            field = np.maximum((absmax.view(np.int32) >> 23) - f.max_exponent, 0)
            scale = np.where(field > 0, field << 23, 1 << 22).astype(np.int32).view(np.float32)
            return np.where(absmax == 0, np.float32(1), scale)
        with np.errstate(over="ignore", under="ignore"):
            exact = absmax / np.float32(f.largest)
            scale = exact.astype(DTYPES[scale_dtype]).astype(np.float32)
            scale[scale == 0] = 1
            end = np.float32(f.largest) * scale
        raise_first(np.isinf(scale), np.isinf(end))
        return scale

    def choose_scale_float_nested(
        self, lo: Float32, hi: Float32, format: str, scale_format: str
    ) -> tuple[Codes, Float32]:
        """Scales that are floats with one scale of their own (NVFP4, rule 10). Class A.

        Returns their codes (rows, G), and that one scale as (1, 1). A group whose scale comes out
        as zero gets the code of 1 (rule 4). absmax 6, 3 and 0 with e4m3 scales: top = 6 / 2688,
        and 1 / top = 448, 0.5 / top = 224.

        >>> from qrs.backends.reference import Reference
        >>> lo, hi = np.zeros((1, 3), np.float32), np.array([[6, 3, 0]], np.float32)
        >>> codes, top = Reference().choose_scale_float_nested(lo, hi, "e2m1", "e4m3")
        >>> codes.tolist(), bool(top == np.float32(6 / 2688))
        ([[126, 118, 56]], True)
        """
        f, s, absmax = FORMATS[format], FORMATS[scale_format], _absmax(lo, hi)
        with np.errstate(over="ignore", under="ignore"):
            top = np.max(absmax, initial=0, keepdims=True) / np.float32(f.largest * s.largest)
            top[top == 0] = 1
            codes = self.encode_float(absmax / np.float32(f.largest) / top, scale_format, True)
            codes[codes == 0] = s.bias << s.mantissa_bits
            scale = self.decode_float(codes, scale_format, "float32") * top
            end = np.float32(f.largest) * scale
        raise_first(np.zeros(scale.shape, bool), np.isinf(end))
        return codes, top

    def quantize_float(
        self,
        x: Array,
        group_size: int,
        format: str,
        scale: Float32 | None,
        out: Codes | None = None,
    ) -> Codes:
        """Codes (rows, cols) of x / scale, or of x where `scale` is None. Class A.

        What is larger than the format's largest number becomes that one.
        """
        values: Array = widened(x)
        if not np.isfinite(values).all():
            raise KernelFault("nonfinite", 0)
        if scale is not None:
            with np.errstate(over="ignore", under="ignore"):
                values = values / spread(scale, group_size, x)
        largest = np.float32(FORMATS[format].largest)
        clamped = np.clip(values, -largest, largest).astype(np.float32, copy=False)
        return self.encode_float(clamped, format, True, out)

    def dequantize_float(
        self,
        codes: Codes,
        group_size: int,
        format: str,
        scale: Float32 | None,
        dtype: str,
        out: Array | None = None,
    ) -> Array:
        """The numbers of codes times their scales in float32, rounded to `dtype`. Class A."""
        x_hat = self.decode_float(codes, format, "float32")
        if scale is not None:
            with np.errstate(over="ignore", under="ignore"):
                x_hat = x_hat * spread(scale, group_size, codes)
        return into(out, narrowed(x_hat, dtype))

    # Fused operations.

    def quantize_float_packed(
        self,
        x: Array,
        group_size: int,
        format: str,
        scale_dtype: str | None,
        scale: Float32 | None = None,
        out: Bytes | None = None,
    ) -> tuple[Bytes, Float32 | None]:
        """Range, scale, codes and packing; with `scale` given, codes and packing. Class A.

        With neither `scale` nor `scale_dtype`, a plain cast. Codes of 16 bits become two bytes, the
        lower one first.
        """
        if scale is None and scale_dtype is not None:
            lo, hi = self.group_range(x, group_size)
            scale = self.choose_scale_float(lo, hi, format, scale_dtype)
        codes = self.quantize_float(x, group_size, format, scale)
        if FORMATS[format].bits == 4:
            return self.pack_bits(codes, 4, out), scale
        return into(out, codes.view(np.uint8)), scale

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
        """Unpacking and decoding. Class A."""
        f = FORMATS[format]
        codes = (
            self.unpack_bits(packed, 4, cols, False) if f.bits == 4 else packed.view(f.code_dtype)
        )
        return self.dequantize_float(codes, group_size, format, scale, dtype, out)


def _absmax(lo: Float32, hi: Float32) -> Float32:
    """The largest magnitude of ranges, never -0.0."""
    return np.maximum(hi, -lo) + np.float32(0)
