"""Errors of a reconstruction, against numpy in float64."""

import math

import ml_dtypes
import numpy as np
import pytest

import qrs
from qrs import metrics

RANDOM = np.random.default_rng(0)
# Longer than a block of the sums, and not a multiple of one.
X = RANDOM.standard_normal((3, 700_001)).astype(np.float32)
X_HAT = X + RANDOM.standard_normal(X.shape).astype(np.float32) / 100


def test_against_numpy():
    a, b = X.astype(np.float64), X_HAT.astype(np.float64)
    noise = ((a - b) ** 2).sum()
    # Sums of two million float64 terms in another order: 1e-12 is far above their rounding.
    assert metrics.sqnr_db(X, X_HAT) == pytest.approx(
        10 * math.log10((a**2).sum() / noise), rel=1e-12
    )
    assert metrics.mse(X, X_HAT) == pytest.approx(noise / a.size, rel=1e-12)
    assert metrics.cosine(X, X_HAT) == pytest.approx(
        (a * b).sum() / math.sqrt((a**2).sum() * (b**2).sum()), rel=1e-12
    )
    assert metrics.max_abs_error(X, X_HAT) == np.abs(a - b).max()


def test_by_hand():
    assert metrics.sqnr_db([3, 4], [3, 3.5]) == 20
    assert metrics.mse([[1, 2]], [[1, 4]]) == 2
    assert metrics.max_abs_error([1, -2], [1, -5]) == 3
    assert metrics.cosine([1, 0], [0, 2]) == 0
    assert metrics.cosine([1, 2], [-2, -4]) == pytest.approx(-1, rel=1e-15)


def test_no_noise_and_no_signal():
    assert metrics.sqnr_db([1, 2], [1, 2]) == math.inf
    assert metrics.sqnr_db([0, 0], [0, 1]) == -math.inf
    assert metrics.sqnr_db([0, 0], [0, 0]) == math.inf
    assert math.isnan(metrics.cosine([0, 0], [1, 1]))
    assert metrics.max_abs_error([1, 2], [1, 2]) == 0


def test_nothing():
    empty = np.zeros((0, 4))
    assert math.isnan(metrics.mse(empty, empty))
    assert metrics.max_abs_error(empty, empty) == 0
    assert metrics.sqnr_db(empty, empty) == math.inf
    assert math.isnan(metrics.cosine(empty, empty))


def test_numbers_whose_squares_overflow_float32():
    assert metrics.mse(np.float32([1e30]), np.float32([-1e30])) == pytest.approx(4e60, rel=1e-6)


def test_narrow_floats_are_summed_in_float64():
    x = np.full(4096, 256, ml_dtypes.bfloat16)
    assert metrics.mse(x, np.zeros_like(x)) == 65536
    assert metrics.mse(x.astype(np.float16), np.zeros(4096, np.float16)) == 65536


def test_strides_do_not_matter():
    assert metrics.mse(X[:, ::3], X_HAT[:, ::3]) == metrics.mse(
        X[:, ::3].copy(), X_HAT[:, ::3].copy()
    )


@pytest.mark.parametrize("metric", ["sqnr_db", "mse", "max_abs_error", "cosine"])
def test_shapes_must_agree(metric):
    with pytest.raises(qrs.ArgValueError, match=r"x_hat: got shape \(2,\), expected \(1, 2\)"):
        getattr(metrics, metric)([[1.0, 2.0]], [1.0, 2.0])


def test_nan_is_not_lost():
    x = np.zeros((1 << 20) + 1)
    x[-1] = np.nan  # in a block after the first
    assert math.isnan(metrics.max_abs_error(x, np.zeros_like(x)))
    assert math.isnan(metrics.max_abs_error(x[::-1], np.zeros_like(x)))
    assert math.isnan(metrics.sqnr_db([np.nan], [1.0]))


def test_powers_that_have_no_quotient():
    assert metrics.sqnr_db([1e-100], [1e150]) == pytest.approx(-5000, rel=1e-12)


@pytest.mark.parametrize("metric", ["sqnr_db", "mse", "max_abs_error", "cosine"])
@pytest.mark.parametrize(
    "x", ["a", ["a", "b"], [[1], [1, 2]], None, [1j], np.ma.ones(3), {}], ids=repr
)
def test_what_is_no_array_of_numbers(metric, x):
    for arg, arguments in {"x": (x, [1.0]), "x_hat": ([1.0], x)}.items():
        with pytest.raises(qrs.ArgTypeError, match=f"^{arg}: ") as caught:
            getattr(metrics, metric)(*arguments)
        assert caught.value.arg == arg


def test_integers_and_booleans_are_numbers():
    assert metrics.mse(np.array([1, 0]), [True, True]) == 0.5
    assert metrics.max_abs_error(np.uint8([0]), np.uint8([255])) == 255
