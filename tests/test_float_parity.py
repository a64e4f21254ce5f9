"""The Rust backend gives the bits of the reference: the float operations, as test_parity.py has the
others.

The expected bits come from `Reference`, itself tested against numbers computed by hand in
test_reference_floats.py.
"""

from functools import cache

import numpy as np
import pytest

from float_calls import (
    FLOAT_ARGUMENTS,
    FLOAT_RULES,
    FLOATS_WITH_OUT,
    FloatCase,
    FloatRule,
    call_float,
)
from kernel_calls import REFERENCE, bits_of
from nasty import FLOATS, faulty, float32_sample, misaligned, nasty
from qrs import _qrs
from qrs.backends.rust import Rust
from qrs.float_formats import FORMATS
from test_parity import differing, rust_alone

RUST = Rust()


@cache
def cases(dtype: str) -> dict[str, FloatCase]:
    """Every nasty array with every rule, by a name to print; group sizes take turns."""
    found = {}
    for i, (name, x) in enumerate({**nasty(dtype), **faulty(dtype)}.items()):
        sizes = (max(x.shape[1], 1), 1, 7, 16, 32)
        for k, (rule_name, rule) in enumerate(FLOAT_RULES.items()):
            for size in {sizes[(i + k) % 5], sizes[(i + k // 5 + 2) % 5]}:
                found[f"{name}-g{size}-{rule_name}"] = FloatCase(x, size, rule)
    return found


@cache
def expected(op: str, dtype: str) -> dict[str, tuple]:
    return {name: bits_of(call_float(REFERENCE, op, case)) for name, case in cases(dtype).items()}


def test_most_cases_are_no_faults():
    for dtype in FLOATS:
        for op in FLOAT_ARGUMENTS:
            fine = [bits for bits in expected(op, dtype).values() if isinstance(bits[0], tuple)]
            assert len(fine) > 0.6 * len(cases(dtype)) > 1500


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op", FLOAT_ARGUMENTS)
def test_nasty_arrays(op, dtype, level, monkeypatch):
    results = expected(op, dtype)
    with rust_alone(monkeypatch):
        wrong = differing(results, lambda name: call_float(RUST, op, cases(dtype)[name]))
    assert not wrong


SCALED = ("quantize_float", "quantize_float_packed", "dequantize_float", "dequantize_float_packed")
ENDS = (-149, -140, -127, -126, -100, -30, 0, 30, 100, 120, 127)
SCALES = [np.float32(m * 2.0**e) for e in ENDS for m in (1, 1.37) if m * 2.0**e < 2.0**128]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("op", SCALED)
def test_given_scales_of_every_magnitude(op, format, level):
    """Subnormal and huge ones: quotients and products overflow and underflow."""
    x = nasty("float32")["primes-2x1031"]
    for scale in SCALES:
        for dtype in FLOATS:
            case = FloatCase(x.astype(FLOATS[dtype]), 128, FloatRule(format, "float32"))
            case.__dict__["scale"] = np.full((2, 9), scale)
            arguments = list(case.arguments(op))
            if op == "quantize_float_packed":
                arguments[-1] = case.scale
            results = [getattr(each, op)(*arguments) for each in (REFERENCE, RUST)]
            results = [each if isinstance(each, tuple) else (each,) for each in results]
            assert bits_of(results[1]) == bits_of(results[0]), (scale, dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op", FLOATS_WITH_OUT)
@pytest.mark.parametrize("offset", [0, 1, 4, 60])
def test_out_is_filled_and_nothing_beside_it(op, dtype, offset, level):
    """`out` at any place in a line: all of it written, the bytes around it not touched."""
    for name, case in cases(dtype).items():
        if not name.startswith(("primes", "65-", "no-", "one", "many", "nan-at-31")):
            continue
        fresh = call_float(REFERENCE, op, case)
        if not isinstance(fresh[0], np.ndarray):
            continue
        start = 64 + offset * (fresh[0].itemsize if offset == 1 else 1)
        memory = np.full(start + fresh[0].nbytes + 80, 0xA5, np.uint8)
        out = memory[start : start + fresh[0].nbytes].view(fresh[0].dtype).reshape(fresh[0].shape)
        result = call_float(RUST, op, case, out)
        assert bits_of(result) == bits_of(fresh), name
        assert out.tobytes() == fresh[0].tobytes(), name
        assert (memory[:start] == 0xA5).all() and (memory[start + out.nbytes :] == 0xA5).all(), name


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_packed_bytes_at_any_address(offset, level):
    """Parts of a file that is mapped into memory begin anywhere."""
    for format in FORMATS:
        case = FloatCase(nasty("float32")["primes-5x67"], 32, FloatRule(format, "float32"))
        packed, *rest = case.arguments("dequantize_float_packed")
        found = RUST.dequantize_float_packed(misaligned(packed, offset), *rest)
        assert found.tobytes() == REFERENCE.dequantize_float_packed(packed, *rest).tobytes()


LARGE = {(1, 1 << 20): "float32", (1031, 1021): "float16", (70_001, 13): "bfloat16"}


@cache
def large_cases(shape: tuple[int, int]) -> list[tuple[FloatCase, str, tuple]]:
    """Case, operation and what the reference gives."""
    x = np.random.default_rng(3).standard_normal(shape, np.float32).astype(FLOATS[LARGE[shape]])
    found = []
    for group_size, rule in ((shape[1], "e4m3-float32"), (32, "e2m1-e8m0"), (16, "f16-None")):
        case = FloatCase(x, group_size, FLOAT_RULES[rule])
        found += [(case, op, bits_of(call_float(REFERENCE, op, case))) for op in FLOAT_ARGUMENTS]
    return found


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_threads_and_chunks(shape, threads, level, keep_threads, monkeypatch):
    """Arrays large enough to be split, by rows and within a row."""
    _qrs.set_num_threads(threads)
    for case, op, bits in large_cases(shape):
        with rust_alone(monkeypatch):
            assert bits_of(call_float(RUST, op, case)) == bits, (op, case.rule, case.group_size)


def test_streamed_outputs(level, monkeypatch):
    """Outputs of 8 MiB and more are written around the caches."""
    x = np.random.default_rng(5).standard_normal((2100, 2050), np.float32)
    for rule in ("f32-None", "f16-None", "bf16-float32"):
        case = FloatCase(x, 32, FLOAT_RULES[rule])
        for op in ("encode_float", "decode_float", "quantize_float_packed", "dequantize_float"):
            bits = bits_of(call_float(REFERENCE, op, case))
            with rust_alone(monkeypatch):
                assert bits_of(call_float(RUST, op, case)) == bits, (op, rule)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_faulty_group_is_reported(threads, level, keep_threads):
    """Faults in several chunks: the lowest group, whatever thread finds one first."""
    _qrs.set_num_threads(threads)
    x = np.random.default_rng(4).standard_normal((3000, 512), np.float32)
    for bad in ((2999, 511), (1501, 300), (7, 200)):
        x[bad] = 3.4e38
        for op in ("quantize_float_packed", "choose_scale_float"):
            case = FloatCase(x, 64, FloatRule("e4m3", "float16"))
            faults = [call_float(each, op, case) for each in (REFERENCE, RUST)]
            assert faults == [("fault", "scale_overflow", bad[0] * 8 + bad[1] // 64)] * 2
    x[2998, 3] = np.nan
    case = FloatCase(x, 64, FloatRule("e4m3", "float16"))
    for rule, op, reason in (
        ("e4m3-float16", "quantize_float_packed", "nonfinite"),
        ("e4m3-None", "quantize_float", "nonfinite"),
        ("e2m1-None", "encode_float", "nan"),
    ):
        case = FloatCase(x, 64, FLOAT_RULES[rule])
        for backend in (REFERENCE, RUST):
            assert call_float(backend, op, case) == ("fault", reason, 0)


def test_the_reason_of_a_fault(level):
    """6 * rne(f32max / 6) is infinite where the quotient rounds up, as it does for bfloat16 scales;
    nested scales that round up to the largest e4m3 do the same."""
    x = np.ones((2, 64), np.float32)
    x[1, 40] = 3.4028235e38
    case = FloatCase(x, 32, FloatRule("e2m1", "bfloat16"))
    for backend in (REFERENCE, RUST):
        for op in ("quantize_float_packed", "choose_scale_float"):
            assert call_float(backend, op, case) == ("fault", "decode_overflow", 3)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("saturate", [False, True])
def test_a_million_float32_patterns(format, saturate, level, monkeypatch):
    """One pattern of each of 2^20 equal strata of all finite float32, and the others' edges."""
    x, codes, values = sampled(format, saturate)
    with rust_alone(monkeypatch):
        assert np.array_equal(RUST.encode_float(x, format, saturate), codes)
        for dtype, expected_values in values.items():
            found = RUST.decode_float(codes, format, dtype)
            assert found.tobytes() == expected_values.tobytes()


@cache
def sampled(format: str, saturate: bool) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    x = float32_sample(1 << 20)
    if FORMATS[format].nan_code is not None:
        edges = np.array([0x7F800000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF], np.uint32)
        x[::4097] = np.resize(np.append(edges, edges | 1 << 31).view(np.float32), x[::4097].size)
    x = x.reshape(512, 2048)
    codes = REFERENCE.encode_float(x, format, saturate)
    if not saturate:
        assert same_numbers(codes, conversion(x, format), format)
    return x, codes, {dtype: REFERENCE.decode_float(codes, format, dtype) for dtype in FLOATS}


def conversion(x: np.ndarray, format: str) -> np.ndarray:
    """The codes that numpy or ml_dtypes convert to."""
    f = FORMATS[format]
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return x.astype(f.dtype).view(f.code_dtype)


def same_numbers(codes: np.ndarray, others: np.ndarray, format: str) -> bool:
    """Whether codes are equal, those of NaN being all alike."""
    f = FORMATS[format]
    nan = np.isnan(others.view(f.dtype).astype(np.float32))
    canonical = np.zeros_like(nan) if f.nan_code is None else codes & (f.sign_bit - 1) == f.nan_code
    return bool(np.array_equal(nan, canonical) and (codes == others)[~nan].all())


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_16_bit_pattern(format, dtype, level):
    """Encoded from, and decoded to, with NaN and infinities; the reference, ml_dtypes and Rust."""
    x = np.arange(1 << 16, dtype=np.uint16).view(FLOATS[dtype]).reshape(256, 256)
    if FORMATS[format].nan_code is None:
        x = np.where(np.isnan(x.astype(np.float32)), FLOATS[dtype].type(1), x)
    for saturate in (False, True):
        codes = REFERENCE.encode_float(x, format, saturate)
        assert np.array_equal(RUST.encode_float(x, format, saturate), codes)
    with np.errstate(invalid="ignore"):
        wide = x.astype(np.float32)
    assert same_numbers(REFERENCE.encode_float(x, format, False), conversion(wide, format), format)


@pytest.mark.parametrize("format", FORMATS)
def test_every_code_decodes_as_numpy_and_ml_dtypes_have_it(format, level):
    """All codes of up to 16 bits, of f32 a spread of as many."""
    f = FORMATS[format]
    step = 65537 if f.bits == 32 else 1
    codes = np.arange(0, 1 << f.bits, step, dtype=np.uint64).astype(f.code_dtype)
    codes = codes.reshape(-1, 16)
    with np.errstate(invalid="ignore"):
        exact = codes.view(f.dtype).astype(np.float32)
    nan = np.isnan(exact)
    for dtype in FLOATS:
        found = RUST.decode_float(codes, format, dtype)
        assert found.tobytes() == REFERENCE.decode_float(codes, format, dtype).tobytes()
    found = REFERENCE.decode_float(codes, format, "float32")
    assert np.array_equal(np.isnan(found), nan)
    assert found[~nan].tobytes() == exact[~nan].tobytes()
