"""Integer products on Rust: the bits of the reference, whatever shape, level or threads."""

import itertools

import numpy as np
import pytest

import qrs
from kernel_calls import LEVELS
from qrs import _qrs
from qrs.backends import get
from qrs.convolution import Convolution

REFERENCE, RUST = get("reference"), get("rust")
DTYPES = ("uint8", "int8")
SHAPES = [
    (1, 1, 1), (1, 17, 64), (2, 15, 3), (3, 16, 5), (5, 100, 66), (6, 64, 65), (7, 33, 129),
    (13, 65, 4), (25, 48, 257), (1, 300, 1000), (1009, 5, 7), (30, 1030, 9),
]  # fmt: skip


@pytest.fixture(params=LEVELS)
def level(request):
    before = _qrs.simd_level()
    _qrs.set_simd_level(request.param)
    yield request.param
    _qrs.set_simd_level(before)


@pytest.fixture(params=[1, 3])
def threads(request):
    before = qrs.num_threads()
    qrs.set_num_threads(request.param)
    yield request.param
    qrs.set_num_threads(before)


def codes(rng: np.random.Generator, dtype: str, shape: tuple[int, ...], extreme: bool):
    low, high = (0, 255) if dtype == "uint8" else (-128, 127)
    values = rng.choice([low, high], shape) if extreme else rng.integers(low, high + 1, shape)
    return values.astype(dtype)


def integers(rng: np.random.Generator, *shape: int, reach: int = 300) -> np.ndarray:
    return rng.integers(-reach, reach, shape).astype(np.int32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_products(dtype: str, level: str, threads: int) -> None:
    rng = np.random.default_rng(0)
    for index, (m, n, k) in enumerate(SHAPES):
        x = codes(rng, dtype, (m, k), index % 3 == 0)
        w = codes(rng, "int8", (n, k), index % 2 == 0)
        x_zeros = [None, integers(rng, 1, 1), integers(rng, m, 1)]
        w_zeros, biases = [None, integers(rng, n, 1)], [None, integers(rng, 1, n, reach=2**30)]
        scale, bias = (rng.standard_normal((1, n)).astype(np.float32) for _ in range(2))
        for x_zero, w_zero, b in itertools.product(x_zeros, w_zeros, biases):
            there, here = RUST.pack_int8(w, w_zero), REFERENCE.pack_int8(w, w_zero)
            expected = REFERENCE.matmul_int8(x, here, x_zero, b)
            assert np.array_equal(RUST.matmul_int8(x, there, x_zero, b), expected), (m, n, k)
            x_scale = rng.uniform(0, 1, (1 if b is None else m, 1)).astype(np.float32)
            for relu, offset in ((False, None), (True, bias)):
                given = (x_scale, x_zero, scale, offset, relu)
                y = RUST.linear_int8(x, there, *given)
                assert y.tobytes() == REFERENCE.linear_int8(x, here, *given).tobytes(), (m, n, k)


def test_sums_wrap_and_reach_the_ends_of_int32(level: str) -> None:
    k = 65_793  # 255 * 128 * k is 2^31 - 128
    x, w = np.full((2, k), 255, np.uint8), np.full((3, k), -128, np.int8)
    assert (RUST.matmul_int8(x, RUST.pack_int8(w)) == -255 * 128 * k).all()
    w = np.pad(w, ((0, 0), (0, 100)), constant_values=-128)
    x = np.pad(x, ((0, 0), (0, 100)), constant_values=255)
    wrapped = (-255 * 128 * (k + 100) + 2**31) % 2**32 - 2**31
    assert (RUST.matmul_int8(x, RUST.pack_int8(w)) == wrapped).all()
    zero = np.full((1, 1), 255, np.int32)
    assert (RUST.matmul_int8(x, RUST.pack_int8(w), zero) == 0).all()


CONVOLUTIONS = [
    Convolution(3, (7, 9), (3, 3), padding=(1, 1, 1, 1)),
    Convolution(1, (1, 40), (1, 5), stride=(1, 3)),
    Convolution(5, (8, 6), (1, 1)),
    Convolution(4, (9, 8), (3, 2), stride=(2, 1), padding=(0, 3, 1, 2), dilation=(2, 3), groups=2),
    Convolution(6, (12, 11), (3, 3), stride=(2, 2), padding=(1, 1, 1, 1), groups=6),
    Convolution(6, (5, 7), (5, 5), padding=(2, 2, 2, 2), groups=6),
    Convolution(2, (3, 3), (5, 4), padding=(4, 3, 4, 3), dilation=(1, 2)),
    Convolution(8, (20, 31), (3, 3), padding=(1, 1, 1, 1)),
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_convolutions(dtype: str, level: str, threads: int) -> None:
    rng = np.random.default_rng(1)
    for conv, per_group in itertools.product(CONVOLUTIONS, (1, 5, 33)):
        n, k = per_group * conv.groups, conv.channels // conv.groups * np.prod(conv.kernel)
        x = codes(rng, dtype, (2 * conv.channels, conv.size[0] * conv.size[1]), False)
        w = codes(rng, "int8", (n, k), False)
        for w_zero, bias in ((None, None), (integers(rng, n, 1), integers(rng, 1, n))):
            given = (conv, int(x[0, 0]), bias)
            sums = RUST.conv_int8(x, RUST.pack_int8(w, w_zero, conv.groups), *given)
            packed = REFERENCE.pack_int8(w, w_zero, conv.groups)
            assert np.array_equal(sums, REFERENCE.conv_int8(x, packed, *given)), conv


def spreads(rng: np.random.Generator, rows: int, cols: int):
    """Shapes that spread over (rows, cols)."""
    return [(1, 1), (rows, 1), (1, cols), (rows, cols)]


@pytest.mark.parametrize("range_", [(0, 255), (-128, 127), (-127, 127)])
def test_requantization(range_: tuple[int, int], level: str) -> None:
    rng, (qmin, qmax) = np.random.default_rng(2), range_
    sums = np.concatenate(
        [integers(rng, 3, 50, reach=2**31 - 1), integers(rng, 3, 50), np.arange(150).reshape(3, 50)]
    ).astype(np.int32)
    sums[0, :4] = [2**31 - 1, -(2**31), 0, -1]
    for shape in spreads(rng, *sums.shape):
        for scale in (0.5, 2.0**-25, 3e-7, 1e-3, 0.0, 7.0):
            scales = np.full(shape, scale, np.float32)
            for zero_point in (qmin, 0 if qmin else 1, 77):
                given = (scales, zero_point, qmin, qmax)
                q = RUST.requantize(sums, *given)
                assert q.tobytes() == REFERENCE.requantize(sums, *given).tobytes()
        multiplier = rng.integers(2**30, 2**31, shape).astype(np.int32)
        shift = rng.integers(-31, 32, shape).astype(np.int32)
        given = (multiplier, shift, 13, qmin, qmax)
        q = RUST.requantize_fixed_point(sums, *given)
        assert q.tobytes() == REFERENCE.requantize_fixed_point(sums, *given).tobytes()
        bias = rng.standard_normal(shape).astype(np.float32)
        for given in ((bias,), (bias, bias), (bias, None, True), (bias, bias, True)):
            y = RUST.dequantize_sums(sums, *given)
            assert y.tobytes() == REFERENCE.dequantize_sums(sums, *given).tobytes()


def gemmlowp(sum_: int, multiplier: int, shift: int) -> int:
    """SaturatingRoundingDoublingHighMul and RoundingDivideByPOT, in Python's integers."""
    sum_ = max(-(2**31), min(2**31 - 1, sum_ << max(shift, 0)))
    product = sum_ * multiplier
    nudged = product + (2**30 if product >= 0 else 1 - 2**30)
    high = abs(nudged) // 2**31 * (1 if nudged >= 0 else -1)
    right = max(-shift, 0)
    remainder, mask = high & ((1 << right) - 1), (1 << right) - 1
    return (high >> right) + (remainder > (mask >> 1) + (high < 0))


@pytest.mark.parametrize("ops", [REFERENCE, RUST], ids=["reference", "rust"])
def test_fixed_point_is_that_of_jacob_et_al(ops) -> None:
    rng = np.random.default_rng(3)
    near = [2**31 - 1, -(2**31), 0, 1, -1, 2, -2, 3, -3, 2**24 + 1, -(2**30)]
    sums = np.array([*near, *integers(rng, 200, reach=10**6)], np.int32).reshape(1, -1)
    for shift in range(-31, 32, 3):
        multiplier = np.array([[int(rng.integers(2**30, 2**31))]], np.int32)
        q = ops.requantize_fixed_point(
            sums, multiplier, np.array([[shift]], np.int32), 3, -128, 127
        )
        expected = [gemmlowp(int(s), int(multiplier[0, 0]), shift) + 3 for s in sums[0]]
        assert q[0].tolist() == np.clip(expected, -128, 127).tolist()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_column_absmax(dtype: str, level: str, threads: int) -> None:
    rng = np.random.default_rng(4)
    for shape in ((1, 1), (3, 5), (400, 100), (70, 1000)):
        x = rng.standard_normal(shape).astype(np.float32).astype(qrs.constants.DTYPES[dtype])
        assert RUST.column_absmax(x).tobytes() == REFERENCE.column_absmax(x).tobytes()
        assert np.array_equal(RUST.column_absmax(x), abs(x).max(axis=0, keepdims=True))
        x[-1, -1] = np.nan
        for ops in (REFERENCE, RUST):
            with pytest.raises(qrs.errors.KernelFault, match="nonfinite"):
                ops.column_absmax(x)


def test_out_is_filled_and_returned() -> None:
    rng = np.random.default_rng(5)
    x, w = codes(rng, "int8", (4, 20), False), codes(rng, "int8", (18, 20), False)
    packed, one = RUST.pack_int8(w), np.ones((1, 1), np.float32)
    sums, y = np.empty((4, 18), np.int32), np.empty((4, 18), np.float32)
    assert RUST.matmul_int8(x, packed, out=sums) is sums
    assert RUST.linear_int8(x, packed, one, None, np.ones((1, 18), np.float32), out=y) is y
    assert np.array_equal(y, sums) and np.array_equal(sums, x.astype(int) @ w.T.astype(int))
    q = np.empty((4, 18), np.int8)
    assert RUST.requantize(sums, one, 0, -128, 127, q) is q
    assert RUST.dequantize_sums(sums, one, out=y) is y
