"""Number formats: encode, decode, decompose and the table, against numbers worked out by hand,
numpy and ml_dtypes."""

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

import qrs
from nasty import FLOATS, float32_sample, layouts, misaligned, same_bits
from qrs import floats
from qrs.float_formats import ALIASES, FORMATS

INF, NAN = math.inf, math.nan
MULTI = np.array([[1.5, -0.3, 0.0], [448.0, 1e-3, -7.0]], np.float32)


def codes_of(array: np.ndarray) -> list[int]:
    return array.reshape(-1).view(f"uint{8 * array.itemsize}").tolist()


def every_code(name: str) -> np.ndarray:
    return np.arange(1 << FORMATS[name].bits, dtype=FORMATS[name].code_dtype)


def peer(x: np.ndarray, name: str) -> np.ndarray:
    """What numpy or ml_dtypes makes of it."""
    with np.errstate(all="ignore"):
        return x.astype(FORMATS[name].dtype)


def is_nan(x: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # signalling NaN
        return np.isnan(x)


# ---- Numbers worked out by hand

# 0.1 = 1.6 * 2^-4: exponent fields -4 + 127 = 123, -4 + 15 = 11, -4 + 7 = 3; mantissas 1.6 - 1 in
# 2^23 = 5033164.8, in 2^10 = 614.4, in 2^7 = 76.8, in 2^2 = 2.4, in 2^3 = 4.8. In e2m1 it is below
# half of the smallest subnormal, 0.25.
TENTH = {
    "f32": 123 << 23 | 5033165,
    "f16": 11 << 10 | 614,
    "bf16": 123 << 7 | 77,
    "e5m2": 11 << 2 | 2,
    "e4m3": 3 << 3 | 5,
    "e2m1": 0,
    "int8": 0,
}


@pytest.mark.parametrize("name", floats.NAMES)
def test_a_tenth(name: str, backend: str) -> None:
    got = floats.encode(0.1, name, backend=backend)
    assert codes_of(got) == [TENTH[name]] and got.shape == ()
    assert codes_of(floats.encode(-0.1, name, backend=backend))[0] == (
        TENTH[name] | FORMATS[name].sign_bit if name in FORMATS else 0
    )


HAND = [
    # Ties go to even mantissas: 1 + 1/16 and 1 + 3/16 between eighths.
    ("e4m3", [1.0625, 1.1875], [0x38, 0x3A]),
    # Halves of the smallest subnormal, 2^-9: to 0, and 3/2 of it to 2 of it.
    ("e4m3", [2.0**-10, 2.0**-10 * 1.001, 3 * 2.0**-10], [0x00, 0x01, 0x02]),
    # 464 is the tie between 448 and what would be 480.
    ("e4m3", [448, 464, 465, -1e30], [0x7E, 0x7E, 0x7E, 0xFE]),
    ("e5m2", [57344, 61439, 61440, INF, -INF, NAN], [0x7B, 0x7B, 0x7B, 0x7C, 0xFC, 0x7E]),
    ("e2m1", [0.25, 0.26, 0.75, 2.5, 5.0, 6.0, 1e9], [0, 1, 2, 4, 6, 7, 7]),
    ("e2m1", [-0.0, -0.2, INF, -INF], [8, 8, 7, 15]),
    ("f16", [65504, 65519, 65520, 2.0**-25, 2.0**-24], [0x7BFF, 0x7BFF, 0x7BFF, 0, 1]),
    # 3.4e38 is above the last tie of bf16, 3.39617752e38.
    ("bf16", [1.00390625, 1.01171875, 3.4e38], [0x3F80, 0x3F82, 0x7F7F]),
    ("f32", [1.0, -0.0, INF, NAN], [0x3F800000, 0x80000000, 0x7F800000, 0x7FC00000]),
    ("int8", [0.5, 1.5, -2.5, 126.5, 127.5, 200.0, INF], [0, 2, 254, 126, 127, 127, 127]),
    ("int8", [-128.4, -128.5, -129.0, -INF, -0.0], [128, 128, 128, 128, 0]),
]


@pytest.mark.parametrize(("name", "x", "codes"), HAND)
def test_encode_by_hand(name: str, x: list[float], codes: list[int], backend: str) -> None:
    got = floats.encode(x, name, backend=backend)
    assert got.dtype == (FORMATS[name].dtype if name in FORMATS else np.int8)
    assert codes_of(got) == codes


UNSATURATED = [
    ("e4m3", [464, 465, -1e30, INF, -INF], [0x7E, 0x7F, 0xFF, 0x7F, 0xFF]),
    ("e5m2", [61439, 61440, -1e30, INF], [0x7B, 0x7C, 0xFC, 0x7C]),
    ("f16", [65519, 65520, -INF], [0x7BFF, 0x7C00, 0xFC00]),
    ("bf16", [3.4e38, -3.4e38], [0x7F80, 0xFF80]),
    ("e2m1", [1e9, -INF], [7, 15]),
    ("int8", [-128.5, 127.4999], [128, 127]),
]


@pytest.mark.parametrize(("name", "x", "codes"), UNSATURATED)
def test_without_saturation(name: str, x: list[float], codes: list[int], backend: str) -> None:
    assert codes_of(floats.encode(x, name, saturate=False, backend=backend)) == codes


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", sorted({"f32", "f16", "bf16", "e5m2", "e4m3"}))
def test_nan_is_canonical_and_keeps_its_sign(name: str, dtype: str, backend: str) -> None:
    width = np.dtype(f"uint{8 * FLOATS[dtype].itemsize}")
    ones = np.iinfo(width).max
    # All bits of the mantissa, and only its lowest: a quiet and a signalling NaN.
    least = codes_of(np.array(INF, FLOATS[dtype]))[0] + 1
    x = np.array([ones >> 1, ones, least, least | (ones ^ ones >> 1)], width).view(FLOATS[dtype])
    f = FORMATS[name]
    canonical = [f.nan_code, f.nan_code | f.sign_bit]
    for saturate in (True, False):
        got = floats.encode(x, name, saturate=saturate, backend=backend)
        assert codes_of(got) == canonical * 2
    assert codes_of(floats.decode(got, dtype="float32")) == [0x7FC00000, 0xFFC00000] * 2
    wide = floats.decode(got, dtype="float64", backend=backend)
    assert codes_of(wide) == [0x7FF8 << 48, 0xFFF8 << 48] * 2


# ---- Other implementations


@pytest.mark.parametrize("name", FORMATS)
def test_encode_agrees_with_others(name: str, backend: str) -> None:
    sample = float32_sample(1 << 17)
    every = [np.arange(1 << 16, dtype=np.uint16).view(FLOATS[d]) for d in ("float16", "bfloat16")]
    for x in (sample, *every):
        x = x[~is_nan(x)] if name == "e2m1" else x
        expected = peer(x, name)
        got = floats.encode(x, name, saturate=False, backend=backend)
        nan = is_nan(expected)
        assert np.array_equal(np.isnan(got), nan)
        assert codes_of(got[~nan]) == codes_of(expected[~nan])
        # With saturation only what was finite and became infinity or NaN is another number.
        f, saturated = FORMATS[name], floats.encode(x, name, backend=backend)
        with np.errstate(invalid="ignore"):  # signalling NaN
            may_be_infinite = np.isinf(x) & (f.infinity_code is not None)
            beyond = ~np.isfinite(expected) & ~np.isnan(x) & ~may_be_infinite
        assert np.all(np.abs(saturated[beyond].astype(np.float64)) == f.largest)
        assert codes_of(saturated[~beyond]) == codes_of(got[~beyond])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("name", [name for name in FORMATS if name != "f32"])
def test_decode_agrees_with_others(name: str, dtype: str, backend: str) -> None:
    codes = every_code(name)
    typed = codes.view(FORMATS[name].dtype)
    with np.errstate(all="ignore"):
        exact = typed.astype(np.float64)
        expected = exact.astype(np.float32).astype(ALL_DTYPES[dtype])
    for got in (
        floats.decode(codes, name, dtype=dtype, backend=backend),
        floats.decode(typed, dtype=dtype, backend=backend),
    ):
        nan = np.isnan(expected)
        assert got.dtype == ALL_DTYPES[dtype] and np.array_equal(np.isnan(got), nan)
        assert codes_of(got[~nan]) == codes_of(expected[~nan])


ALL_DTYPES = {**FLOATS, "float64": np.dtype(np.float64)}


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "f32"])
def test_every_number_survives_the_way_there_and_back(name: str, backend: str) -> None:
    codes = every_code(name)
    values = floats.decode(codes, name, backend=backend)
    numbers = ~np.isnan(values)
    back = floats.encode(values[numbers], name, saturate=False, backend=backend)
    assert codes_of(back) == codes[numbers].tolist()


def test_float32_decodes_to_itself(backend: str) -> None:
    x = float32_sample(1 << 12)
    assert same_bits(floats.decode(x, backend=backend), x)
    assert same_bits(floats.decode(x.view(np.uint32), "f32", backend=backend), x)
    assert same_bits(floats.encode(x, "f32", backend=backend), x)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_int8_both_ways(dtype: str, backend: str) -> None:
    codes = np.arange(-128, 128, dtype=np.int8).reshape(16, 16)
    for given, format in ((codes, None), (codes, "int8"), (codes.view(np.uint8), "int8")):
        values = floats.decode(given, format, dtype=dtype, backend=backend)
        assert same_bits(values, codes.astype(ALL_DTYPES[dtype]))
    assert same_bits(floats.encode(values, "int8", backend=backend), codes)
    halves = (np.arange(-600, 600) / 4).astype(np.float32)
    expected = [min(max(round(Fraction(float(x))), -128), 127) for x in halves]
    assert floats.encode(halves, "int8", backend=backend).tolist() == expected


# ---- Names, shapes and layouts


def test_all_names(backend: str) -> None:
    for alias, name in {**ALIASES, "int8": "int8"}.items():
        assert same_bits(floats.encode(MULTI, alias), floats.encode(MULTI, name))
        assert floats.format_name(alias) == name
    assert {"float16", "bfloat16", "float8_e4m3fn", "fp16", "int8"} <= {*ALIASES, *floats.NAMES}


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (2, 3), (2, 1, 3)])
@pytest.mark.parametrize("name", floats.NAMES)
def test_shapes(name: str, shape: tuple[int, ...], backend: str) -> None:
    x = np.full(shape, 1.3, np.float32)
    codes = floats.encode(x, name, backend=backend)
    assert isinstance(codes, np.ndarray) and codes.shape == shape
    values = floats.decode(codes, backend=backend)
    assert isinstance(values, np.ndarray) and values.shape == shape
    assert same_bits(values, np.full(shape, floats.decompose(1.3, name).value, np.float32))


@pytest.mark.parametrize("name", floats.NAMES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_layouts(name: str, dtype: str, backend: str) -> None:
    x = MULTI.astype(FLOATS[dtype])
    expected = floats.encode(x, name, backend="reference")
    for layout, view in layouts(x):
        before = view.tobytes()
        assert same_bits(floats.encode(view, name, backend=backend), expected), layout
        assert view.tobytes() == before
    decoded = floats.decode(expected, backend="reference")
    raw = expected.view(f"uint{8 * expected.itemsize}")
    for layout, view in layouts(raw):
        assert same_bits(floats.decode(view, name, backend=backend), decoded), layout
    for view in (np.asfortranarray(expected), expected[::1, :], misaligned(expected)):
        assert same_bits(floats.decode(view, backend=backend), decoded)
    assert same_bits(floats.decode(expected[::-1, ::2]), np.ascontiguousarray(decoded[::-1, ::2]))


def test_a_big_endian_float16_is_a_format_too() -> None:
    x = MULTI.astype(">f2")
    assert same_bits(floats.decode(x), MULTI.astype(np.float16).astype(np.float32))


def test_numbers_and_lists_narrow_to_float32() -> None:
    # Halfway between 1 and the next bfloat16 but for 2^-40, which float32 drops: two roundings.
    assert codes_of(floats.encode(1 + 2.0**-8 + 2.0**-40, "bf16")) == [0x3F80]
    for x in (3, 3.0, np.float64(3), np.float32(3), np.array(3.0)):
        assert codes_of(floats.encode(x, "e4m3")) == [0x44]
    assert codes_of(floats.encode([1, 2], "e2m1")) == [2, 4]
    assert floats.decode([[0x38, 0x39]], "e4m3").tolist() == [[1.0, 1.125]]
    assert floats.decode(0x38, "e4m3").shape == ()


@pytest.mark.parametrize("name", floats.NAMES)
def test_out(name: str, backend: str) -> None:
    expected = floats.encode(MULTI, name, backend="reference")
    out = np.full_like(expected, 1)
    assert floats.encode(MULTI, name, out=out, backend=backend) is out
    assert same_bits(out, expected)
    for dtype in ALL_DTYPES:
        values = np.full(MULTI.shape, 9, ALL_DTYPES[dtype])
        assert floats.decode(expected, dtype=dtype, out=values, backend=backend) is values
        assert same_bits(values, floats.decode(expected, dtype=dtype, backend="reference"))
    scalar = np.full_like(expected, 1, shape=())
    assert floats.encode(1.5, name, out=scalar, backend=backend) is scalar
    assert same_bits(scalar, floats.encode(1.5, name))


# ---- Errors

FRESH = np.zeros(6, ml_dtypes.float8_e4m3fn)
FROZEN = np.zeros((2, 3), ml_dtypes.float8_e4m3fn)
FROZEN.flags.writeable = False
WITH_NAN = np.array([[1.0, NAN], [NAN, 2.0]], np.float32)
VALUE, TYPE = qrs.ArgValueError, qrs.ArgTypeError
REFUSED = {
    "format": (VALUE, "e3m4", lambda: floats.encode(1.0, "e3m4")),
    "format of decode": (VALUE, "f8", lambda: floats.decode(1, "f8")),
    "format type": (TYPE, "None", lambda: floats.encode(1.0, None)),
    "format contradicts": (VALUE, "float16", lambda: floats.decode(np.float16(1), "bf16")),
    "saturate": (TYPE, "'no'", lambda: floats.encode(1.0, "f16", saturate="no")),
    "x overflows": (VALUE, "(1,) overflows float32", lambda: floats.encode([1, 1e39], "bf16")),
    "x integer": (VALUE, "overflows float32", lambda: floats.encode(10**400, "bf16")),
    "x dtype": (TYPE, "int64", lambda: floats.encode(np.arange(3), "bf16")),
    "x bool": (TYPE, "bool", lambda: floats.encode(True, "bf16")),
    "x text": (TYPE, "str", lambda: floats.encode("1.0", "bf16")),
    "x nan": (VALUE, "2 values that e2m1 cannot hold, first nan at (0, 1)",
              lambda: floats.encode(WITH_NAN, "e2m1")),
    "x nan int8": (VALUE, "2 values that int8 cannot hold, first nan at (0, 1)",
                   lambda: floats.encode(WITH_NAN, "int8")),
    "x too large": (VALUE, "1 value that int8 cannot hold, first 127.5 at (1,)",
                    lambda: floats.encode([127.4, 127.5], "int8", saturate=False)),
    "x too small": (VALUE, "first -128.75 at (0,)",
                    lambda: floats.encode([-128.75, 0], "int8", saturate=False)),
    "x infinite": (VALUE, "first inf", lambda: floats.encode(INF, "int8", saturate=False)),
    "codes": (VALUE, "16 at (1,)", lambda: floats.decode(np.uint8([15, 16]), "e2m1")),
    "codes negative": (VALUE, "-1 at (0,)", lambda: floats.decode([-1], "e4m3")),
    "codes large": (VALUE, "got 256, expected 0 to 255 for int8",
                    lambda: floats.decode(256, "int8")),
    "codes width": (TYPE, "uint16", lambda: floats.decode(np.uint16([1]), "e4m3")),
    "codes signed": (TYPE, "int64", lambda: floats.decode(np.arange(3), "e4m3")),
    "codes without format": (TYPE, "uint8", lambda: floats.decode(np.uint8([1]))),
    "codes float64": (TYPE, "float64", lambda: floats.decode([0.5], "e4m3")),
    "dtype": (TYPE, "int8", lambda: floats.decode(1, "e4m3", dtype="int8")),
    "backend": (VALUE, "numpy", lambda: floats.encode(1.0, "e4m3", backend="numpy")),
    "backend of decode": (VALUE, "numpy", lambda: floats.decode(1, "e4m3", backend="numpy")),
    "out shape": (VALUE, "float8_e4m3fn array of shape (2, 3)",
                  lambda: floats.encode(MULTI, "e4m3", out=FRESH)),
    "out dtype": (VALUE, "float8_e5m2", lambda: floats.encode(MULTI[0], "e5m2", out=FRESH[:3])),
    "out frozen": (VALUE, "writable", lambda: floats.encode(MULTI, "e4m3", out=FROZEN)),
    "out type": (TYPE, "list", lambda: floats.encode(MULTI, "e4m3", out=[])),
    "out overlap": (VALUE, "overlaps", lambda: floats.encode(MULTI, "f32", out=MULTI)),
    "out of decode": (VALUE, "float16", lambda: floats.decode(FRESH, dtype="float16", out=FRESH)),
    "x of decompose": (VALUE, "(2,)", lambda: floats.decompose([1.0, 2.0], "bf16")),
    "x to decompose": (VALUE, "overflows float32", lambda: floats.decompose(-1e39, "bf16")),
    "format to decompose": (VALUE, "e9", lambda: floats.decompose(1.0, "e9")),
    "code": (VALUE, "got 256, expected 0 to 255 for e4m3",
             lambda: floats.decompose_code(256, "e4m3")),
    "code negative": (VALUE, "got -1", lambda: floats.decompose_code(-1, "e2m1")),
    "code float": (TYPE, "1.0", lambda: floats.decompose_code(1.0, "e4m3")),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_errors_name_argument_value_and_expectation(case: str) -> None:
    kind, words, call = REFUSED[case]
    with pytest.raises(kind) as caught:
        call()
    assert caught.value.arg == case.split()[0] and words in str(caught.value)
    assert caught.value.expected is not None and "expected" in str(caught.value)


@pytest.mark.parametrize("name", ["e2m1", "int8"])
@pytest.mark.parametrize(("dtype", "bits"), [("float16", 0x7C01), ("bfloat16", 0xFF81)])
def test_signalling_nan_is_an_error_and_no_warning(name: str, dtype: str, bits: int) -> None:
    x = np.array([0, bits], np.uint16).view(FLOATS[dtype])
    with pytest.raises(qrs.ArgValueError, match=r"first nan at \(1,\)"):
        floats.encode(x, name)


def test_an_unknown_format_is_answered_with_all_names() -> None:
    with pytest.raises(qrs.ArgValueError) as caught:
        floats.encode(1.0, "float7")
    assert all(name in str(caught.value) for name in (*floats.NAMES, *ALIASES))
