"""One number taken apart, and the table of formats. Arrays are the business of `encode`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Context, Decimal
from typing import Any

import numpy as np

from ..arrays import plain
from ..checks import checked_integer
from ..errors import bad
from ..float_formats import FORMATS
from .convert import (
    FORMAT_DTYPES,
    INT8,
    NAMES,
    as_number,
    code_count,
    decode,
    encode,
    format_name,
)

# Enough for the difference of any two float64: 309 digits before the point, 1074 after it.
_EXACT = Context(prec=1400, traps=[])


@dataclass(frozen=True)
class Parts:
    """A number as a format stores it. See `decompose`."""

    input: float
    """What was given."""
    format: str
    code: int
    """All bits, as an unsigned integer."""
    sign: int
    """0 or 1, the highest bit."""
    exponent_field: int
    """The bits of the exponent as they are; 0 in int8, which has none."""
    mantissa_field: int
    """The bits below; in int8 all but the sign, as two's complement."""
    exponent: int
    """What 2 is raised to: the field without its bias, and that of the smallest normal number for
    zero and subnormals."""
    kind: str
    """"zero", "subnormal", "normal", "infinity" or "nan"."""
    value: float
    """The number stored."""
    exact: Decimal
    """The same with all its digits."""
    error: Decimal
    """value - input, with all its digits."""
    relative_error: float
    """|error / input|, 0 where there is no error."""
    ulp: float
    """A unit of the last place of the mantissa at this exponent; NaN for NaN and infinities."""
    lower: float | None
    """The next number below, which may be an infinity; None where there is none."""
    higher: float | None
    """The next number above."""

    @property
    def subnormal(self) -> bool:
        """Whether the mantissa has no leading 1."""
        return self.kind == "subnormal"

    @property
    def bits(self) -> tuple[str, str, str]:
        """The three fields as binary digits, as long as they are in the format."""
        if self.format == INT8:
            return f"{self.sign}", "", f"{self.mantissa_field:07b}"
        f = FORMATS[self.format]
        exponent = f"{self.exponent_field:0{f.exponent_bits}b}"
        return f"{self.sign}", exponent, f"{self.mantissa_field:0{f.mantissa_bits}b}"


@dataclass(frozen=True)
class Format:
    """A row of `table()`."""

    name: str
    dtype: str
    bits: int
    sign_bits: int
    exponent_bits: int
    mantissa_bits: int
    bias: int | None
    """What the exponent field is ahead of the exponent; None in int8."""
    largest: float
    """The largest finite number."""
    smallest_normal: float
    """The smallest one with all bits of its mantissa."""
    smallest_subnormal: float | None
    """The smallest one above 0; None in int8."""
    epsilon: float
    """From 1 to the next number."""
    infinities: bool
    nan: bool


def decompose(x: Any, format: str) -> Parts:
    """What becomes of one number in a format: its bits, its value, its error.

    Parameters
    ----------
    x : a Python number, or an array of one element, as in `encode`.
    format : as in `encode`.

    The bits are those that `encode` stores: a Python number, which is a float64, narrows to
    float32 first. `error` is measured from `x` as it was given. Raises as `encode` does.

    0.1 = 1.6 * 2^-4, and 1.6 * 128 = 204.8: bfloat16 stores 205 / 128 * 2^-4.

    >>> p = decompose(0.1, "bf16")
    >>> hex(p.code), p.bits, p.exponent, p.kind
    ('0x3dcd', ('0', '01111011', '1001101'), -4, 'normal')
    >>> p.exact, float(p.error), p.lower, p.higher
    (Decimal('0.10009765625'), 9.765624999999445e-05, 0.099609375, 0.1005859375)
    >>> decompose(1e-40, "f32").subnormal, decompose(1000, "e4m3").value
    (True, 448.0)
    """
    array = plain(as_number(x))
    if array.size != 1:
        raise bad("x", f"got shape {array.shape}", array.shape, "one number")
    stored = encode(x if array.ndim == 0 else array.reshape(()), format)
    code = int(stored.view(f"uint{8 * stored.itemsize}"))
    return _parts(float(array.reshape(())), code, format_name(format))


def decompose_code(code: int, format: str) -> Parts:
    """The number with these bits, taken apart; `input` is its own value.

    >>> p = decompose_code(0x7e, "e4m3")
    >>> p.value, p.exponent, p.lower, p.higher
    (448.0, 8, 416.0, None)
    """
    number = checked_integer(code, "code")
    name = format_name(format)
    if not 0 <= number < code_count(name):
        raise bad("code", f"got {number}", number, f"0 to {code_count(name) - 1} for {name}")
    return _parts(_value(number, name), number, name)


def table() -> list[Format]:
    """The number formats, one row for each.

    >>> [(f.name, f.bits, f.largest, f.epsilon) for f in table()[-2:]]
    [('e2m1', 4, 6.0, 0.5), ('int8', 8, 127.0, 1.0)]
    """
    return [_row(name) for name in NAMES]


def _parts(x: float, code: int, name: str) -> Parts:
    f = FORMATS.get(name)
    value = _value(code, name)
    if f is None:
        sign, field, mantissa, exponent, ulp = code >> 7, 0, code & 127, 0, 1.0
        kind = "normal" if code else "zero"
    else:
        magnitude = code & (f.sign_bit - 1)
        sign, field = int(code != magnitude), magnitude >> f.mantissa_bits
        mantissa = magnitude & ((1 << f.mantissa_bits) - 1)
        exponent = max(field, 1) - f.bias
        ulp = math.ldexp(1.0, exponent - f.mantissa_bits) if math.isfinite(value) else math.nan
        kind = _kind(value, field)
    error = _difference(value, x)
    lower, higher = _neighbours(code, name)
    return Parts(
        input=x,
        format=name,
        code=code,
        sign=sign,
        exponent_field=field,
        mantissa_field=mantissa,
        exponent=exponent,
        kind=kind,
        value=value,
        exact=Decimal(value),
        error=error,
        relative_error=float(_EXACT.divide(error.copy_abs(), Decimal(abs(x)))) if error else 0.0,
        ulp=ulp,
        lower=lower,
        higher=higher,
    )


def _kind(value: float, exponent_field: int) -> str:
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "infinity"
    if value == 0:
        return "zero"
    return "normal" if exponent_field else "subnormal"


def _difference(value: float, x: float) -> Decimal:
    if value == x:  # inf - inf would be NaN
        return Decimal(0)
    return _EXACT.subtract(Decimal(value), Decimal(x))


def _neighbours(code: int, name: str) -> tuple[float | None, float | None]:
    """The numbers beside one, found by counting codes, as their order is that of the values."""
    f = FORMATS.get(name)
    if f is None:
        at = code - 256 if code > 127 else code
        least, most = -128, 127
    else:
        magnitude = code & (f.sign_bit - 1)
        most = f.max_code if f.infinity_code is None else f.infinity_code
        if magnitude > most:  # NaN
            return None, None
        at, least = -magnitude if code != magnitude else magnitude, -most

    def number(place: int) -> float | None:
        if not least <= place <= most:
            return None
        if f is None:
            return float(place)
        return _value(abs(place) | (f.sign_bit if place < 0 else 0), name)

    return number(at - 1), number(at + 1)


def _value(code: int, name: str) -> float:
    return float(decode(code, name, dtype="float64"))


def _row(name: str) -> Format:
    f = FORMATS.get(name)
    info = np.iinfo(np.int8)
    return Format(
        name=name,
        dtype=FORMAT_DTYPES[name].name,
        bits=info.bits if f is None else f.bits,
        sign_bits=1,
        exponent_bits=0 if f is None else f.exponent_bits,
        mantissa_bits=info.bits - 1 if f is None else f.mantissa_bits,
        bias=None if f is None else f.bias,
        largest=float(info.max) if f is None else f.largest,
        smallest_normal=1.0 if f is None else f.smallest_normal,
        smallest_subnormal=None if f is None else f.smallest_subnormal,
        epsilon=1.0 if f is None else f.epsilon,
        infinities=f is not None and f.infinity_code is not None,
        nan=f is not None and f.nan_code is not None,
    )
