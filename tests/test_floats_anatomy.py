"""One number taken apart, and the table of formats: numbers worked out by hand, and all codes."""

import math
from decimal import Decimal
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

import qrs
from qrs import floats
from qrs.float_formats import FORMATS

SMALL = [name for name in floats.NAMES if name != "f32" and not name.endswith("16")]


def test_a_tenth_in_bfloat16() -> None:
    # 1.6 * 2^-4; 0.6 * 128 = 76.8, so 77/128; a unit of the last place is 2^-11.
    p = floats.decompose(0.1, "bf16")
    assert (p.input, p.format, p.code, p.sign) == (0.1, "bf16", 0x3DCD, 0)
    assert (p.exponent_field, p.exponent, p.mantissa_field) == (123, -4, 77)
    assert p.bits == ("0", "01111011", "1001101")
    assert (p.kind, p.subnormal, p.value) == ("normal", False, 205 / 2048)
    assert p.exact == Decimal("0.10009765625") and p.ulp == 2.0**-11
    assert Fraction(p.error) == Fraction(205, 2048) - Fraction(0.1)
    assert p.relative_error == float((Fraction(205, 2048) - Fraction(0.1)) / Fraction(0.1))
    assert (p.lower, p.higher) == (204 / 2048, 206 / 2048)


def test_a_subnormal() -> None:
    # The smallest subnormal of e4m3 is 2^-9; -0.005 = -2.56 of them.
    p = floats.decompose(np.float32(-0.005), "float8_e4m3fn")
    assert (p.format, p.code, p.bits) == ("e4m3", 0x83, ("1", "0000", "011"))
    assert (p.kind, p.subnormal, p.exponent, p.ulp) == ("subnormal", True, -6, 2.0**-9)
    assert (p.value, p.lower, p.higher) == (-3 / 512, -4 / 512, -2 / 512)
    assert p.input == float(np.float32(-0.005))


def test_the_largest_and_what_is_beyond() -> None:
    p = floats.decompose(1000, "e4m3")
    assert (p.code, p.value, p.error, p.relative_error) == (0x7E, 448.0, Decimal(-552), 0.552)
    assert (p.lower, p.higher, p.ulp) == (416.0, None, 32.0)
    p = floats.decompose(-65504.0, "f16")
    assert (p.code, p.lower, p.higher, p.error) == (0xFBFF, -math.inf, -65472.0, 0)
    p = floats.decompose(-math.inf, "f16")
    assert (p.kind, p.value, p.error, p.relative_error) == ("infinity", -math.inf, 0, 0)
    assert (p.lower, p.higher) == (None, -65504.0) and math.isnan(p.ulp)
    p = floats.decompose(math.inf, "e2m1")
    assert (p.value, p.error) == (6.0, -Decimal("inf")) and math.isnan(p.relative_error)
    assert (p.lower, p.higher) == (4.0, None)


def test_nan_and_zeros() -> None:
    p = floats.decompose(math.nan, "e5m2")
    assert (p.kind, p.code, p.lower, p.higher) == ("nan", 0x7E, None, None)
    assert math.isnan(p.value) and p.exact.is_nan() and p.error.is_nan() and math.isnan(p.ulp)
    p = floats.decompose(-0.0, "e4m3")
    assert (p.kind, p.code, p.sign, p.exponent) == ("zero", 0x80, 1, -6)
    assert (str(p.exact), p.error, p.lower, p.higher) == ("-0", 0, -(2.0**-9), 2.0**-9)
    p = floats.decompose(1e-300, "f32")  # below all float32
    assert (p.value, Fraction(p.error), p.relative_error) == (0.0, -Fraction(1e-300), 1.0)


def test_int8() -> None:
    p = floats.decompose(-3.25, "int8")
    assert (p.code, p.sign, p.exponent_field, p.mantissa_field) == (0xFD, 1, 0, 125)
    assert (p.value, p.kind, p.exponent, p.ulp) == (-3.0, "normal", 0, 1.0)
    assert p.bits == ("1", "", "1111101") and p.error == Decimal("0.25")
    assert (p.lower, p.higher) == (-4.0, -2.0)
    ends = floats.decompose(-128, "int8"), floats.decompose(127, "int8")
    assert [(p.lower, p.higher) for p in ends] == [(None, -127.0), (126.0, None)]
    assert floats.decompose(0.5, "int8").kind == "zero"


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_arrays_of_one_element(shape: tuple[int, ...]) -> None:
    x = np.full(shape, 0.1, np.float16)
    assert floats.decompose(x, "e4m3") == floats.decompose(float(np.float16(0.1)), "e4m3")


@pytest.mark.parametrize("x", [0.1, 1 + 2.0**-8 + 2.0**-40, 1e-40, -7e37, 3])
@pytest.mark.parametrize("name", floats.NAMES)
def test_the_bits_are_those_that_encode_stores(name: str, x: float) -> None:
    stored = floats.encode(x, name)
    p = floats.decompose(x, name)
    assert stored.view(f"uint{8 * stored.itemsize}") == p.code
    assert floats.decode(stored, dtype="float64") == p.value == float(p.exact)
    assert Fraction(p.error) == Fraction(p.value) - Fraction(x)


@pytest.mark.parametrize("name", SMALL)
def test_all_codes_against_their_definition(name: str) -> None:
    """Fields make the value, and neighbours are those of the sorted list of all values."""
    count = 16 if name == "e2m1" else 256
    all_parts = [floats.decompose_code(code, name) for code in range(count)]
    values = sorted({p.value for p in all_parts if not math.isnan(p.value)})
    for code, p in enumerate(all_parts):
        assert int("".join(p.bits), 2) == p.code == code
        if p.kind == "nan":
            continue
        at = values.index(p.value)
        assert p.lower == (values[at - 1] if at else None)
        assert p.higher == (values[at + 1] if at + 1 < len(values) else None)
        assert p.error == 0 and (p.input == p.value) and p.exact == Decimal(p.value)
        if name == "int8":
            assert p.value == p.mantissa_field - 128 * p.sign
        elif p.kind != "infinity":
            leading = int(p.kind == "normal")
            steps = (leading << len(p.bits[2])) + p.mantissa_field
            assert p.value == (-1) ** p.sign * steps * p.ulp
            assert p.ulp == 2.0 ** (p.exponent - len(p.bits[2]))
            assert p.kind == ("normal" if p.exponent_field else "subnormal" if steps else "zero")


def test_parts_are_frozen() -> None:
    with pytest.raises(AttributeError):
        floats.decompose(1.0, "f16").value = 2.0  # type: ignore[misc]


def test_the_table_against_others() -> None:
    rows = {row.name: row for row in floats.table()}
    assert tuple(rows) == floats.NAMES
    for name, f in FORMATS.items():
        row, info = rows[name], ml_dtypes.finfo(f.dtype)
        assert (row.bits, row.exponent_bits, row.mantissa_bits) == (
            info.bits,
            info.nexp,
            info.nmant,
        )
        assert (row.largest, row.smallest_normal) == (float(info.max), float(info.tiny))
        assert (row.smallest_subnormal, row.epsilon) == (
            float(info.smallest_subnormal), float(info.eps)
        )  # fmt: skip
        assert row.bits == row.sign_bits + row.exponent_bits + row.mantissa_bits
        assert row.dtype == f.dtype.name
    biases = {"f32": 127, "f16": 15, "bf16": 127, "e5m2": 15, "e4m3": 7, "e2m1": 1, "int8": None}
    assert {row.name: row.bias for row in rows.values()} == biases
    assert {row.name for row in rows.values() if not row.infinities} == {"e4m3", "e2m1", "int8"}
    assert {row.name for row in rows.values() if not row.nan} == {"e2m1", "int8"}


def test_int8_in_the_table() -> None:
    assert floats.table()[-1] == floats.Format(
        "int8", "int8", 8, 1, 0, 7, None, 127.0, 1.0, None, 1.0, False, False
    )


def test_the_module_is_public() -> None:
    assert qrs.floats is floats and "floats" in qrs.__all__
