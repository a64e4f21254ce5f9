"""The CUDA kernels give the bits of the reference, in every order of threads, and as PTX too.

No GPU is needed: see cuda_machines.py. With one, `make test-gpu` runs the same tests there.
"""

from dataclasses import replace
from functools import cache
from zlib import crc32

import numpy as np
import pytest

from cuda_cpu.sanitize import run_sanitized
from cuda_machines import GPU, ORDERS, SHARE, alone, differing, machine, reference_call
from kernel_calls import ARGUMENTS, RULES, Case, bits_of
from nasty import FLOATS, every_finite, faulty, float32_sample, misaligned, nasty
from qrs.backends.cupy import Cupy
from qrs.backends.reference import OPERATIONS, Reference

AFFINE = [op for op in ARGUMENTS if "float" not in op]
GIVEN = ("quantize_affine_packed", "fake_quantize_affine")

on_every_machine = pytest.mark.parametrize("there", [*ORDERS, GPU])


def random(shape: tuple[int, int], dtype: str = "float16", seed: int = 0) -> np.ndarray:
    """Normal numbers, the rows of very different magnitudes; the first row is zeros."""
    rng = np.random.default_rng((*shape, seed))
    x = rng.standard_normal(shape) * 2.0 ** rng.integers(-9, 9, (shape[0], 1))
    x[0] = 0
    return x.astype(FLOATS[dtype])


@cache
def cases(dtype: str, share: int) -> list[Case]:
    """Some of the nasty arrays, rules and group sizes that the other backends are tested with."""
    found = []
    for name, x in {**nasty(dtype), **faulty(dtype)}.items():
        for group_size in sorted({max(x.shape[1], 1), 1, 7, 32}):
            for rule_name, rule in RULES.items():
                if crc32(f"{name} {group_size} {rule_name} {dtype}".encode()) % share == 0:
                    found.append(Case(x, group_size, rule))
    return found


def calls(op: str, some: list[Case]) -> list[tuple[str, tuple]]:
    return [(op, ARGUMENTS[op](case)) for case in some if case.prepare(op) is None]


def test_cupy_overrides_every_operation():
    assert not [op for op in OPERATIONS if getattr(Cupy, op) is getattr(Reference, op)]


@on_every_machine
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op", AFFINE)
def test_nasty_arrays(op, dtype, there, monkeypatch):
    some = calls(op, cases(dtype, SHARE))
    assert len(some) > 1000 / SHARE
    assert not differing(machine(there), some, monkeypatch)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("op", AFFINE)
def test_nasty_arrays_as_ptx(op, dtype, monkeypatch):
    assert not differing(machine("ptx"), calls(op, cases(dtype, 4 * SHARE)), monkeypatch)


@on_every_machine
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op", GIVEN)
def test_fused_operations_with_given_scales(op, dtype, there, monkeypatch):
    some = [c for c in cases(dtype, 3 * SHARE) if c.prepare("quantize_affine") is None]
    with_scales = [(op, (*ARGUMENTS[op](case)[:-2], *case.qparams)) for case in some]
    assert not differing(machine(there), with_scales, monkeypatch)


@pytest.mark.parametrize("there", ["order-0", "ptx", GPU])
@pytest.mark.parametrize("op", ["quantize_affine", *GIVEN])
def test_given_scales_of_every_magnitude(op, there, monkeypatch):
    """Scales that do not fit the values: codes saturate, quotients overflow and underflow."""
    x = np.concatenate([nasty("float32")["primes-2x1031"], float32_sample(2062).reshape(2, 1031)])
    ends = np.array([-149, -140, -126, -101, -100, -61, -60, 0, 59, 60, 61, 99, 100, 101, 117])
    scales = (np.float32(1.37) * 2.0**ends).astype(np.float32)
    some = []
    for scale in np.append(scales, -scales[5:8]):
        for rule in (RULES["int8"], RULES["uint8"], RULES["int4-asym-f16"]):
            if scale < 0 and not rule.symmetric:
                continue
            case = Case(x, 128, rule)
            code = np.int8 if rule.signed else np.uint8
            zero_point = None if rule.symmetric else np.full((4, 9), rule.qmax - 2, code)
            case.__dict__["qparams"] = (np.full((4, 9), scale), zero_point)
            arguments = ARGUMENTS[op](case)
            some.append((op, (*arguments[:-2], *case.qparams) if op in GIVEN else arguments))
    assert not differing(machine(there), some, monkeypatch)


# ---- Which kernel runs ---------------------------------------------------------------------------

ROWS = [(3, 8), (2, 264), (5, 1024), (3, 1032), (41, 2048), (2, 4096), (2, 5000), (2, 16384)]
GROUPS = [(3, 8), (3, 16), (5, 24), (3, 32), (3, 64), (301, 128), (7, 256), (2, 2056)]
FAST = [*((shape, shape[1]) for shape in ROWS), *(((n, 2 * g), g) for n, g in GROUPS)]
FAST_RULES = ("int8", "int8-asym", "uint8", "int4", "int4-full-bf16", "int4-asym-f16", "uint4")


def instance(kernel: str, dtype: str, *types: object) -> str:
    name = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}[dtype]
    return f"{kernel}<{', '.join(map(str, (name, *types)))}>"


def whole_groups(there: str, dtype: str, rules: tuple[str, ...], fast: list, monkeypatch) -> None:
    """Quantize and dequantize by the kernels that touch memory once, and by no other."""
    here = machine(there)
    for (shape, group_size), rule_name in ((f, r) for f in fast for r in rules):
        rule = RULES[rule_name]
        case = Case(random(shape, dtype, len(rule_name)), group_size, rule)
        absmax = str(rule.symmetric and rule.qmin == -rule.qmax).lower()
        symmetric = str(rule.symmetric).lower()
        for verb, way in (("quantize", absmax), ("dequantize", symmetric)):
            op = f"{verb}_affine_packed"
            with here.launching() as launches:
                assert not differing(here, calls(op, [case]), monkeypatch), (case.rule, group_size)
            assert launches == {instance(op, dtype, rule.bits, way): 1}


@pytest.mark.parametrize("there", [*ORDERS, "order-3", GPU])
@pytest.mark.parametrize("dtype", FLOATS)
def test_whole_groups_take_one_launch(dtype, there, monkeypatch):
    whole_groups(there, dtype, FAST_RULES, FAST if there == "order-2" else FAST[::2], monkeypatch)


def test_whole_groups_as_ptx(monkeypatch):
    for dtype, rules in (("float16", ("int8", "int4", "int4-asym-f16")), ("bfloat16", ("uint8",))):
        whole_groups("ptx", dtype, rules, FAST[::2], monkeypatch)


@pytest.mark.parametrize(
    ("shape", "group_size", "rule", "offset"),
    [
        ((3, 100), 100, "int8", 0),  # no whole octets
        ((3, 1024), 128, "int8", 2),  # misaligned
        ((3, 1000), 128, "int4", 0),  # ragged
        ((3, 1024), 12, "int4", 0),  # groups that share an octet
        ((3, 1024), 128, "int3", 0),  # codes that share a byte
        ((1, 16392), 16392, "int8", 0),  # too long for the registers of a block
    ],
)
def test_other_arrays_take_three_launches(shape, group_size, rule, offset, monkeypatch):
    here, rule = machine("order-2"), RULES[rule]
    x = misaligned(random(shape), offset)
    arguments = ARGUMENTS["quantize_affine_packed"](Case(x, group_size, rule))
    wanted = bits_of(reference_call("quantize_affine_packed", *arguments))
    there = here.xp.ndarray(x)
    assert (there.data.ptr % 16 != 0) == (offset != 0)
    with alone(monkeypatch), here.launching() as launches:
        result = here.raw_call("quantize_affine_packed", there, *arguments[1:])
    assert bits_of(result) == wanted
    names = ("group_range<f16>", "choose_qparams_affine", "quantize_affine<f16>")
    assert launches == dict.fromkeys(names, 1)


def test_nothing_is_launched_for_nothing(monkeypatch):
    here = machine("order-0")
    for shape in ((0, 5), (3, 0), (0, 0)):
        case = Case(np.zeros(shape, np.float32), 4, RULES["uint4"])
        for op in AFFINE:
            with here.launching() as launches:
                assert not differing(here, calls(op, [case]), monkeypatch)
            assert not launches, op


# ---- All of something ----------------------------------------------------------------------------


@pytest.mark.parametrize("there", ["order-0", "ptx", GPU])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_finite_16_bit_value(dtype, there, monkeypatch):
    """Rows of one exponent each; without the greatest too, which cannot decode asymmetrically."""
    x = every_finite(dtype)
    for rule in ("int8", "int4-asym-f16", "int4-full-bf16"):
        for rows in (x, x[: len(x) // 2 - 1]):
            some = calls("quantize_affine_packed", [Case(rows, 32, RULES[rule])])
            assert not differing(machine(there), some, monkeypatch), rule


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_scale_that_a_16_bit_value_can_choose(dtype, monkeypatch):
    """Each positive value as the greatest of a group of eight, beside fractions of it."""
    greatest = every_finite(dtype).ravel()
    greatest = greatest[greatest.astype(np.float32) > 0]
    fractions = np.float32([1, -1, 0.999, 0.5, -0.25, 1 / 3, 0.0079, -1 / 254])
    x = (greatest.astype(np.float32)[:, None] * fractions).astype(FLOATS[dtype])
    x = x[: len(x) // 8 * 7]
    for rule in ("int8", "int8-full-f16", "uint4", "uint8"):
        for scale_dtype in ("float32", "float16", "bfloat16"):
            case = Case(x, 8, replace(RULES[rule], scale_dtype=scale_dtype))
            some = calls("quantize_affine_packed", [case])
            assert not differing(machine("order-0"), some, monkeypatch), (rule, scale_dtype)


@pytest.mark.parametrize("scale", [1, 6.2 / 127, 3e-41, 1.3 * 2.0**-100, 1.7 * 2.0**99, 2.6e36])
def test_many_float32_patterns(scale, monkeypatch):
    """One pattern of each of 2^17 equal strata of all finite float32 through int8 encode."""
    x = float32_sample(1 << 17).reshape(64, 2048)
    arguments = (x, 2048, np.full((64, 1), scale, np.float32), None, -127, 127)
    assert not differing(machine("order-0"), [("quantize_affine", arguments)], monkeypatch)


# ---- Faults --------------------------------------------------------------------------------------


@on_every_machine
def test_the_first_faulty_group_is_reported(there, monkeypatch):
    """Faults in several blocks: the lowest group, whatever thread finds one first."""
    x = np.random.default_rng(4).standard_normal((300, 512)).astype(np.float32)
    arguments = (64, 4, -8, 7, False, "float16", None, None)
    for at in ((299, 511), (150, 300), (7, 200)):
        x[at] = 3.4e38
        wanted = ("fault", "scale_overflow", at[0] * 8 + at[1] // 64)
        assert machine(there).call("quantize_affine_packed", x, *arguments) == wanted
        assert reference_call("quantize_affine_packed", x, *arguments) == wanted
    x[298, 3] = np.nan
    for op, given in (("group_range", (64,)), ("quantize_affine_packed", arguments)):
        assert machine(there).call(op, x, *given) == ("fault", "nonfinite", 0)


@on_every_machine
@pytest.mark.parametrize(
    ("rule", "reason"), [("int8", "decode_overflow"), ("int8-full-f16", "scale_overflow")]
)
def test_the_reason_of_a_fault(rule, reason, there):
    """f32max / 127 rounds up, so that 127 steps are infinite; float16 cannot hold it at all."""
    x = np.ones((4, 64), np.float32)
    x[1, 40], x[2, 3] = 3.4028235e38, -3.4028235e38
    for op in GIVEN:
        arguments = ARGUMENTS[op](Case(x, 32, RULES[rule]))
        assert machine(there).call(op, *arguments) == ("fault", reason, 3)


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", FLOATS)
def test_one_value_that_is_not_finite(dtype, value):
    """At any place of rows that a block, a warp or a few lanes hold."""
    for shape, group_size in (((3, 4096), 4096), ((40, 512), 512), ((9, 256), 32), ((2, 77), 77)):
        for at in ((0, 0), (shape[0] - 1, shape[1] - 1), (1, shape[1] // 2 + 1)):
            x = random(shape, dtype)
            x[at] = value
            for rule in ("int8", "uint4"):
                arguments = ARGUMENTS["quantize_affine_packed"](Case(x, group_size, RULES[rule]))
                found = machine("order-2").call("quantize_affine_packed", *arguments)
                assert found == ("fault", "nonfinite", 0), (shape, at, rule)


@pytest.mark.slow
def test_no_access_beyond_an_array():
    """The tests above, with kernels that watch addresses and conversions (minutes to compile)."""
    chosen = "order-2 and (whole or nasty) and float16 and not given"
    done = run_sanitized(["-m", "pytest", "-q", "-x", "-k", chosen, __file__], timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
