"""The Rust backend gives the bits of the reference: every operation, SIMD level and dtype.
The float operations are in test_float_parity.py, those of codebooks in test_codebook_parity.py,
clustering in test_kmeans_1d.py and test_kmeans_parity.py.

The expected bits come from `Reference`, itself tested against numbers computed by hand in
test_reference.py. While a Rust operation runs, every operation of the reference raises, so that
an inherited one cannot pass for it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import pytest

from codebook_calls import BOOK_ARGUMENTS
from float_calls import FLOAT_ARGUMENTS
from gradient_calls import GRADIENTS
from kernel_calls import (
    ARGUMENTS,
    LEVELS,
    REFERENCE,
    RULES,
    WITH_OUT,
    Case,
    bits_of,
    call,
    call_given,
)
from kmeans_calls import KMEANS_ARGUMENTS
from nasty import FLOATS, every_finite, faulty, float32_sample, misaligned, nasty
from product_calls import PRODUCT_OPERATIONS, SOLVING
from qrs import _qrs
from qrs.backends.reference import OPERATIONS, Reference
from qrs.backends.rust import Rust

RUST = Rust()
FUSED = ("quantize_affine_packed", "fake_quantize_affine")


@contextmanager
def rust_alone(monkeypatch) -> Iterator[None]:
    """Every operation of the reference raises: what runs is the override."""

    def inherited(*_args, **_kwargs):
        raise AssertionError("the operation of the reference ran instead of the Rust one")

    with monkeypatch.context() as patch:
        for op in OPERATIONS:
            patch.setattr(Reference, op, inherited)
        yield


@cache
def cases(dtype: str) -> dict[str, Case]:
    """Every nasty array with every rule and group size, by a name to print."""
    found = {}
    for name, x in {**nasty(dtype), **faulty(dtype)}.items():
        for group_size in sorted({max(x.shape[1], 1), 1, 7, 32}):
            for rule_name, rule in RULES.items():
                found[f"{name}-g{group_size}-{rule_name}"] = Case(x, group_size, rule)
    return found


@cache
def expected(op: str, dtype: str) -> dict[str, tuple]:
    return {name: bits_of(call(REFERENCE, op, case)) for name, case in cases(dtype).items()}


def test_most_cases_are_no_faults():
    for dtype in FLOATS:
        results = expected("quantize_affine_packed", dtype)
        faults = [name for name, bits in results.items() if bits[0] == "fault"]
        assert len(results) > 3000
        assert len(results) / 5 < len(faults) < len(results) / 3


def differing(results: dict[str, tuple], call_rust: Callable[[str], tuple]) -> list[str]:
    """The names whose Rust result has other bits."""
    return [name for name, bits in results.items() if bits_of(call_rust(name)) != bits]


def test_rust_overrides_every_operation():
    known = {*ARGUMENTS, *FLOAT_ARGUMENTS, *BOOK_ARGUMENTS, *KMEANS_ARGUMENTS, "kmeans_1d"}
    # Those of layers: test_int8_matmul.py, test_grouped_matmul.py, test_functional.py; of
    # solvers: test_solving.py; of gradients: test_gradients.py.
    assert set(OPERATIONS) == known | {*GRADIENTS, *PRODUCT_OPERATIONS, *SOLVING}
    assert not [op for op in OPERATIONS if getattr(Rust, op) is getattr(Reference, op)]


def test_levels_start_at_baseline_and_none_is_forgotten():
    assert LEVELS[0] == "baseline"
    assert _qrs.simd_levels() == LEVELS


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op", ARGUMENTS)
def test_nasty_arrays(op, dtype, level, monkeypatch):
    results = expected(op, dtype)
    with rust_alone(monkeypatch):
        wrong = differing(results, lambda name: call(RUST, op, cases(dtype)[name]))
    assert _qrs.simd_level() == level
    assert not wrong


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op", FUSED)
def test_fused_operations_with_given_scales(op, dtype, level, monkeypatch):
    fine = {n: c for n, c in cases(dtype).items() if c.prepare("quantize_affine") is None}
    results = {name: bits_of(call_given(REFERENCE, op, case)) for name, case in fine.items()}
    with rust_alone(monkeypatch):
        assert not differing(results, lambda name: call_given(RUST, op, fine[name]))


@pytest.mark.parametrize("op", ["quantize_affine", *FUSED])
def test_given_scales_of_every_magnitude(op, level):
    """Scales that do not fit the values: codes saturate, quotients overflow and underflow."""
    x = nasty("float32")["primes-2x1031"]
    ends = np.array([-149, -140, -126, -101, -100, -30, 0, 30, 99, 100, 101, 117])
    scales = (np.float32(1.37) * 2.0**ends).astype(np.float32)
    for scale in np.append(scales, -scales[5:8]):
        for rule in (RULES["int8"], RULES["uint8"], RULES["int4"], RULES["int4-asym-f16"]):
            case = Case(x, 128, rule)
            zero_point = None if rule.symmetric else np.full((2, 9), rule.qmax - 2, np.int32)
            if zero_point is not None and scale < 0:
                continue
            case.__dict__["qparams"] = (np.full((2, 9), scale), zero_point)
            run = call_given if op in FUSED else call
            assert bits_of(run(RUST, op, case)) == bits_of(run(REFERENCE, op, case)), scale


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op", WITH_OUT)
@pytest.mark.parametrize("offset", [0, 4, 20, 60])
def test_out_is_filled_and_nothing_beside_it(op, dtype, offset, level):
    """`out` at any alignment: all of it written, the bytes around it not touched."""
    for name, case in cases(dtype).items():
        if not name.startswith(("primes", "65-", "no-", "one", "many")) or "-g7-" in name:
            continue
        fresh = call(REFERENCE, op, case)
        before, after = b"\xa5" * (64 + offset), b"\xa5" * 80
        memory = np.frombuffer(bytearray(before + b"\xa5" * fresh[0].nbytes + after), np.uint8)
        out = memory[len(before) : len(before) + fresh[0].nbytes]
        out = out.view(fresh[0].dtype).reshape(fresh[0].shape)
        result = call(RUST, op, case, out)
        assert bits_of(result) == bits_of(fresh), name
        assert out.tobytes() == fresh[0].tobytes(), name
        assert memory[: len(before)].tobytes() == before, name
        assert memory[len(before) + out.nbytes :].tobytes() == after, name


LARGE = {
    (1, 1 << 20): "float32",
    (1031, 1021): "float16",
    (70_001, 13): "bfloat16",
    (4096, 256): "float32",
}


@cache
def large_cases(shape: tuple[int, int]) -> list[tuple[Case, str, tuple]]:
    """Case, operation and what the reference gives."""
    random = np.random.default_rng(3)
    x = random.standard_normal(shape, np.float32).astype(FLOATS[LARGE[shape]])
    found = []
    for group_size, rule in ((shape[1], "int8"), (128, "int4-asym-f16"), (shape[1], "int3")):
        case = Case(x, group_size, RULES[rule])
        found += [(case, op, bits_of(call(REFERENCE, op, case))) for op in ARGUMENTS]
    return found


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_threads_and_chunks(shape, threads, level, keep_threads, monkeypatch):
    """Arrays large enough to be split, by rows and within a row."""
    _qrs.set_num_threads(threads)
    assert _qrs.num_threads() == threads
    for case, op, bits in large_cases(shape):
        with rust_alone(monkeypatch):
            assert bits_of(call(RUST, op, case)) == bits, (op, case.rule, case.group_size)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_the_first_faulty_group_is_reported(threads, level, keep_threads):
    """Faults in several chunks: the lowest group, whatever thread finds one first."""
    _qrs.set_num_threads(threads)
    x = np.random.default_rng(4).standard_normal((3000, 512), np.float32)
    for bad in ((2999, 511), (1501, 300), (7, 200)):
        x[bad] = 3.4e38
        faults = [
            call(each, "quantize_affine_packed", Case(x, 64, RULES["int4-asym-f16"]))
            for each in (REFERENCE, RUST)
        ]
        assert faults == [("fault", "scale_overflow", bad[0] * 8 + bad[1] // 64)] * 2
    x[2998, 3] = np.nan
    case = Case(x, 64, RULES["int4-asym-f16"])
    for op in ("group_range", *FUSED):
        assert call(RUST, op, case) == call(REFERENCE, op, case) == ("fault", "nonfinite", 0)


@pytest.mark.parametrize(
    ("rule", "reason"), [("int8", "decode_overflow"), ("int8-full-f16", "scale_overflow")]
)
def test_the_reason_of_a_fault(rule, reason, level):
    """f32max / 127 rounds up, so that 127 steps are infinite; float16 cannot hold it at all."""
    x = np.ones((4, 64), np.float32)
    x[1, 40], x[2, 3] = 3.4028235e38, -3.4028235e38
    for op in FUSED:
        for backend in (REFERENCE, RUST):
            assert call(backend, op, Case(x, 32, RULES[rule])) == ("fault", reason, 3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("op", ARGUMENTS)
def test_every_finite_16_bit_value(op, dtype, level):
    x = every_finite(dtype)
    assert x.size == {"float16": 63488, "bfloat16": 65280}[dtype]
    # Rows of the top exponents cannot be decoded asymmetrically in bfloat16: see the faults.
    for rows in (x, x[: len(x) // 2 - 1]):
        for rule in ("int8", "uint8", "int4-asym-f16", "int4-full-bf16"):
            case = Case(rows, 32, RULES[rule])
            assert bits_of(call(RUST, op, case)) == bits_of(call(REFERENCE, op, case)), rule


@pytest.mark.parametrize(
    "scale", [1, 0.1, 6.2 / 127, 3e-41, 2.0**-126, 1.3 * 2.0**-100, 1.7 * 2.0**99, 2.6e36], ids=str
)
def test_a_million_float32_patterns(scale, level, monkeypatch):
    """One pattern of each of 2^20 equal strata of all finite float32 through int8 encode."""
    x, codes = sampled(np.float32(scale))
    with rust_alone(monkeypatch):
        found = RUST.quantize_affine(
            x, x.shape[1], np.full((len(x), 1), scale, np.float32), None, -127, 127
        )
    assert np.array_equal(found, codes)


@cache
def sampled(scale: np.float32) -> tuple[np.ndarray, np.ndarray]:
    x = float32_sample(1 << 20).reshape(512, 2048)
    scales = np.full((512, 1), scale, np.float32)
    return x, REFERENCE.quantize_affine(x, 2048, scales, None, -127, 127)


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_a_misaligned_array_is_refused_or_right(offset, level):
    """The API copies such arrays; a kernel that gets one must not read it as aligned."""
    x = nasty("float32")["primes-5x67"]
    case, moved = Case(x, 32, RULES["int8"]), Case(misaligned(x, offset), 32, RULES["int8"])
    try:
        result = call(RUST, "quantize_affine_packed", moved)
    except (ValueError, TypeError):
        return
    assert bits_of(result) == bits_of(call(REFERENCE, "quantize_affine_packed", case))
