"""The table of number formats: what the bits of a floating-point number mean.

A code is sign, exponent and mantissa, from the highest bit down. With E and M the two fields,
its value is

    E > 0:  (-1)^sign * 2^(E - bias) * (1 + M / 2^mantissa_bits)
    E = 0:  (-1)^sign * 2^(1 - bias) * M / 2^mantissa_bits          (zero and subnormals)

IEEE 754 gives the highest E to infinities (M = 0) and NaN. e4m3 gives up the infinities and all NaN
but one per sign to reach 448, e2m1 has neither ("OCP Microscaling Formats (MX) Specification v1.0",
2023, and "OCP 8-bit Floating Point Specification", 2023). Nothing is computed on arrays here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np


@dataclass(frozen=True)
class FloatFormat:
    """One format: its fields, and the codes with a meaning of their own, all without the sign.

    >>> e4m3 = FORMATS["e4m3"]
    >>> e4m3.bias, e4m3.largest, e4m3.smallest_normal, e4m3.smallest_subnormal, e4m3.epsilon
    (7, 448.0, 0.015625, 0.001953125, 0.125)
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    dtype: np.dtype[Any]
    """Of arrays of such numbers."""
    max_code: int
    """The largest finite number; larger codes are infinity, where there is one, and NaN."""
    infinity_code: int | None
    nan_code: int | None
    """The canonical quiet NaN."""

    @property
    def bits(self) -> int:
        """Of a code, the sign included."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def code_dtype(self) -> np.dtype[Any]:
        """The unsigned integers that hold the codes; uint8 for e2m1 too."""
        return np.dtype(f"uint{8 * self.dtype.itemsize}")

    @property
    def sign_bit(self) -> int:
        """The code of -0.0."""
        return 1 << (self.bits - 1)

    @property
    def bias(self) -> int:
        """What the exponent field is ahead of the exponent."""
        return (1 << (self.exponent_bits - 1)) - 1

    @property
    def min_exponent(self) -> int:
        """The exponent of the smallest normal number, and of all subnormals."""
        return 1 - self.bias

    @property
    def max_exponent(self) -> int:
        """The exponent of the largest number: `emax` of the MX specification."""
        return (self.max_code >> self.mantissa_bits) - self.bias

    @property
    def largest(self) -> float:
        """The largest finite number."""
        mantissa = self.max_code & ((1 << self.mantissa_bits) - 1)
        return (1 + mantissa * self.epsilon) * 2.0**self.max_exponent

    @property
    def smallest_normal(self) -> float:
        """The smallest number with all bits of its mantissa."""
        return 2.0**self.min_exponent

    @property
    def smallest_subnormal(self) -> float:
        """The smallest number above 0; all subnormals are multiples of it."""
        return self.smallest_normal * self.epsilon

    @property
    def epsilon(self) -> float:
        """From 1 to the next number."""
        return 2.0**-self.mantissa_bits


FORMATS: Final = {
    f.name: f
    for f in (
        FloatFormat("f32", 8, 23, np.dtype(np.float32), 0x7F7FFFFF, 0x7F800000, 0x7FC00000),
        FloatFormat("f16", 5, 10, np.dtype(np.float16), 0x7BFF, 0x7C00, 0x7E00),
        FloatFormat("bf16", 8, 7, np.dtype(ml_dtypes.bfloat16), 0x7F7F, 0x7F80, 0x7FC0),
        FloatFormat("e5m2", 5, 2, np.dtype(ml_dtypes.float8_e5m2), 0x7B, 0x7C, 0x7E),
        FloatFormat("e4m3", 4, 3, np.dtype(ml_dtypes.float8_e4m3fn), 0x7E, None, 0x7F),
        FloatFormat("e2m1", 2, 1, np.dtype(ml_dtypes.float4_e2m1fn), 0x7, None, None),
    )
}
"""By the names that schemes, kernels and the command line use."""

ALIASES: Final = {
    **{alias: alias for alias in FORMATS},
    **{f.dtype.name: f.name for f in FORMATS.values()},
    "fp32": "f32",
    "fp16": "f16",
    "fp8": "e4m3",
}
"""Other names that people have for them -> the name here."""
