"""GELU, softmax and layer normalization: near what float64 says, and the same bits everywhere."""

import math

import numpy as np
import pytest

import qrs
from kernel_calls import LEVELS
from qrs import _qrs
from qrs.backends import get
from qrs.constants import DTYPES
from qrs.nn import functional

REFERENCE, RUST = get("reference"), get("rust")
SHAPES = [(1, 1), (3, 5), (7, 101), (2, 70_003), (65, 384), (0, 4), (3, 0)]


def arrays(dtype: str):
    """Values of every size, subnormals and ties among them."""
    rng = np.random.default_rng(7)
    for rows, cols in SHAPES:
        x = rng.standard_normal((rows, cols)) * 10.0 ** rng.integers(-6, 3, (rows, cols))
        x = x.astype(np.float32)
        x.flat[::7] = rng.choice(np.float32([0.0, -0.0, 1e-45, -1e-38, 0.5, -4, 88, -104, 200]))
        yield x.astype(DTYPES[dtype])
    yield (
        np.float32([[3.0] * 20, [-(3e18)] * 20]).astype(DTYPES[dtype]) if dtype != "float16" else x
    )


def calls(x: np.ndarray, rng: np.random.Generator):
    cols = x.shape[1]
    weight, bias = (rng.standard_normal((1, cols)).astype(np.float32) for _ in range(2))
    return [("gelu", ()), ("softmax", ()), ("layer_norm", (weight, bias, 1e-5))]


def bits(ops, name: str, x: np.ndarray, given: tuple):
    try:
        y = getattr(ops, name)(x, *given)
    except qrs.errors.KernelFault as fault:
        return fault.reason, fault.group
    return y.dtype, y.shape, y.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("threads", [1, 3])
def test_bits_are_those_of_the_reference(level: str, threads: int, dtype: str) -> None:
    before = _qrs.simd_level(), qrs.num_threads()
    _qrs.set_simd_level(level)
    qrs.set_num_threads(threads)
    try:
        for x in arrays(dtype):
            for name, given in calls(x, np.random.default_rng(1)):
                assert bits(RUST, name, x, given) == bits(REFERENCE, name, x, given), (
                    name,
                    x.shape,
                )
    finally:
        _qrs.set_simd_level(before[0])
        qrs.set_num_threads(before[1])


def test_gelu_is_near_the_function() -> None:
    x = np.linspace(-12, 12, 200_001).astype(np.float32)
    exact = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x.astype(np.float64).tolist()]
    error = abs(functional.gelu(x) - np.array(exact)) / np.maximum(abs(x), 1)
    assert error.max() < 2.4e-7


def test_exponentials_are_within_one_unit_in_the_last_place() -> None:
    x = np.linspace(-110, 0, 200_001).astype(np.float32)
    # The exponential of 0 beside it is 1, and the sum and the quotient round once each.
    pairs = np.stack([x, np.zeros_like(x)], axis=1)
    y = functional.softmax(pairs)[:, 0]
    exact = np.exp(x.astype(np.float64))
    exact = exact / (1 + exact)
    ulp = np.spacing(np.maximum(exact.astype(np.float32), np.float32(2.0**-126)))
    assert (abs(y - exact) / ulp).max() < 2.5


def test_softmax_along_any_axis() -> None:
    x = np.random.default_rng(0).standard_normal((4, 6, 5)).astype(np.float32)
    for axis in (-1, 0, 1, -3):
        y = functional.softmax(x, axis)
        e = np.exp(x.astype(np.float64))
        assert np.allclose(y, e / e.sum(axis=axis, keepdims=True), rtol=1e-6)
    assert np.array_equal(functional.softmax(np.full((2, 4), -7e37)), np.full((2, 4), 0.25))


def test_layer_norm_is_near_the_formula() -> None:
    rng = np.random.default_rng(1)
    x, w, b = rng.standard_normal((8, 384)) + 3, rng.standard_normal(384), rng.standard_normal(384)
    centered = x - x.mean(axis=1, keepdims=True)
    expected = centered / np.sqrt((centered**2).mean(axis=1, keepdims=True) + 1e-12) * w + b
    assert np.allclose(
        functional.layer_norm(x.astype(np.float32), w, b, 1e-12), expected, atol=4e-6
    )
    assert functional.layer_norm(x).dtype == np.float64


@pytest.mark.parametrize("backend", ["reference", "rust"])
def test_what_is_refused(backend: str) -> None:
    x = np.ones((2, 3), np.float32)
    for function in (functional.gelu, functional.softmax, functional.layer_norm):
        bad = x.copy()
        bad[1, 2] = np.nan
        with pytest.raises(
            qrs.ArgValueError, match=r"x: 1 non-finite value, first nan at \(1, 2\)"
        ):
            function(bad, backend=backend)
        with pytest.raises(qrs.ArgTypeError, match="got dtype int64"):
            function(np.ones((2, 3), np.int64), backend=backend)
    with pytest.raises(qrs.ArgValueError, match="axis: got 2 for shape"):
        functional.softmax(x, 2, backend=backend)
    with pytest.raises(qrs.ArgValueError, match=r"weight: got shape \(2,\), expected \(3,\)"):
        functional.layer_norm(x, np.ones(2), backend=backend)
    with pytest.raises(qrs.ArgValueError, match="bias: 1 non-finite"):
        functional.layer_norm(x, None, [1.0, np.inf, 0.0], backend=backend)
    with pytest.raises(qrs.ArgValueError, match="eps: got -1"):
        functional.layer_norm(x, eps=-1, backend=backend)
    with pytest.raises(qrs.ArgValueError, match="the variance of row 1 overflows"):
        functional.layer_norm(np.float32([[0, 1], [3e38, -3e38]]), backend=backend)
