"""What `qrs.kmeans_1d` refuses: each argument by its name, values by their first index."""

import numpy as np
import pytest

import qrs
from refusals import refused

X = np.random.default_rng(5).standard_normal((4, 64), np.float32)


@pytest.mark.parametrize("k", [0, -1, 2**20 + 1, 10**30])
def test_numbers_of_clusters(k, backend):
    message = refused(qrs.kmeans_1d, X, k, arg="k", backend=backend)
    assert message == f"k: got {k}, expected an integer from 1 to 1048576"


@pytest.mark.parametrize("k", [2.0, "2", None, True, np.float32(2), [2]])
def test_numbers_of_clusters_that_are_no_integers(k):
    refused(qrs.kmeans_1d, X, k, error=qrs.ArgTypeError, arg="k")


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3, 4)])
def test_shapes(shape):
    refused(qrs.kmeans_1d, np.ones(shape, np.float32), 2, arg="x")


@pytest.mark.parametrize("dtype", [np.int32, bool, complex, "U3", np.longdouble])
def test_dtypes(dtype):
    refused(qrs.kmeans_1d, np.ones(4).astype(dtype), 2, error=qrs.ArgTypeError, arg="x")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_values_that_are_not_finite(value, dtype, backend):
    x = X.astype(dtype)
    x[2, 7] = x[3, 1] = value
    message = refused(qrs.kmeans_1d, x, 2, arg="x", backend=backend)
    assert message == f"x: 2 non-finite values, first {value} at (2, 7)"
    weights = np.ones(64)
    weights[[1, 7]] = 0
    assert refused(qrs.kmeans_1d, x, 2, weights, arg="x", backend=backend) == message


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1.0, "sample_weight: -1.0 at (1, 3), expected weights of 0 or more"),
        (np.nan, "sample_weight: 1 non-finite value, first nan at (1, 3)"),
        (np.inf, "sample_weight: 1 non-finite value, first inf at (1, 3)"),
    ],
)
def test_weights(value, message):
    weights = np.ones(X.shape)
    weights[1, 3] = value
    assert refused(qrs.kmeans_1d, X, 2, weights, arg="sample_weight") == message


def test_weights_that_are_all_zero(backend):
    weights = np.ones(X.shape)
    weights[2] = -0.0
    message = refused(qrs.kmeans_1d, X, 2, weights, arg="sample_weight", backend=backend)
    assert message == "sample_weight: all weights of row 2 are 0, expected a positive one"
    message = refused(qrs.kmeans_1d, X, 2, weights[2], arg="sample_weight", backend=backend)
    assert message == "sample_weight: all weights are 0, expected a positive one"


@pytest.mark.parametrize("shape", [(), (1,), (4,), (63,), (4, 1), (1, 64), (64, 4), (1, 4, 64)])
def test_shapes_of_weights(shape):
    message = refused(qrs.kmeans_1d, X, 2, np.ones(shape), arg="sample_weight")
    assert message == f"sample_weight: got shape {shape}, expected (4, 64) or (64,)"


@pytest.mark.parametrize("dtype", [bool, complex, "U3", object, np.longdouble])
def test_dtypes_of_weights(dtype):
    weights = np.ones(64).astype(dtype)
    refused(qrs.kmeans_1d, X, 2, weights, error=qrs.ArgTypeError, arg="sample_weight")


def test_arrays_of_a_gpu_are_refused():
    from qrs.backends.cupy import Cupy

    with pytest.raises(qrs.DeviceError, match=r"no kernel; fix: qrs.kmeans_1d\(cupy.asnumpy"):
        Cupy.kmeans_1d(object.__new__(Cupy), X, 2, None, True)
