"""The float operations of the reference against numbers computed by hand.

Formats as in float_formats.py. A unit is one in the last place: numbers halfway between two of them
go to the even code.
"""

import ml_dtypes
import numpy as np
import pytest

from qrs.backends.reference import Reference
from qrs.errors import KernelFault

REFERENCE = Reference()
F32_MAX = float(np.finfo(np.float32).max)
INF, NAN = float("inf"), float("nan")


def f32(*values: float) -> np.ndarray:
    return np.array([values], np.float32)


def encode(format: str, *values: float, saturate: bool = False) -> list[int]:
    return REFERENCE.encode_float(f32(*values), format, saturate)[0].tolist()


def decode(format: str, *codes: int, dtype: str = "float32") -> np.ndarray:
    code_dtype = {"f32": np.uint32, "f16": np.uint16, "bf16": np.uint16}.get(format, np.uint8)
    return REFERENCE.decode_float(np.array([codes], code_dtype), format, dtype)[0]


def reported(operation, *arguments) -> tuple[str, int]:
    with pytest.raises(KernelFault) as caught:
        operation(*arguments)
    return caught.value.reason, caught.value.group


# ---- Encode --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "unit", "one"),
    [
        ("f16", 2**-10, 0x3C00),
        ("bf16", 2**-7, 0x3F80),
        ("e5m2", 1 / 4, 0x3C),
        ("e4m3", 1 / 8, 0x38),
    ],
)
def test_ties_go_to_the_even_code(format, unit, one):
    assert encode(format, 1, 1 + unit / 2, 1 + unit) == [one, one, one + 1]
    assert encode(format, 1 + unit * 1.5, 1 + unit * 2) == [one + 2, one + 2]
    just_above, just_below = 1 + unit * 0.5001, 1 + unit * 1.4999
    assert encode(format, just_above, just_below) == [one + 1, one + 1]
    # From the last number below 2 to 2, the exponent goes up.
    per_binade = int(1 / unit)
    assert encode(format, 2 - unit / 2) == [one + per_binade]


@pytest.mark.parametrize(
    ("format", "least", "normal", "least_normal"),
    [
        ("f16", 2.0**-24, 2.0**-14, 0x0400),
        ("bf16", 2.0**-133, 2.0**-126, 0x0080),
        ("e5m2", 2.0**-16, 2.0**-14, 0x04),
        ("e4m3", 2.0**-9, 2.0**-6, 0x08),
    ],
)
def test_subnormals_are_multiples_of_the_least_one(format, least, normal, least_normal):
    assert encode(format, 0, least / 2, least * 0.501, least, least * 1.5) == [0, 0, 1, 1, 2]
    assert encode(format, normal, normal - least) == [least_normal, least_normal - 1]
    # A tie between the largest subnormal number, which is odd, and the least normal one.
    assert encode(format, normal - least / 2) == [least_normal]


def test_f16_ends():
    # Between 65504 (0x7bff, odd) and what would be 65536, the tie is 65520.
    assert encode("f16", 65504, 65519, 65520) == [0x7BFF, 0x7BFF, 0x7C00]
    assert encode("f16", INF, -INF) == [0x7C00, 0xFC00]
    saturated = encode("f16", 65519, 65520, -1e9, INF, -INF, saturate=True)
    assert saturated == [0x7BFF, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00]


def test_bf16_ends():
    # The largest bf16 is (2 - 2^-7) * 2^127; a tie lies at (2 - 2^-8) * 2^127, below F32_MAX.
    tie = (2 - 2.0**-8) * 2.0**127
    assert encode("bf16", tie * 0.9999, tie, F32_MAX, -INF) == [0x7F7F, 0x7F80, 0x7F80, 0xFF80]
    assert encode("bf16", tie, -F32_MAX, INF, saturate=True) == [0x7F7F, 0xFF7F, 0x7F80]


def test_e5m2_ends():
    # Between 57344 = 1.75 * 2^15 (0x7b, odd) and what would be 65536.
    assert encode("e5m2", 57344, 61439, 61440, INF, -INF) == [0x7B, 0x7B, 0x7C, 0x7C, 0xFC]
    assert encode("e5m2", 61440, -1e30, INF, -INF, saturate=True) == [0x7B, 0xFB, 0x7C, 0xFC]


def test_e4m3_ends():
    # Between 448 = 1.75 * 2^8 (0x7e, even) and what would be 480, but is NaN.
    assert encode("e4m3", 448, 464, 464.1, 480, INF, -INF) == [0x7E, 0x7E, 0x7F, 0x7F, 0x7F, 0xFF]
    assert encode("e4m3", 464.1, -480, INF, -INF, saturate=True) == [0x7E, 0xFE, 0x7E, 0xFE]


def test_e2m1_has_sixteen_codes():
    values = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    assert encode("e2m1", *values) == list(range(8))
    assert encode("e2m1", *(-v for v in values)) == list(range(8, 16))
    # Ties: to 0, 1, 1, 2, 2, 4, 4.
    assert encode("e2m1", 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5) == [0, 2, 2, 4, 4, 6, 6]
    for saturate in (False, True):
        assert encode("e2m1", 5.01, 7, 1e30, INF, -INF, saturate=saturate) == [7, 7, 7, 7, 15]


def test_f32_is_itself():
    assert encode("f32", 1, -0.0, 2.0**-149, F32_MAX, -INF, saturate=True) == [
        0x3F800000, 0x80000000, 1, 0x7F7FFFFF, 0xFF800000,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("format", "nan"),
    [("f32", 0x7FC00000), ("f16", 0x7E00), ("bf16", 0x7FC0), ("e5m2", 0x7E), ("e4m3", 0x7F)],
)
def test_nan_is_canonical_and_keeps_its_sign(format, nan):
    sign = {"f32": 1 << 31, "f16": 1 << 15, "bf16": 1 << 15}.get(format, 1 << 7)
    # Quiet, signalling, with every bit of the payload.
    patterns = [0x7FC00000, 0x7F800001, 0x7FFFFFFF, 0xFFC00000, 0xFF800001, 0xFFFFFFFF]
    x = np.array([patterns], np.uint32).view(np.float32)
    for saturate in (False, True):
        codes = REFERENCE.encode_float(x, format, saturate)[0].tolist()
        assert codes == [nan] * 3 + [nan | sign] * 3


def test_e2m1_has_no_nan():
    assert reported(REFERENCE.encode_float, f32(1, NAN), "e2m1", True) == ("nan", 0)


def test_narrow_inputs_widen_exactly():
    for dtype in (np.float16, ml_dtypes.bfloat16):
        # 1.0625 is the tie above 1, and 0.0009765625 = 2^-10 the tie below the least number.
        x = np.array([[1.0625, 2.0**-10, -448]], dtype)
        assert REFERENCE.encode_float(x, "e4m3", False).tolist() == [[0x38, 0, 0xFE]]


# ---- Decode --------------------------------------------------------------------------------------


def test_decoded_numbers():
    assert decode("e2m1", *range(8)).tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert decode("e4m3", 0x01, 0x08, 0x38, 0x7E, 0xB9).tolist() == [
        2.0**-9, 2.0**-6, 1, 448, -1.125,
    ]  # fmt: skip
    assert decode("e5m2", 0x01, 0x04, 0x7B, 0x7C, 0xFC).tolist() == [
        2.0**-16, 2.0**-14, 57344, INF, -INF,
    ]  # fmt: skip
    assert decode("f16", 0x0001, 0x0400, 0x7BFF, 0x7C00).tolist() == [
        2.0**-24, 2.0**-14, 65504, INF,
    ]  # fmt: skip
    assert decode("bf16", 0x0001, 0x3F80, 0xFF80).tolist() == [2.0**-133, 1, -INF]


@pytest.mark.parametrize(
    ("format", "code"), [("f16", 0x8000), ("e5m2", 0x80), ("e4m3", 0x80), ("e2m1", 0x8)]
)
def test_negative_zero(format, code):
    (zero,) = decode(format, code)
    assert zero == 0 and np.signbit(zero)
    assert encode(format, -0.0) == [code]


@pytest.mark.parametrize(
    ("format", "codes"),
    [("f16", (0x7C01, 0xFFFF)), ("bf16", (0x7F81, 0xFFFF)), ("e5m2", (0x7D, 0xFF)),
     ("e4m3", (0x7F, 0xFF)), ("f32", (0x7F800001, 0xFFFFFFFF))],
)  # fmt: skip
def test_decoded_nan_are_canonical(format, codes):
    bits = {"float32": (0x7FC00000, 0xFFC00000), "float16": (0x7E00, 0xFE00),
            "bfloat16": (0x7FC0, 0xFFC0)}  # fmt: skip
    for dtype, expected in bits.items():
        found = decode(format, *codes, dtype=dtype)
        assert found.view(f"u{found.itemsize}").tolist() == list(expected)


def test_decoded_numbers_are_rounded_to_the_dtype():
    # 0x477fff80 is 65535.5, beyond the tie at 65520.
    assert decode("f32", 0x477FFF80, dtype="float16").tolist() == [INF]
    # 65504 has 11 bits of mantissa; of 8, ...1110 is followed by a tie to the even 65536.
    assert decode("f16", 0x7BFF, dtype="bfloat16").astype(float).tolist() == [65536]


# ---- Scales --------------------------------------------------------------------------------------


def scales(format: str, scale_dtype: str, *absmax: float) -> list[float]:
    hi = f32(*absmax)
    negative = REFERENCE.choose_scale_float(-hi, 0 * hi, format, scale_dtype)[0].tolist()
    positive = REFERENCE.choose_scale_float(-0.5 * hi, hi, format, scale_dtype)[0].tolist()
    assert negative == positive
    return positive


def test_the_largest_number_stands_for_the_absmax():
    assert scales("e2m1", "float32", 6, 3, 0, 2.0**-149) == [1, 0.5, 1, 1]
    assert scales("e4m3", "float32", 448, 896) == [1, 2]
    # 5 / 6 = 1706.67 / 2048 = 213.33 / 256.
    assert scales("e2m1", "float16", 5) == [1707 / 2048]
    assert scales("e2m1", "bfloat16", 5) == [213 / 256]


def test_mx_scales_are_powers_of_two():
    # Largest exponents: 2 (6 = 1.5 * 2^2), 8 (448 = 1.75 * 2^8), 15.
    assert scales("e2m1", "e8m0", 5, 6, 7.99, 8, 0.3) == [1, 1, 1, 2, 2.0**-4]
    assert scales("e4m3", "e8m0", 448, 500, 512, 1) == [1, 1, 2, 2.0**-8]
    assert scales("e5m2", "e8m0", 1, 2.0**127) == [2.0**-15, 2.0**112]
    assert scales("e4m3", "e8m0", 2.0**-119, 2.0**-120, 2.0**-140, 0) == [
        2.0**-127, 2.0**-127, 2.0**-127, 1,
    ]  # fmt: skip


def test_scales_that_overflow():
    choose = REFERENCE.choose_scale_float
    # 393120 / 6 = 65520, the tie above the largest float16.
    assert choose(f32(0), f32(393119), "e2m1", "float16").tolist() == [[65504]]
    fault = reported(choose, f32(0, 0, 0), f32(1, 393120, 1e9), "e2m1", "float16")
    assert fault == ("scale_overflow", 1)
    # F32_MAX / 6 = 1.3333 * 2^125 -> 171/128 * 2^125, and six times that is above 2^128. In float32
    # the division is exact: 2^24 - 1 is divisible by 3.
    assert choose(f32(0), f32(F32_MAX), "e2m1", "float32")[0, 0] * 6.0 == F32_MAX
    fault = reported(choose, f32(0, -F32_MAX), f32(1, 0), "e2m1", "bfloat16")
    assert fault == ("decode_overflow", 1)


def test_nvfp4_scales():
    # top = 12 / (6 * 448); of 12, 6 and 1: 448, 224 and 37.33 -> 36 (0x61), halfway would be 38.
    choose = REFERENCE.choose_scale_float_nested
    codes, top = choose(f32(0, -6, 0, 0, 0), f32(12, 1, 1, 1e-9, 0), "e2m1", "e4m3")
    assert codes.tolist() == [[0x7E, 0x76, 0x61, 0x38, 0x38]]
    assert top.shape == (1, 1) and top[0, 0] == np.float32(12 / 2688)
    codes, top = choose(f32(0, 0), f32(0, 0), "e2m1", "e4m3")
    assert codes.tolist() == [[0x38, 0x38]] and top.tolist() == [[1]]


# ---- Quantize and dequantize ---------------------------------------------------------------------


def test_codes_of_quotients():
    # 0.5, -6, 6.5 (too large), 0.25 (a tie).
    codes = REFERENCE.quantize_float(f32(1, -12, 13, 0.5), 4, "e2m1", f32(2))
    assert codes.tolist() == [[1, 15, 7, 0]] and codes.dtype == np.uint8
    # A quotient that overflows is a large number too.
    assert REFERENCE.quantize_float(f32(-1e38), 1, "e5m2", f32(1e-38)).tolist() == [[0xFB]]
    assert REFERENCE.quantize_float(f32(1, -1e9), 2, "e4m3", None).tolist() == [[0x38, 0xFE]]


def test_mxfp4_is_packed_low_nibble_first():
    # 8 asks for the scale 2: 2.5 -> 2, -4, 0.5, 1.5; 7.9 asks for 1, and is too large.
    x = f32(5, -8, 1, 3, 7.9)
    packed, scale = REFERENCE.quantize_float_packed(x, 4, "e2m1", "e8m0")
    assert packed.tolist() == [[0xE4, 0x31, 0x07]] and scale.tolist() == [[2, 1]]
    x_hat = REFERENCE.dequantize_float_packed(packed, 5, 4, "e2m1", scale, "float32")
    assert x_hat.tolist() == [[4, -8, 1, 3, 6]]


def test_mxfp8_and_given_scales():
    # 512 / 2 = 2^8 (0x78), 1 / 2 (0x30); 448 (0x7e), -1.
    packed, scale = REFERENCE.quantize_float_packed(f32(512, 1, 448, -1), 2, "e4m3", "e8m0")
    assert packed.tolist() == [[0x78, 0x30, 0x7E, 0xB8]] and scale.tolist() == [[2, 1]]
    given = f32(256, 1)
    packed, scale = REFERENCE.quantize_float_packed(f32(512, 1, 448, -1), 2, "e4m3", None, given)
    # 2 (0x40), 1 / 256 = two units of 2^-9.
    assert packed.tolist() == [[0x40, 0x02, 0x7E, 0xB8]] and scale is given


def test_plain_casts_are_stored_low_byte_first():
    packed, scale = REFERENCE.quantize_float_packed(f32(1, -2), 2, "bf16", None)
    assert packed.tolist() == [[0x80, 0x3F, 0x00, 0xC0]] and scale is None
    x_hat = REFERENCE.dequantize_float_packed(packed, 2, 2, "bf16", None, "float16")
    assert x_hat.tolist() == [[1, -2]] and x_hat.dtype == np.float16


def test_products_are_rounded_once_to_float32_and_then_to_the_dtype():
    # 1.125 * (1 + 2^-7) = 145.125 / 128; of 8 bits, 145 / 128.
    codes, scale = np.array([[0x39]], np.uint8), f32(1 + 2.0**-7)
    found = REFERENCE.dequantize_float(codes, 1, "e4m3", scale, "float32")
    assert found.tolist() == [[145.125 / 128]]
    found = REFERENCE.dequantize_float(codes, 1, "e4m3", scale, "bfloat16")
    assert float(found[0, 0]) == 145 / 128


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("scale_dtype", [None, "float32", "e8m0"])
def test_nonfinite_values_are_a_fault(value, scale_dtype):
    x = f32(1, value)
    for format in ("f16", "e4m3", "e2m1"):
        fault = reported(REFERENCE.quantize_float_packed, x, 2, format, scale_dtype)
        assert fault == ("nonfinite", 0)
    assert reported(REFERENCE.quantize_float, x, 2, "e4m3", f32(1)) == ("nonfinite", 0)
