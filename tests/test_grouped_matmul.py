"""Products with packed weights: near the decoded weight, one chain of bits whatever the batch."""

import numpy as np
import pytest

import qrs
from kernel_calls import LEVELS
from qrs import _qrs
from qrs.backends import get

REFERENCE, RUST = get("reference"), get("rust")
SCHEMES = [
    "int4-g32", "int4-g128-full", "int4-g32-asym", "uint4-g40-ragged", "int3-g16", "int2-g8",
    "int8-g16-asym", "uint8-g64", "int5-g7-ragged", "nf4-g32", "kmeans4-axis0", "kmeans5-axis0",
    "kmeans3", "e2m1-g16", "e4m3-g32",
]  # fmt: skip
SHAPES = [(5, 33), (17, 256), (130, 48), (16, 7), (1, 1), (300, 128)]
BATCHES = (1, 2, 3, 8, 13)


@pytest.fixture(params=LEVELS)
def level(request):
    before = _qrs.simd_level()
    _qrs.set_simd_level(request.param)
    yield request.param
    _qrs.set_simd_level(before)


def weights(scheme: str, shape: tuple[int, int], seed: int = 0):
    """A quantized weight, or None where the scheme does not fit; packed by both backends."""
    from qrs.nn.weights import grouped_weights

    w = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    try:
        qt = qrs.quantize(w, scheme)
    except qrs.ArgValueError:
        return None
    return qt, grouped_weights(qt, REFERENCE), grouped_weights(qt, RUST)


def chain(x: np.ndarray, plain) -> np.ndarray:
    """The definition, one number at a time, with fused multiply-adds of exact arithmetic."""
    from fractions import Fraction

    def fma(a, b, c):
        exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
        near = np.float32(float(exact))  # rounded twice, so a neighbour may be nearer
        around = [near, *(np.nextafter(near, end) for end in np.float32([-np.inf, np.inf]))]
        distances = [abs(Fraction(float(v)) - exact) for v in around]
        odd = [int(v.view(np.uint32)) & 1 for v in around]
        return around[min(range(3), key=lambda i: (distances[i], odd[i]))]

    y = np.zeros((len(x), len(plain.scale)), np.float32)
    for i, j in np.ndindex(*y.shape):
        total = np.float32(0)
        for g, group in enumerate(plain.groups):
            s = np.float32(0)
            for a, b in zip(x[i, group], plain.levels[j, group], strict=True):
                s = fma(a, b, s)
            total = fma(s, plain.scale[j, g], total)
        y[i, j] = total
    return y


@pytest.mark.parametrize("scheme", SCHEMES)
def test_products_are_chains_of_fused_multiply_adds(scheme: str, level: str) -> None:
    for shape in ((5, 33), (17, 48)):
        if found := weights(scheme, shape):
            _, plain, packed = found
            x = np.random.default_rng(1).standard_normal((3, shape[1])).astype(np.float32)
            assert np.array_equal(RUST.matmul_grouped(x, packed), chain(x, plain)), shape


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_row_does_not_depend_on_batch_threads_or_level(scheme: str) -> None:
    before = _qrs.simd_level(), qrs.num_threads()
    for shape in SHAPES:
        if not (found := weights(scheme, shape)):
            continue
        qt, plain, packed = found
        x = np.random.default_rng(2).standard_normal((13, shape[1])).astype(np.float32)
        bias = np.random.default_rng(3).standard_normal((1, shape[0])).astype(np.float32)
        expected = RUST.matmul_grouped(x, packed, bias)
        try:
            for name in LEVELS:
                _qrs.set_simd_level(name)
                for threads in (1, 3):
                    qrs.set_num_threads(threads)
                    for m in BATCHES:
                        y = RUST.matmul_grouped(x[:m], packed, bias)
                        assert np.array_equal(y, expected[:m]), (shape, name, m)
        finally:
            _qrs.set_simd_level(before[0])
            qrs.set_num_threads(before[1])
        w = qt.dequantize().astype(np.float64)
        reach = abs(x).astype(np.float64) @ abs(w).T + abs(bias)
        bound = (shape[1] + 3) * 2.0**-24 * reach
        assert (abs(expected - (x.astype(np.float64) @ w.T + bias)) <= bound).all()
        assert (abs(expected - REFERENCE.matmul_grouped(x, plain, bias)) <= bound).all()


@pytest.mark.parametrize(
    "scheme", ["int4-g32", "int4-g128-full", "uint4-g40-ragged", "int8-g16-asym", "int8-axis0",
               "uint8-g64", "nf4-g32"],
)  # fmt: skip
def test_two_bfloat16_parts_are_as_near_as_promised(scheme: str, level: str) -> None:
    rng = np.random.default_rng(6)
    for shape in [*SHAPES, (70, 200)]:
        if not (found := weights(scheme, shape)):
            continue
        qt, _, packed = found
        for m in (1, 16, 50, 530):
            x = rng.standard_normal((m, shape[1])).astype(np.float32)
            y = RUST.matmul_grouped(x, packed, compute="bf16x2")
            w = qt.dequantize().astype(np.float64)
            reach = abs(x).astype(np.float64) @ abs(w).T
            bound = (2.0**-16 + (shape[1] + 3) * 2.0**-24) * reach
            assert (abs(y - x.astype(np.float64) @ w.T) <= bound).all(), (shape, m)


def test_two_bfloat16_parts_keep_what_is_not_finite(level: str) -> None:
    _, _, packed = weights("int4-g32", (40, 64))
    x = np.ones((33, 64), np.float32)
    x[0, 3], x[1, 3], x[2, 3] = np.inf, np.nan, 3.4e38
    for x[3, 3] in np.array([0x7F800001, 0xFF80FFFF], np.uint32).view(np.float32):
        exact = RUST.matmul_grouped(x, packed)
        y = RUST.matmul_grouped(x, packed, compute="bf16x2")
        assert np.array_equal(np.isnan(y), np.isnan(exact))
        assert np.array_equal(y[0], exact[0], equal_nan=True)
        assert np.array_equal(np.isinf(y), np.isinf(exact))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_inputs_of_16_bits_widen_exactly(dtype: str, level: str) -> None:
    _, plain, packed = weights("int4-g32", (40, 64))
    x = np.random.default_rng(4).standard_normal((9, 64)).astype(qrs.constants.DTYPES[dtype])
    wide = x.astype(np.float32)
    assert np.array_equal(RUST.matmul_grouped(x, packed), RUST.matmul_grouped(wide, packed))
    assert np.array_equal(REFERENCE.matmul_grouped(x, plain), REFERENCE.matmul_grouped(wide, plain))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    "scheme", ["int4-g32", "int4-g32-asym", "uint4-g40-ragged", "int8-g16-asym", "uint8-g64",
               "int2-g8", "int7-axis0", "int5-g7-ragged"],
)  # fmt: skip
def test_integer_groups_have_the_bits_of_the_reference(
    scheme: str, level: str, threads: int
) -> None:
    before = qrs.num_threads()
    qrs.set_num_threads(threads)
    try:
        for shape in [*SHAPES, (1030, 16)]:
            if not (found := weights(scheme, shape)):
                continue
            _, plain, packed = found
            rng = np.random.default_rng(5)
            for m in (*BATCHES, 260):
                x = rng.integers(-128, 128, (m, shape[1])).astype(np.int8)
                scale = rng.uniform(0, 1, (m, 1)).astype(np.float32)
                bias = rng.standard_normal((1, shape[0])).astype(np.float32)
                for given in ((scale,), (scale, bias)):
                    y = RUST.linear_grouped_int8(x, packed, *given)
                    expected = REFERENCE.linear_grouped_int8(x, plain, *given)
                    assert y.tobytes() == expected.tobytes(), (shape, m)
    finally:
        qrs.set_num_threads(before)


def test_codes_beyond_their_book_are_refused() -> None:
    packed, scale = np.array([[0x23]], np.uint8), np.ones((1, 1), np.float32)
    book = np.array([[1.0, 2.0, 3.0]], np.float32)
    with pytest.raises(qrs.errors.KernelFault, match="no_level"):
        REFERENCE.pack_grouped(packed, 2, 2, 4, False, scale, None, book)
    with pytest.raises(qrs.ArgValueError, match="one has no level in its book"):
        RUST.pack_grouped(packed, 2, 2, 4, False, scale, None, book)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_few_columns_are_added_by_chains(level: str, threads: int) -> None:
    before = qrs.num_threads()
    qrs.set_num_threads(threads)
    rng = np.random.default_rng(6)
    try:
        for m, n, o in ((1, 1, 1), (3, 17, 5), (40, 1000, 3), (2, 8, 0)):
            y, x, w = (rng.standard_normal(s).astype(np.float32) for s in ((m, n), (m, o), (n, o)))
            bias = rng.standard_normal((1, n)).astype(np.float32)
            exact = y + x.astype(np.float64) @ w.T.astype(np.float64) + bias
            reach = abs(y) + abs(x).astype(np.float64) @ abs(w).T + abs(bias)
            for ops in (REFERENCE, RUST):
                given = ops.add_matmul(y, x, w, bias)
                assert (abs(given - exact) <= (o + 2) * 2.0**-24 * reach).all()
                assert np.array_equal(ops.add_matmul(y, x, w, bias, True), np.maximum(given, 0))
            one = RUST.add_matmul(y[:1], x[:1], w, bias)
            assert np.array_equal(one, RUST.add_matmul(y, x, w, bias)[:1])
    finally:
        qrs.set_num_threads(before)
