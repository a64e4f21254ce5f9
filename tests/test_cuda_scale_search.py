"""The CUDA kernels of sums give the bits of the reference: centered scales, and the scale search.

See test_cuda_codebooks.py, which has the tables.
"""

from functools import cache
from zlib import crc32

import numpy as np
import pytest

from cuda_machines import GPU, ORDERS, SHARE, differing, machine, reference_call
from nasty import FLOATS, faulty, nasty
from qrs import codebooks
from test_cuda_codebooks import SCALE_DTYPES, TABLES, Call, on_every_machine


def search(
    x: np.ndarray, group_size: int, kind: str, scale_dtype: str, factors: np.ndarray, weighted: bool
) -> list[Call]:
    """The scale search, from the scales that reach the ranges."""
    levels, limits, _ = TABLES[kind]
    ranges = reference_call("group_range", x, group_size)
    if len(ranges) == 3:  # a fault
        scale = np.ones((x.shape[0], -(-x.shape[1] // group_size)), np.float32)
    else:
        ends = (float(levels[0]), float(levels[-1]))
        scale, *rest = reference_call("choose_scale_codebook", *ranges, *ends, scale_dtype)
        if rest:  # a fault
            return []
    weights = None
    if weighted:
        weights = np.float32(np.random.default_rng(x.shape).uniform(0, 3, x.shape))
        weights[:, ::5] = 0
    given = (weights, levels, limits[0], factors, scale, scale_dtype)
    return [("choose_scale_lsq", (x, group_size, *given))]


@cache
def searches(dtype: str, share: int) -> list[Call]:
    """The same for the scale search, which takes longer."""
    found: list[Call] = []
    for name, x in {**nasty(dtype), **faulty(dtype)}.items():
        for group_size in sorted({max(x.shape[1], 1), 7, 32}):
            for kind in TABLES:
                key = crc32(f"{name} {kind} {dtype} {group_size}".encode())
                if key % (2 * share) == 0:
                    factors = codebooks.LSQ_FACTORS[key % 7 :: 7]
                    found += search(
                        x, group_size, kind, SCALE_DTYPES[key % 3], factors, key % 5 > 2
                    )
    return found


@on_every_machine
@pytest.mark.parametrize("dtype", FLOATS)
def test_scale_search(dtype, there, monkeypatch):
    some = searches(dtype, SHARE)
    assert len(some) > 600 / SHARE
    assert not differing(machine(there), some, monkeypatch)


def test_scale_search_as_ptx(monkeypatch):
    """With a small table and a large one, with and without weights."""
    x = nasty("float16")["primes-2x1031"]
    some = search(x, 64, "nf4", "bfloat16", codebooks.LSQ_FACTORS[::9], True)
    some += search(x, 64, "dynamic8", "float32", codebooks.LSQ_FACTORS[::9], False)
    assert not differing(machine("ptx"), some, monkeypatch)


@pytest.mark.parametrize("there", [*ORDERS, "ptx", GPU])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 1000, 65536, 65537, 65536 * 18 + 5])
def test_centered_scales(length, there, monkeypatch):
    """Sums of one chunk, of several, and of so many that lanes meet chunks again."""
    random = np.random.default_rng(length)
    spread = random.standard_normal(length) * 2.0 ** random.integers(-30, 30, length)
    # What is left of numbers and their opposites is what was rounded off, in which order they came.
    opposites = np.append(spread[: length // 2], -random.permutation(spread[: length // 2]))
    tiny = random.integers(1, 1 << 12, length).astype(np.uint32).view(np.float32)
    arrays = [scale.astype(np.float32)[None] for scale in (spread, opposites, tiny) if scale.size]
    some = [("center_scales", (scale,)) for scale in arrays]
    assert not differing(machine(there), some, monkeypatch)


def test_means_are_rounded_once(monkeypatch):
    random = np.random.default_rng(9)
    some = [
        ("center_scales", (random.standard_normal((1, length), np.float32),))
        for length in range(2, 60)
    ]
    assert not differing(machine("order-0"), some, monkeypatch)


def test_the_mean_of_nothing_is_zero():
    mean, centered = machine("order-0").call("center_scales", np.zeros((3, 0), np.float32))
    assert mean.tolist() == [[0.0]]
    assert centered.shape == (3, 0)


@pytest.mark.parametrize("there", ["order-2", GPU])
@pytest.mark.parametrize("length", [65_536, 65_537, 65_536 * 17 + 3])
def test_scale_search_over_chunks(length, there, monkeypatch):
    """Groups longer than a chunk, and a last one that is shorter than the others."""
    x = np.random.default_rng(6).standard_normal((1, length + 40_000), np.float32)
    some = search(x, length, "two", "float32", np.float32([0.6]), length == 65_537)
    assert not differing(machine(there), some, monkeypatch)


def test_scale_search_finds_something(monkeypatch):
    """With all factors, in most groups."""
    x = np.random.default_rng(7).standard_normal((16, 256), np.float32)
    for kind in ("nf4", "integers"):
        ((op, args),) = search(x, 32, kind, "float16", codebooks.LSQ_FACTORS, True)
        assert not differing(machine("order-7"), [(op, args)], monkeypatch)
        assert np.mean(reference_call(op, *args)[0] != args[-2]) > 0.8


def test_errors_that_hardly_differ(monkeypatch):
    """Scales a few units in the last place from the best: which is taken, the last bits say."""
    x = np.random.default_rng(8).standard_normal((32, 256), np.float32)
    for kind, weighted in (("nf4", False), ("nf4", True), ("two", False)):
        ((op, args),) = search(x, 8, kind, "float32", codebooks.LSQ_FACTORS[::4], weighted)
        found = reference_call(op, *args)[0]
        beside = [(found.view(np.int32) + ulps).view(np.float32) for ulps in (-9, -3, 1, 4)]
        some = [(op, (*args[:-2], scale, "float32")) for scale in beside]
        assert not differing(machine("order-2"), some, monkeypatch)


def test_scales_that_decode_to_infinity_are_not_taken(monkeypatch):
    """The best scale of 3.2e38 with levels from -8 to 7 has -8 decode to infinity."""
    x, start = np.full((1, 4), 3.2e38, np.float32), np.float32([[4e37]])
    levels, limits, _ = TABLES["integers"]
    weights = np.full((1, 4), 1e-3, np.float32)
    args = (x, 4, weights, levels, limits[0], codebooks.LSQ_FACTORS, start, "float32")
    assert reference_call("choose_scale_lsq", *args)[0] == start
    assert not differing(machine("order-0"), [("choose_scale_lsq", args)], monkeypatch)


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", FLOATS)
def test_one_value_that_is_not_finite(dtype, value):
    levels, limits, _ = TABLES["nf4"]
    scale = np.ones((2, 5), np.float32)
    for at in ((0, 0), (1, 40), (1, 76)):
        x = np.ones((2, 77), FLOATS[dtype])
        x[at] = value
        args = (x, 16, None, levels, limits[0], np.float32([1]), scale, "float32")
        assert machine("order-2").call("choose_scale_lsq", *args) == ("fault", "nonfinite", 0)


def test_nothing_is_launched_for_nothing(monkeypatch):
    here = machine("order-0")
    for shape in ((0, 5), (3, 0), (0, 0)):
        x = np.zeros(shape, np.float32)
        some = search(x, 4, "nf4", "float32", np.float32([1]), False)
        with here.launching() as launches:
            assert not differing(here, some, monkeypatch)
        assert not launches
