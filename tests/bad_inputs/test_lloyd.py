"""What k-means must refuse: arrays as everywhere (rows A), parameters and seeds (rows P)."""

import numpy as np
import pytest

import qrs
from refusals import noise, refused

X = noise(6, 3)


def refuses(arg: str, *, x=X, k=2, error=qrs.ArgValueError, backend="rust", **options) -> str:
    return refused(qrs.kmeans, x, k, error=error, arg=arg, backend=backend, **options)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_A_values_that_are_no_numbers(value, backend):
    x = X.copy()
    x[2, 1] = x[4, 0] = value
    message = refuses("x", x=x, backend=backend)
    assert message == f"x: 2 non-finite values, first {value} at (2, 1)"
    message = refuses("x", x=x.reshape(-1), backend=backend)
    assert message == f"x: 2 non-finite values, first {value} at (7,)"


@pytest.mark.parametrize("dtype", [np.int32, bool, complex, "U3", object])
def test_A_dtypes(dtype):
    refuses("x", x=np.ones((4, 2)).astype(dtype), error=qrs.ArgTypeError)


@pytest.mark.parametrize("shape", [(), (2, 2, 2), (3, 0)])
def test_A_shapes(shape):
    refuses("x", x=np.ones(shape, np.float32))


def test_A_no_points():
    for shape in ((0,), (0, 3)):
        message = refuses("k", x=np.ones(shape, np.float32), k=1)
        assert message == "k: got 1, expected 1 to 0, the number of points"


def test_A_numbers_whose_squares_overflow(backend):
    for x in (np.float32([[1e19, 0]]), np.float32([-1e19, 1e19]), np.float32([3e38, -3e38])):
        assert "squared distances" in refuses("x", x=x, k=1, backend=backend)
    refuses("x", x=X, k=1, init=[[1e30, 0, 0]], backend=backend)
    assert np.isfinite(qrs.kmeans(np.float32([-1e18, 1e18]), 1, backend=backend).inertia)
    refuses("x", x=np.array([1e39, 0.0]))  # overflows float32 itself


@pytest.mark.parametrize("k", [0, -1, 7, 2**70])
def test_P12_numbers_of_clusters(k):
    assert refuses("k", k=k) == f"k: got {k}, expected 1 to 6, the number of points"


@pytest.mark.parametrize("k", [2.0, "2", None, True, [2]], ids=repr)
def test_P12_numbers_of_clusters_of_other_types(k):
    refuses("k", k=k, error=qrs.ArgTypeError)


@pytest.mark.parametrize("seed", [-1, 2**64, 2**70, -(2**63)])
def test_P12_seeds_out_of_range(seed):
    assert refuses("seed", seed=seed) == (
        f"seed: got {seed}, expected an integer from 0 to 2**64 - 1"
    )


@pytest.mark.parametrize("seed", [1.0, "1", True, [1], np.float64(3)], ids=repr)
def test_P12_seeds_of_other_types(seed):
    refuses("seed", seed=seed, error=qrs.ArgTypeError)


def test_P12_no_seed_says_why():
    message = refuses("seed", seed=None, error=qrs.ArgTypeError)
    assert message.endswith("a result must be one that can be had again")


@pytest.mark.parametrize("seed", [0, 2**64 - 1, np.uint64(2**64 - 1), np.int8(3)])
def test_P12_any_other_integer_is_a_seed(seed, backend):
    one, two = (qrs.kmeans(X, 3, seed=s, backend=backend) for s in (seed, int(seed)))
    assert one.centers.tolist() == two.centers.tolist()


@pytest.mark.parametrize("arg", ["n_init", "max_iter"])
def test_P12_counts(arg):
    for value in (0, -3):
        assert refuses(arg, **{arg: value}) == f"{arg}: got {value}, expected 1 or more"
    for value in (1.5, None, "3", True):
        refuses(arg, error=qrs.ArgTypeError, **{arg: value})


def test_P12_starts_from_one_array():
    message = refuses("n_init", n_init=2, init=X[:2])
    assert message == "n_init: got 2, expected 1, since init is an array"


@pytest.mark.parametrize("tol", [-1e-9, np.nan, np.inf, -np.inf])
def test_P12_tolerances(tol):
    assert refuses("tol", tol=tol).endswith("expected a finite number, 0 or more")


@pytest.mark.parametrize("tol", ["1e-4", None, True, [0.1], 1j], ids=repr)
def test_P12_tolerances_of_other_types(tol):
    refuses("tol", tol=tol, error=qrs.ArgTypeError)


def test_P12_names_of_starts():
    for init in ("random", "", "K-MEANS++"):
        message = refuses("init", init=init)
        assert message == f"init: got {init!r}, expected 'k-means++' or centers of shape (2, 3)"
    for init in (None, {}, np.ones((2, 3), np.int32)):
        refuses("init", init=init, error=qrs.ArgTypeError)


def test_P12_shapes_of_starts(backend):
    for init in (X[:3], X[:2, :2], X[0], X[:2].reshape(-1), X[:2][None]):
        refuses("init", init=init, backend=backend)
    numbers = X[:, 0].copy()
    for init in (numbers[:3], X[:2, :2]):
        refuses("init", x=numbers, init=init, backend=backend)
    # (k,) stands for (k, 1) only where x is a vector too.
    refuses("init", x=X[:, :1], init=numbers[:2], backend=backend)
    qrs.kmeans(numbers, 2, init=numbers[:2], backend=backend)


def test_P12_starts_that_are_no_numbers(backend):
    message = refuses("init", init=[[0, 0, 0], [0, np.nan, 0]], backend=backend)
    assert message == "init: 1 non-finite value, first nan at (1, 1)"


def test_P12_weights(backend):
    for weights in (np.ones(5), np.ones((6, 1)), np.ones(()), np.ones((2, 6))):
        refuses("sample_weight", sample_weight=weights, backend=backend)
    message = refuses("sample_weight", sample_weight=[1, 0, -2.5, 1, -1, 0], backend=backend)
    assert message == "sample_weight: got -2.5 at (2,), expected none below 0"
    message = refuses("sample_weight", sample_weight=[0, -0.0, 0, 0, 0, 0], backend=backend)
    assert message == "sample_weight: got zeros alone, expected one above 0 or more"
    message = refuses("sample_weight", sample_weight=[1, 1, np.nan, 1, 1, np.inf], backend=backend)
    assert message == "sample_weight: 2 non-finite values, first nan at (2,)"
    refuses("sample_weight", sample_weight=np.full(6, 1e39), backend=backend)
    for weights in (np.ones(6, int), "heavy", np.ones(6, complex)):
        refuses("sample_weight", sample_weight=weights, error=qrs.ArgTypeError, backend=backend)


def test_inputs_are_never_changed(backend):
    x, start, weights = X.copy(), X[:2].copy(), np.float32([1, 2, 3, 4, 5, 6])
    copies = [each.copy() for each in (x, start, weights)]
    result = qrs.kmeans(x, 2, init=start, sample_weight=weights, backend=backend)
    for each, copy in zip((x, start, weights), copies, strict=True):
        assert each.tobytes() == copy.tobytes()
        assert not np.may_share_memory(result.centers, each)
