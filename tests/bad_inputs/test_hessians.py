"""Second moments that are none: each is refused by name, or damped and reported."""

import numpy as np
import pytest

import qrs
from refusals import refused

W = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
INDEFINITE = np.eye(6) - 2 * np.eye(6)[::-1]


def changed(at: tuple[int, int], value: float) -> np.ndarray:
    h = 2 * np.eye(6)
    h[at] = value
    return h


@pytest.mark.parametrize(
    ("hessian", "words"),
    [
        (INDEFINITE, "positive semidefinite"),
        (changed((2, 1), np.nan), "nan at (2, 1)"),
        (changed((0, 0), np.inf), "inf at (0, 0)"),
        (np.eye(5), "got shape (5, 5), expected second moments of shape (6, 6)"),
        (np.ones((6, 4)), "got shape (6, 4)"),
        (np.ones(6), "got shape (6,)"),
        (changed((0, 1), 1.0), "not symmetric: 1.0 at (0, 1), 0.0 at (1, 0)"),
        (changed((3, 3), -1.0), "the diagonal is -1.0 at index 3"),
        (np.zeros((6, 6)), "a diagonal of zeros"),
        (qrs.Statistics(), "Statistics(hessian=True) that has seen data"),
        (qrs.Statistics(hessian=False).update(W), "Statistics(hessian=True)"),
    ],
    ids=["P14-indefinite", "P14-nan", "P14-inf", "P14-size", "P14-not-square", "P14-1d",
         "P14-asymmetric", "P14-negative", "P14-zeros", "P15-no-data", "P14-diagonal-only"],
)  # fmt: skip
def test_gptq_names_what_is_wrong_with_the_hessian(hessian, words: str) -> None:
    assert words in refused(qrs.gptq, W, hessian, "int4-axis0", arg="statistics")


@pytest.mark.parametrize("hessian", [None, "h", np.eye(6) + 1j, np.full((6, 6), "x")],
                         ids=["P14-none", "P14-text", "P14-complex", "P14-strings"])  # fmt: skip
def test_gptq_refuses_what_is_no_array_of_numbers(hessian) -> None:
    with pytest.raises((qrs.ArgTypeError, qrs.ArgValueError), match="statistics"):
        qrs.gptq(W, hessian, "int4-axis0")


@pytest.mark.parametrize("rank", [1, 3], ids=["P14-rank-1", "P14-rank-3"])
def test_a_singular_hessian_is_damped_and_says_so(rank: int) -> None:
    x = np.random.default_rng(1).standard_normal((rank, 6))
    qt = qrs.gptq(W, x.T @ x, "int4-axis0")
    assert qt.info["damping"] == 0.01
    nearest = qrs.quantize(W, "int4-axis0")
    errors = [qrs.solvers.output_error(W, q.dequantize(), x.T @ x) for q in (qt, nearest)]
    assert errors[0] < errors[1]


def test_a_hessian_of_float32_that_is_symmetric_but_for_rounding() -> None:
    x = np.random.default_rng(2).standard_normal((50, 6)).astype(np.float32)
    h = x.T @ x
    h[0, 1] = np.nextafter(h[0, 1], np.float32(99))
    assert qrs.gptq(W, h, "int4-axis0").info["damping"] == 0.01
