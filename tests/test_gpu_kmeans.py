"""`qrs.kmeans` on CuPy arrays, with a stand-in for CuPy (see test_gpu_arrays.py)."""

import numpy as np
import pytest

import qrs
from cuda_cpu import fake_cupy
from test_gpu_arrays import gpu  # noqa: F401 (a fixture)
from test_lloyd import blobs


@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("device", [0, 1])
def test_results_are_those_of_numpy(d, weighted, device):
    """numpy adds in another order than the reference: centers may differ in their last bit."""
    x = blobs(20_000, d)
    weights = np.random.default_rng(2).random(len(x), np.float32) if weighted else None
    expected = qrs.kmeans(x, 8, sample_weight=weights)
    with fake_cupy.cuda.Device(device):
        there = fake_cupy.asarray(x)
        weights = None if weights is None else fake_cupy.asarray(weights)
    result = qrs.kmeans(there, 8, sample_weight=weights)
    for part, wanted in zip(result[:2], expected[:2], strict=True):
        assert type(part) is fake_cupy.ndarray and part.device.id == device
        assert (part.dtype, part.shape) == (wanted.dtype, wanted.shape)
    assert result.centers.get() == pytest.approx(expected.centers, rel=2.0**-22)
    assert (result.labels.get() == expected.labels).mean() > 0.999
    assert result.inertia == pytest.approx(expected.inertia, rel=1e-6)


def test_empty_clusters_are_relocated_there():
    x = fake_cupy.asarray(np.float32([[0, 1], [0, 2], [0, 10]]))
    start = fake_cupy.asarray(np.float32([[0, 0], [0, -100]]))
    result = qrs.kmeans(x, 2, init=start)
    assert result.centers.tolist() == [[0, 1.5], [0, 10]]
    assert result.labels.tolist() == [0, 0, 1]


def test_errors_there():
    x = fake_cupy.asarray(np.float32([[1, 2], [np.nan, 3]]))
    with pytest.raises(qrs.ArgValueError, match=r"first nan at \(1, 0\)"):
        qrs.kmeans(x, 1)
    fine = fake_cupy.asarray(np.float32([1, 2, 4]))
    with pytest.raises(qrs.ArgValueError, match=r"got -1.0 at \(1,\)"):
        qrs.kmeans(fine, 1, sample_weight=fake_cupy.asarray(np.float32([1, -1, 1])))
    with pytest.raises(qrs.DeviceError):
        qrs.kmeans(fine, 2, init=np.float32([1, 2]))
    with fake_cupy.cuda.Device(1):
        elsewhere = fake_cupy.asarray(np.float32([1, 1, 1]))
    with pytest.raises(qrs.DeviceError, match="device"):
        qrs.kmeans(fine, 2, sample_weight=elsewhere)
