"""Cholesky, float64 products, rounding with feedback, descent: near the reference, one chain of
bits at every SIMD level and with any number of threads."""

import numpy as np
import pytest

import qrs
from kernel_calls import LEVELS
from qrs import _qrs
from qrs.backends import get
from qrs.errors import KernelFault
from solving_calls import SIZES, problem, solved

REFERENCE, RUST = get("reference"), get("rust")


@pytest.fixture(autouse=True)
def as_before():
    before = _qrs.simd_level(), qrs.num_threads()
    yield
    _qrs.set_simd_level(before[0])
    qrs.set_num_threads(before[1])


@pytest.mark.parametrize(("n", "k"), SIZES)
def test_codes_are_those_of_the_reference_and_sums_near(n: int, k: int) -> None:
    p = problem(n, k)
    expected, found = solved(REFERENCE, p), solved(RUST, p)
    for wide, near in zip(expected[:2], found[:2], strict=True):
        assert np.allclose(near, wide, rtol=1e-12, atol=1e-12 * np.abs(wide).max())
    for codes, others in zip(expected[2:], found[2:], strict=True):
        assert np.array_equal(codes, others)


@pytest.mark.parametrize(("n", "k"), SIZES)
def test_bits_depend_neither_on_level_nor_on_threads(n: int, k: int) -> None:
    p, expected = problem(n, k), None
    for level in LEVELS:
        for threads in (1, 3):
            _qrs.set_simd_level(level)
            qrs.set_num_threads(threads)
            bits = [array.tobytes() for array in solved(RUST, p)]
            expected = expected or bits
            assert bits == expected, (level, threads)


def test_a_chain_is_one_of_fused_multiply_adds() -> None:
    """1 + 2^-60 is lost in a product that is rounded, and kept in one that is not."""
    a, b = np.array([[1.0, 1 + 2.0**-30]]), np.array([[-1.0 - 2.0**-29], [1 + 2.0**-30]])
    assert RUST.matmul_float64(a, b).tolist() == [[2.0**-60]]


@pytest.mark.parametrize("k", [1, 24, 25, 100])
def test_the_factor_is_upper_and_squares_to_the_matrix(k: int) -> None:
    h = problem(1, k)["h"]
    for backend in (REFERENCE, RUST):
        factor = backend.cholesky(h)
        assert np.array_equal(factor, np.triu(factor)) and (factor.diagonal() > 0).all()
        assert np.allclose(factor @ factor.T, h, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("backend", [REFERENCE, RUST], ids=["reference", "rust"])
@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
@pytest.mark.parametrize("at", [0, 30, 69])
def test_the_first_pivot_that_is_not_positive_is_named(backend, value: float, at: int) -> None:
    h = np.eye(70)
    h[at, at] = value
    with pytest.raises(KernelFault) as caught:
        backend.cholesky(h)
    assert (caught.value.reason, caught.value.group) == ("not_positive", at)


def test_a_round_of_descent_never_raises_the_objective() -> None:
    p = problem(20, 60)
    scale = np.full_like(p["scale"], 0.3)
    values = (scale, p["group_of"], None, np.full_like(p["lowest"], -8), 16)

    def objective(codes: np.ndarray) -> np.ndarray:
        error = p["w"] - decoded(codes).astype(np.float64)
        return np.einsum("ij,ij->i", error @ p["h"], error)

    def decoded(codes: np.ndarray) -> np.ndarray:
        return (codes.astype(np.int32) - 8).astype(np.float32) * np.float32(0.3)

    codes = np.clip(np.rint(p["w"] / 0.3) + 8, 0, 15).astype(np.uint8)
    before = objective(codes)
    for _ in range(4):
        codes = RUST.descend(p["w"], p["h"], decoded(codes), *values)
        assert (objective(codes) <= before * (1 + 1e-12)).all()
        before = objective(codes)


def test_descent_of_an_input_that_was_always_zero_rounds_to_nearest() -> None:
    w, h = np.float32([[0.6, 0.6]]), np.diag([0.0, 1.0])
    one, place = np.ones((1, 1), np.float32), np.zeros((1, 2), np.int32)
    for backend in (REFERENCE, RUST):
        codes = backend.descend(w, h, 5 * w, one, place, None, place[:, :1], 4)
        assert codes.tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"group_of": np.full((1, 5), 9, np.int32)}, "group_of"),
        ({"group_of": np.full((1, 5), -1, np.int32)}, "group_of"),
        ({"group_of": np.zeros((1, 4), np.int32)}, "group_of"),
        ({"scale": np.ones((2, 1), np.float32)}, "scale"),
        ({"lowest": None}, "lowest"),
        ({"count": 0}, "count"),
        ({"count": 257}, "count"),
        ({"levels": np.ones((2, 4), np.float32)}, "levels"),
        ({"factor": np.eye(4)}, "factor"),
        ({"w": np.ones((3, 5))}, "w"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change: dict, named: str) -> None:
    arguments = {
        "w": np.ones((3, 5), np.float32), "factor": np.eye(5),
        "scale": np.ones((3, 1), np.float32), "group_of": np.zeros((1, 5), np.int32),
        "levels": None, "lowest": np.zeros((3, 1), np.int32), "count": 4,
    }  # fmt: skip
    assert RUST.round_with_feedback(**arguments).shape == (3, 5)
    with pytest.raises((qrs.ArgValueError, qrs.ArgTypeError), match=named):
        RUST.round_with_feedback(**{**arguments, **change})


def test_there_is_none_on_a_gpu() -> None:
    from qrs.backends.cupy import Cupy

    for call in (
        lambda gpu: gpu.cholesky(None),
        lambda gpu: gpu.matmul_float64(None, None),
        lambda gpu: gpu.round_with_feedback(None, None, None, None),
        lambda gpu: gpu.descend(None, None, None, None, None),
    ):
        with pytest.raises(qrs.DeviceError, match="there is no kernel"):
            call(Cupy(np))
