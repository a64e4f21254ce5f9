"""The Rust backend gives the bits of the reference: the codebook operations, as test_parity.py has
the others.

The expected bits come from `Reference`, itself tested against numbers computed by hand in
test_codebooks.py.
"""

from functools import cache

import numpy as np
import pytest

from codebook_calls import (
    BOOK_ARGUMENTS,
    BOOK_RULES,
    BOOKS_WITH_OUT,
    INT4,
    BookCase,
    BookRule,
    call_book,
)
from kernel_calls import REFERENCE, bits_of
from nasty import FLOATS, faulty, float32_sample, nasty
from qrs import _qrs
from qrs.backends.rust import Rust
from qrs.codebooks import LSQ_FACTORS, NF4, TABLES, half_even_thresholds, ranked, thresholds
from test_parity import differing, rust_alone

RUST = Rust()


@cache
def cases(dtype: str) -> dict[str, BookCase]:
    """Every nasty array with every rule, by a name to print; group sizes take turns."""
    found = {}
    for i, (name, x) in enumerate({**nasty(dtype), **faulty(dtype)}.items()):
        sizes = (max(x.shape[1], 1), 1, 7, 16, 32)
        for k, (rule_name, rule) in enumerate(BOOK_RULES.items()):
            for size in {sizes[(i + k) % 5], sizes[(i + k // 5 + 2) % 5]}:
                found[f"{name}-g{size}-{rule_name}"] = BookCase(x, size, rule)
    return found


@cache
def expected(op: str, dtype: str) -> dict[str, tuple]:
    return {name: bits_of(call_book(REFERENCE, op, case)) for name, case in cases(dtype).items()}


def test_most_cases_are_no_faults():
    for dtype in FLOATS:
        for op in BOOK_ARGUMENTS:
            fine = [bits for bits in expected(op, dtype).values() if isinstance(bits[0], tuple)]
            assert len(fine) > 0.6 * len(cases(dtype)) > 800


def test_the_scale_search_finds_better_scales():
    changed = 0
    for case in cases("float32").values():
        arguments = case.arguments("choose_scale_lsq")
        if isinstance(arguments, tuple) and np.isfinite(case.x).all():
            changed += np.count_nonzero(REFERENCE.choose_scale_lsq(*arguments)[0] != arguments[-2])
    assert changed > 3000


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op", BOOK_ARGUMENTS)
def test_nasty_arrays(op, dtype, level, monkeypatch):
    results = expected(op, dtype)
    with rust_alone(monkeypatch):
        wrong = differing(results, lambda name: call_book(RUST, op, cases(dtype)[name]))
    assert not wrong


ENDS = (-149, -140, -127, -126, -100, -30, 0, 30, 100, 120, 127)
SCALES = [np.float32(m * 2.0**e) for e in ENDS for m in (1, -1.37) if abs(m) * 2.0**e < 2.0**128]


@pytest.mark.parametrize("rule", ["nf4", "fp4", "learned-6-groups", "dynamic8", "learned-200"])
@pytest.mark.parametrize("op", BOOKS_WITH_OUT)
def test_given_scales_of_every_magnitude(op, rule, level):
    """Subnormal and huge ones, and zero: quotients and products overflow and underflow."""
    x = nasty("float32")["primes-2x1031"]
    for scale in (*SCALES, np.float32(0), np.float32(-0.0)):
        for dtype in FLOATS:
            case = BookCase(x.astype(FLOATS[dtype]), 128, BOOK_RULES[rule])
            case.__dict__["scale"] = np.full((2, 9), scale)
            arguments = list(case.arguments(op))
            if op == "quantize_codebook_packed":
                arguments[5] = case.scale
            results = [getattr(each, op)(*arguments) for each in (REFERENCE, RUST)]
            results = [each if isinstance(each, tuple) else (each,) for each in results]
            assert bits_of(results[1]) == bits_of(results[0]), (scale, dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op", BOOKS_WITH_OUT)
@pytest.mark.parametrize("offset", [0, 4, 60])
def test_out_is_filled_and_nothing_beside_it(op, dtype, offset, level):
    """`out` at any place in a line: all of it written, the bytes around it not touched."""
    for name, case in cases(dtype).items():
        if not name.startswith(("primes", "65-", "no-", "one", "many", "nan-at-31")):
            continue
        fresh = call_book(REFERENCE, op, case)
        if not isinstance(fresh[0], np.ndarray):
            continue
        start = 64 + offset
        memory = np.full(start + fresh[0].nbytes + 80, 0xA5, np.uint8)
        out = memory[start : start + fresh[0].nbytes].view(fresh[0].dtype).reshape(fresh[0].shape)
        result = call_book(RUST, op, case, out)
        assert bits_of(result) == bits_of(fresh), name
        assert out.tobytes() == fresh[0].tobytes(), name
        assert (memory[:start] == 0xA5).all() and (memory[start + out.nbytes :] == 0xA5).all(), name


LARGE = {(1, 1 << 20): "float32", (1031, 1021): "float16", (70_001, 13): "bfloat16"}


@cache
def large_cases(shape: tuple[int, int]) -> list[tuple[BookCase, str, tuple]]:
    """Case, operation and what the reference gives; the search has a test of its own."""
    x = np.random.default_rng(3).standard_normal(shape, np.float32).astype(FLOATS[LARGE[shape]])
    found = []
    for group_size, rule in (
        (shape[1], "nf4"), (64, "learned-16-groups-none"), (64, "learned-6-groups"),
        (32, "learned-2-rows"), (16, "learned-200"),
    ):  # fmt: skip
        case = BookCase(x, group_size, BOOK_RULES[rule])
        ops = [op for op in BOOK_ARGUMENTS if op != "choose_scale_lsq"]
        found += [(case, op, bits_of(call_book(REFERENCE, op, case))) for op in ops]
    return found


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_threads_and_chunks(shape, threads, level, keep_threads, monkeypatch):
    """Arrays large enough to be split, by rows and within a row."""
    _qrs.set_num_threads(threads)
    for case, op, bits in large_cases(shape):
        with rust_alone(monkeypatch):
            assert bits_of(call_book(RUST, op, case)) == bits, (op, case.rule, case.group_size)


def test_streamed_outputs(level, monkeypatch):
    """Outputs of 8 MiB and more are written around the caches."""
    x = np.random.default_rng(5).standard_normal((2100, 4100), np.float32)
    case = BookCase(x, 64, BOOK_RULES["nf4"])
    for op in BOOKS_WITH_OUT:
        bits = bits_of(call_book(REFERENCE, op, case))
        with rust_alone(monkeypatch):
            assert bits_of(call_book(RUST, op, case)) == bits, op


TABLE_OF = {
    "nf4": ranked(NF4)[:2],
    "int4": (np.float32(INT4), half_even_thresholds(-7, 7)),
    "int8": (np.arange(-127, 128, dtype=np.float32), half_even_thresholds(-127, 127)),
    "dynamic8": ranked(TABLES["dynamic8"])[:2],
}


@cache
def searches(table: str) -> list[tuple[tuple, np.ndarray]]:
    """Arguments of the scale search on arrays of many shapes, and what the reference finds."""
    random = np.random.default_rng(8)
    found = []
    for rows, cols, group_size, dtype in (
        (300, 512, 64, "float32"), (70, 300, 128, "bfloat16"), (3, 1000, 1000, "float16"),
        (1, 300_001, 300_001, "float32"), (2, 140_000, 65_537, "float32"),
        (2, 70_000, 65_536, "float16"),
    ):  # fmt: skip
        x = random.standard_t(4, (rows, cols)).astype(FLOATS[dtype])
        for weights in (None, random.exponential(1, (rows, cols)).astype(np.float32)):
            lo, hi = REFERENCE.group_range(x, group_size)
            levels, limits = TABLE_OF[table]
            ends = float(levels[0]), float(levels[-1])
            scale = REFERENCE.choose_scale_codebook(lo, hi, *ends, "float16")
            factors = np.append(LSQ_FACTORS[::12], -LSQ_FACTORS[6::12])
            arguments = (x, group_size, weights, levels, limits, factors, scale, "float16")
            found.append((arguments, REFERENCE.choose_scale_lsq(*arguments)))
    return found


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("table", ["nf4", "int4", "int8", "dynamic8"])
def test_the_scale_search(table, threads, level, keep_threads, monkeypatch):
    """Groups that are small, ragged, and of many chunks; with weights and without."""
    _qrs.set_num_threads(threads)
    for arguments, expected in searches(table):
        with rust_alone(monkeypatch):
            found = RUST.choose_scale_lsq(*arguments)
        for part, other in zip(found, expected, strict=True):
            assert part.tobytes() == other.tobytes(), arguments[:2]


@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_faulty_group_is_reported(threads, level, keep_threads):
    """Faults in several chunks: the lowest group, whatever thread finds one first."""
    _qrs.set_num_threads(threads)
    rule = BookRule(tuple(level / 2 for level in NF4), "float16")
    x = np.random.default_rng(4).standard_normal((3000, 512), np.float32)
    for bad in ((2999, 511), (1501, 300), (7, 200)):
        x[bad] = 3.4e38
        for op in ("quantize_codebook_packed", "choose_scale_codebook"):
            faults = [call_book(each, op, BookCase(x, 64, rule)) for each in (REFERENCE, RUST)]
            assert faults == [("fault", "scale_overflow", bad[0] * 8 + bad[1] // 64)] * 2
    x[2998, 3] = np.nan
    case = BookCase(x, 64, rule)
    case.__dict__["ranges"] = REFERENCE.group_range(np.ones_like(x), 64)
    for op in ("quantize_codebook_packed", "quantize_codebook", "choose_scale_lsq"):
        for backend in (REFERENCE, RUST):
            assert call_book(backend, op, case) == ("fault", "nonfinite", 0)


@pytest.mark.parametrize("table", ["nf4", "dynamic8"])
def test_a_million_float32_patterns(table, level, monkeypatch):
    """One pattern of each of 2^20 equal strata of all finite float32, and the thresholds."""
    x, limits, ranks = sampled(table)
    with rust_alone(monkeypatch):
        assert np.array_equal(RUST.quantize_codebook(x, 64, None, limits[None], None), ranks)


@cache
def sampled(table: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    limits = ranked(TABLES[table])[1]
    around = [limits, np.nextafter(limits, np.float32(-9)), np.nextafter(limits, np.float32(9))]
    x = float32_sample(1 << 20)
    x[::1024] = np.resize(np.concatenate(around), 1024)
    x = x.reshape(512, 2048)
    return x, limits, REFERENCE.quantize_codebook(x, 64, None, limits[None], None)


def test_thresholds_in_any_order(level):
    """They are counted: a table may reach the thresholds of two close levels in one step."""
    x = nasty("float32")["primes-2x1031"]
    random = np.random.default_rng(1)
    for k in (2, 5, 16, 17, 256):
        limits = random.standard_normal((1, k - 1)).astype(np.float32)
        limits[random.random(limits.shape) < 0.1] = np.nan
        found = RUST.quantize_codebook(x, 64, None, limits, None)
        assert np.array_equal(found, REFERENCE.quantize_codebook(x, 64, None, limits, None))


def test_a_code_without_a_level_is_refused(level):
    for k in (6, 16, 200):
        book = np.arange(k, dtype=np.float32)[None]
        codes = np.zeros((40, 130), np.uint8)
        codes[39, 129] = k - 1
        assert RUST.dequantize_codebook(codes, 64, None, None, book, "float32")[39, 129] == k - 1
        for beyond in (k, 255):
            codes[39, 129] = beyond
            with pytest.raises(ValueError, match="no level"):
                RUST.dequantize_codebook(codes, 64, None, None, book, "float32")


X = np.zeros((4, 100), np.float32)
SCALE = np.ones((4, 2), np.float32)


@pytest.mark.parametrize("shape", [(0, 15), (2, 15), (5, 15), (9, 15), (1, 0), (1, 256)])
def test_books_that_do_not_fit_are_refused(shape):
    limits = np.zeros(shape, np.float32)
    with pytest.raises(ValueError, match="thresholds"):
        RUST.quantize_codebook(X, 64, SCALE, limits, None)
    book = np.zeros((shape[0], shape[1] + 1), np.float32)
    with pytest.raises(ValueError, match="book"):
        RUST.dequantize_codebook(X.astype(np.uint8), 64, SCALE, None, book, "float32")


def test_bad_arguments_are_refused():
    limits = thresholds(np.float32([-1, 0, 0.5, 1]))
    one, codes = limits[None], np.zeros((4, 100), np.uint8)
    book = np.zeros((1, 4), np.float32)
    packed = np.zeros((4, 25), np.uint8)

    def quantize(codes, bits):
        RUST.quantize_codebook_packed(X, 64, bits, (-1, 1), "float32", None, one, codes)

    for call in (
        lambda: quantize(np.uint8([0, 1, 2]), 2),
        lambda: quantize(np.uint8([0, 1, 2, 3, 3]), 2),
        lambda: quantize(np.uint8([0, 1, 2, 4]), 2),
        lambda: quantize(None, 1),
        lambda: quantize(np.int64([0, 1, 2, 3]), 2),
        lambda: RUST.quantize_codebook(X, 64, SCALE[:3], one, None),
        lambda: RUST.quantize_codebook(X, 0, None, one, None),
        lambda: RUST.dequantize_codebook(codes, 64, SCALE, np.ones((2, 1)), book, "float32"),
        lambda: RUST.dequantize_codebook_packed(
            packed, 101, 64, 2, SCALE, None, book, "float32"),
        lambda: RUST.choose_scale_lsq(
            X, 64, SCALE, limits, limits, LSQ_FACTORS, SCALE, "float32"),
        lambda: RUST.choose_scale_lsq(
            X, 64, None, limits, limits, LSQ_FACTORS, SCALE, "float32"),
        lambda: RUST.choose_scale_lsq(
            X, 64, None, np.append(limits, 2), limits, LSQ_FACTORS, SCALE, "float64"),
    ):  # fmt: skip
        with pytest.raises((ValueError, TypeError)):
            call()
    with pytest.raises(ValueError, match="fit 2 bits"):
        RUST.quantize_codebook_packed(
            X, 64, 2, (-1, 1), None, None, np.zeros((1, 9), np.float32), None
        )
