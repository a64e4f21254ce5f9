"""`qrs.kmeans`: worked numbers, what Lloyd's algorithm promises, and scikit-learn beside it."""

from itertools import pairwise

import numpy as np
import pytest

import qrs
from kernel_calls import bits_of
from nasty import FLOATS, layouts
from qrs import _qrs
from qrs.clustering.lloyd import _relocated


def blobs(n: int, d: int, count: int = 8, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng((n, d, seed))
    centers = rng.standard_normal((count, d)) * 10
    return (centers[rng.integers(0, count, n)] + rng.standard_normal((n, d))).astype(np.float32)


def inertia_of(x, centers, labels, weights=1.0) -> float:
    squares = (x.astype(np.float64) - centers.astype(np.float64)[labels]) ** 2
    return float((squares.sum(axis=1) * weights).sum())


# ---- Worked by hand ------------------------------------------------------------------------------


def test_two_steps_by_hand(backend):
    """(0, 0) and (4, 0) take the first three points and the last; the means are (1, 1) and (5, 0);
    then (2, 3), at distances of sqrt(5) and sqrt(18), stays, and nothing moves."""
    x = np.float32([[0, 0], [1, 0], [2, 3], [5, 0]])
    result = qrs.kmeans(x, 2, init=[[0, 0], [4, 0]], backend=backend)
    assert result.centers.tolist() == [[1, 1], [5, 0]]
    assert result.labels.tolist() == [0, 0, 0, 1]
    assert result.inertia == (1 + 1) + 1 + (1 + 4)
    assert result.n_iter == 1
    assert (result.centers.dtype, result.labels.dtype) == (np.float32, np.int32)
    assert (type(result.inertia), type(result.n_iter)) == (float, int)


def test_weights_by_hand(backend):
    """The mean of 0, and 3 with three times its weight, is 2.25; 0.75^2 * 3 + 2.25^2 = 6.75."""
    result = qrs.kmeans([0.0, 3.0, 9.0], 2, sample_weight=[1, 3, 2], init=[9, 0], backend=backend)
    assert result.centers.tolist() == [[2.25], [9]]
    assert result.labels.tolist() == [0, 0, 1]
    assert result.inertia == 6.75


def test_an_empty_cluster_takes_the_farthest_point(backend):
    """All are nearest to 0 at first: 10, the farthest, becomes the cluster of -100."""
    result = qrs.kmeans([[0.0, 1], [0, 2], [0, 10]], 2, init=[[0, 0], [0, -100]], backend=backend)
    assert result.centers.tolist() == [[0, 1.5], [0, 10]]
    assert result.labels.tolist() == [0, 0, 1]
    assert result.inertia == 0.5


def test_which_points_are_relocated():
    labels, distances = np.int32([0, 0, 2, 0]), np.float32([4, 9, 9, 1])
    assert _relocated(labels, distances, None, [1, 3]).tolist() == [0, 1, 3, 0]
    weights = np.float32([1, 0, 1, 1])
    assert _relocated(labels, distances, weights, [1, 3]).tolist() == [3, 0, 1, 0]
    assert _relocated(labels, distances * 0, None, [1, 3]).tolist() == labels.tolist()
    assert labels.tolist() == [0, 0, 2, 0] and distances.tolist() == [4, 9, 9, 1]


# ---- What it promises ----------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 8, 17])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_reference_and_rust_are_equal(d, weighted):
    x = blobs(3000, d)
    weights = np.random.default_rng(d).random(len(x)) if weighted else None
    for k in (1, 5, 60):
        found = [
            qrs.kmeans(x, k, sample_weight=weights, seed=7, n_init=2, backend=backend)
            for backend in ("reference", "rust")
        ]
        assert bits_of(tuple(found[0])) == bits_of(tuple(found[1]))


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(("d", "k"), [(1, 300), (1, 16), (3, 40)])
def test_the_same_seed_gives_the_same_bits(d, k, threads, level, keep_threads):
    x = blobs(40_000, d)
    options = {"max_iter": 5, "seed": 2**64 - 1}
    expected = qrs.kmeans(x, k, **options)
    _qrs.set_num_threads(threads)
    assert bits_of(tuple(qrs.kmeans(x, k, **options))) == bits_of(tuple(expected))
    assert qrs.kmeans(x, k, max_iter=5, seed=1).centers.tolist() != expected.centers.tolist()


@pytest.mark.parametrize("d", [1, 2, 8, 17])
def test_labels_are_of_the_nearest_and_centers_the_means(d, backend):
    x = blobs(2000, d)
    centers, labels, inertia, n_iter = qrs.kmeans(x, 6, tol=0, backend=backend)
    squares = ((x[:, None].astype(np.float64) - centers[None]) ** 2).sum(axis=2)
    assert (squares[np.arange(len(x)), labels] <= squares.min(axis=1) * (1 + 2.0**-20)).all()
    for cluster in range(6):
        # One rounding to float32; the order of the float64 sum can tip it to the neighbour.
        mean = x[labels == cluster].astype(np.float64).mean(axis=0)
        assert (np.abs(centers[cluster] - mean) <= np.spacing(np.abs(centers[cluster]))).all()
    assert inertia == pytest.approx(inertia_of(x, centers, labels), rel=2.0**-20)  # float32 squares
    assert 1 <= n_iter < 300


@pytest.mark.parametrize("d", [1, 2, 17])
@pytest.mark.parametrize("k", [3, 50])
def test_inertia_never_grows(d, k, backend):
    x = blobs(1500, d)
    start = x[:k] if d > 1 else x[:k, 0]
    points = x if d > 1 else x[:, 0]
    inertias = [
        qrs.kmeans(points, k, init=start, max_iter=i, tol=0, backend=backend).inertia
        for i in range(1, 12)
    ]
    # Centers are rounded to float32, and squares are float32.
    assert all(b <= a * (1 + 2.0**-20) for a, b in pairwise(inertias))


def test_more_starts_are_never_worse(backend):
    x = blobs(400, 2, count=30)
    inertias = [qrs.kmeans(x, 30, n_init=n, seed=5, backend=backend).inertia for n in (1, 2, 5, 10)]
    assert inertias == sorted(inertias, reverse=True)


@pytest.mark.parametrize("max_iter", [1, 3])
def test_max_iter_is_kept_to(max_iter, backend):
    result = qrs.kmeans(blobs(3000, 2), 40, max_iter=max_iter, tol=0, backend=backend)
    assert result.n_iter == max_iter


def test_a_large_tolerance_ends_after_one_step(backend):
    assert qrs.kmeans(blobs(3000, 2), 40, tol=1e9, backend=backend).n_iter == 1


# ---- Shapes and values at their ends -------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1,), (1, 1), (1, 3)])
def test_one_point(shape, backend):
    x = np.full(shape, 2.5, np.float32)
    centers, labels, inertia, n_iter = qrs.kmeans(x, 1, backend=backend)
    assert centers.tolist() == x.reshape(1, -1).tolist()
    assert (labels.tolist(), inertia, n_iter) == ([0], 0.0, 1)


@pytest.mark.parametrize("d", [1, 2, 8])
def test_as_many_centers_as_points(d, backend):
    x = blobs(40, d)
    result = qrs.kmeans(x, 40, backend=backend)
    assert result.inertia == 0
    assert sorted(result.labels.tolist()) == list(range(40))
    assert (result.centers[result.labels] == x).all()


@pytest.mark.parametrize("d", [1, 3])
def test_more_centers_than_different_points(d, backend):
    x = np.repeat(np.float32([[1], [2]]), d, axis=1)[[0, 1, 0, 1, 1]]
    result = qrs.kmeans(x, 4, backend=backend)
    assert result.inertia == 0 and np.isfinite(result.centers).all()
    assert (result.centers[result.labels] == x).all()
    weights = [0, 1, 0, 1, 0]
    assert qrs.kmeans(x, 3, sample_weight=weights, backend=backend).inertia == 0


def test_numbers_are_points_of_one_column(backend):
    x = blobs(5000, 1)
    one, two = (qrs.kmeans(each, 9, backend=backend) for each in (x, x[:, 0]))
    assert bits_of(tuple(one)) == bits_of(tuple(two))
    assert one.centers.shape == (9, 1) and (np.diff(one.centers[:, 0]) > 0).all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_dtypes_widen(dtype, backend):
    x = blobs(500, 4).astype(FLOATS[dtype])
    narrow, wide = (
        qrs.kmeans(each, 5, backend=backend)
        for each in (x, x.astype(np.float32).astype(np.float64))
    )
    assert bits_of(tuple(narrow)) == bits_of(tuple(wide))


def test_layouts(backend):
    x = blobs(66, 5)
    expected = bits_of(tuple(qrs.kmeans(x, 3, backend=backend)))
    for name, same in layouts(x):
        before = np.array(same, copy=True)
        assert bits_of(tuple(qrs.kmeans(same, 3, backend=backend))) == expected, name
        assert np.array_equal(same, before)


@pytest.mark.parametrize("scale", [2.0**-20, 2.0**30])
def test_powers_of_two_change_nothing(scale, backend):
    x = blobs(1000, 3)
    one, other = (qrs.kmeans(each, 6, backend=backend) for each in (x, x * np.float32(scale)))
    assert (one.labels == other.labels).all()
    assert (one.centers * np.float32(scale) == other.centers).all()


def test_weights_count_points(backend):
    x, counts = np.round(blobs(300, 2)), np.random.default_rng(0).integers(0, 4, 300)
    start = x[np.flatnonzero(counts)[:5]]
    weighted = qrs.kmeans(x, 5, sample_weight=counts.astype(np.float32), init=start)
    repeated = qrs.kmeans(np.repeat(x, counts, axis=0), 5, init=start, tol=0)
    assert (weighted.centers == repeated.centers).all()
    assert (np.repeat(weighted.labels, counts) == repeated.labels).all()
    assert weighted.inertia == pytest.approx(repeated.inertia)


def test_points_without_weight_are_no_start(backend):
    x, weights = blobs(200, 2), np.zeros(200, np.float32)
    weights[150:160] = 1
    for seed in range(5):
        options = {"sample_weight": weights, "seed": seed, "backend": backend}
        assert qrs.kmeans(x, 10, **options).inertia == 0


# ---- scikit-learn --------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 8, 17])
@pytest.mark.parametrize("weighted", [False, True])
def test_scikit_learn_finds_nothing_better(d, weighted):
    cluster = pytest.importorskip("sklearn.cluster")
    x = blobs(4000, d)
    weights = np.random.default_rng(1).random(len(x)).astype(np.float32) if weighted else None
    peer = cluster.KMeans(20, init=x[:20], n_init=1, tol=0).fit(x, sample_weight=weights)
    result = qrs.kmeans(x, 20, init=x[:20], sample_weight=weights, tol=0)
    found = inertia_of(x, result.centers, result.labels, 1.0 if weights is None else weights)
    order = np.argsort(peer.cluster_centers_[:, 0]) if d == 1 else slice(None)
    theirs = inertia_of(x, peer.cluster_centers_, peer.labels_, 1.0 if weights is None else weights)
    # Its distances are float32 too, from a product of matrices: a point in the middle may differ.
    assert found <= theirs * (1 + 1e-4)
    assert result.centers == pytest.approx(peer.cluster_centers_[order], abs=0.05)


def test_k_means_plus_plus_is_as_good_as_theirs():
    cluster = pytest.importorskip("sklearn.cluster")
    x = blobs(2000, 2, count=25)
    ours = [qrs.kmeans(x, 25, seed=seed).inertia for seed in range(12)]
    theirs = [cluster.KMeans(25, n_init=1, random_state=s).fit(x).inertia_ for s in range(12)]
    assert np.median(ours) <= np.median(theirs) * 1.1
