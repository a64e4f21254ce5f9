"""k-means in one dimension: the optimum by an independent oracle, and the same bits everywhere.

The oracle is the dynamic program over all borders, k * n^2 costs, each computed from the values of
its cluster and never from prefix sums.
"""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qrs
from nasty import FLOATS, layouts, nasty
from qrs.backends.reference import OPERATIONS, Reference
from qrs.backends.rust import Rust

REFERENCE, RUST = Reference(), Rust()
ONES = np.ones(1)


def least_inertia(x, k, weights=None) -> float:
    """The inertia of the best of all ways to cut the sorted values into k clusters or fewer."""
    x = np.asarray(x, np.float64)
    w = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    order = np.argsort(x[w > 0])
    exact = [(Fraction(v), Fraction(u)) for v, u in zip(x[w > 0][order], w[w > 0][order])]
    n = len(exact)
    cost = [[Fraction(0)] * (n + 1) for _ in range(n + 1)]
    for p in range(n):
        total = first = second = Fraction(0)
        for i, (v, u) in enumerate(exact[p:], p + 1):
            total, first, second = total + u, first + u * v, second + u * v * v
            cost[p][i] = second - first * first / total
    best = cost[0]
    for _ in range(k - 1):
        best = [min((best[p] + cost[p][i] for p in range(i)), default=0) for i in range(n + 1)]
    return float(best[n])


def check(result, x, k, weights=None) -> None:
    """Everything that `kmeans_1d` says of its result."""
    x = np.asarray(x).astype(np.float64)
    w = np.ones(x.shape) if weights is None else np.asarray(weights, np.float64)
    centers, labels, inertia, n_iter = result
    assert (centers.shape, centers.dtype) == ((k,), np.dtype(np.float64))
    assert (labels.shape, labels.dtype) == (x.shape, np.dtype(np.int32))
    assert isinstance(inertia, float) and isinstance(n_iter, int)
    assert (np.diff(centers) >= 0).all()
    assert not np.signbit(centers[centers == 0]).any()
    distances = np.abs(x[:, None] - centers)
    chosen = distances[np.arange(len(x)), labels]
    # Rounding of the middle between two centers, and of the distances themselves.
    assert (chosen <= distances.min(axis=1) + 4e-16 * np.abs(centers).max()).all()
    np.testing.assert_allclose(inertia, (w * chosen**2).sum(), rtol=1e-9, atol=1e-300)


def check_optimal(x, k, weights=None, backend=None) -> None:
    result = qrs.kmeans_1d(x, k, weights, backend=backend)
    check(result, x, k, weights)
    best = least_inertia(x, k, weights)
    w = np.ones(1) if weights is None else np.asarray(weights)
    # A center is rounded to float64, which costs the square of its rounding.
    rounding = w.sum() * len(x) * (2.0**-53 * np.abs(np.asarray(x)).max()) ** 2
    assert result.inertia <= best * (1 + 1e-10) + rounding
    assert result.inertia >= best * (1 - 1e-10)


def far_apart(random, n):
    return random.choice([0.0, 1e6, 1e6], n) + random.uniform(-1, 1, n)


FAMILIES = {
    "normal": lambda random, n: random.standard_normal(n),
    "heavy-tails": lambda random, n: random.standard_t(1.5, n),
    "grid": lambda _random, n: np.arange(n) * 0.25,
    "ties": lambda random, n: random.integers(-4, 5, n) * 1.0,
    "far-tight": far_apart,
    "further-and-tighter": lambda random, n: far_apart(random, n) * np.array([1, 100])[n % 2],
    "magnitudes": lambda random, n: 10.0 ** random.integers(-8, 9, n),
    "powers": lambda _random, n: 2.0 ** np.arange(n),
    "constant": lambda _random, n: np.full(n, 0.1),
}


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_optimum(family, weighted, backend):
    random = np.random.default_rng(len(family))
    for n in (1, 2, 3, 5, 8, 13, 20, 29):
        x = FAMILIES[family](random, n)
        weights = random.choice([0, 0.001, 0.5, 1, 2, 7], n) if weighted else None
        if weighted:
            weights[n // 2] = 1
        for k in (1, 2, 3, 4, 7, n, n + 2):
            check_optimal(x, k, weights, backend)


numbers = st.one_of(
    st.floats(-1e3, 1e3, width=32),
    st.integers(-6, 6).map(float),
    st.floats(-(2.0**100), 2.0**100, width=32),
)


@given(st.lists(numbers, min_size=1, max_size=14), st.integers(1, 8), st.data())
def test_the_optimum_of_anything(x, k, data):
    some = st.lists(st.sampled_from([1.0, 0.0, 3.0, 0.25]), min_size=len(x), max_size=len(x))
    weights = data.draw(st.none() | some.filter(any))
    check_optimal(np.array(x), k, weights)


@pytest.mark.parametrize("k", [7, 16, 100, 129, 256, 1000, 4095])
def test_integers_in_a_row(k, backend):
    """Sizes of the clusters differ by at most 1; costs are linear in k in between."""
    n = 4096
    size, larger = divmod(n, k)
    expected = ((k - larger) * (size**3 - size) + larger * ((size + 1) ** 3 - size - 1)) / 12
    x = np.random.default_rng(k).permutation(n).astype(np.float32)
    assert qrs.kmeans_1d(x, k, backend=backend).inertia == expected


def test_far_and_tight_clusters_of_many_values(backend):
    """Prefix sums of squares up to 1e16 would lose what separates these clusters."""
    random = np.random.default_rng(2)
    tight = random.standard_normal(500)
    for far in (0.0, 2.0**20, 2.0**40):
        x = np.concatenate([tight - far, tight + far]) if far else tight
        found = qrs.kmeans_1d(x, 16 if far else 8, backend=backend)
        if not far:
            half = found.inertia
            continue
        np.testing.assert_allclose(found.inertia, 2 * half, rtol=1e-3 if far > 1e9 else 1e-9)


# ---- The same bits -------------------------------------------------------------------------------


def bits(result) -> list:
    return [None if part is None else (part.dtype, part.shape, part.tobytes()) for part in result]


def same(x, k, weights=None) -> None:
    expected = bits(REFERENCE.kmeans_1d(x, k, weights, True))
    assert bits(RUST.kmeans_1d(x, k, weights, True)) == expected
    assert bits(RUST.kmeans_1d(x, k, weights, False)) == [expected[0], None, *expected[2:]]


@pytest.mark.parametrize("dtype", [*FLOATS, "float64"])
def test_nasty_arrays(dtype, level, monkeypatch):
    for op in OPERATIONS:
        if op != "kmeans_1d":
            monkeypatch.setattr(Reference, op, None)
    for x in nasty("float32" if dtype == "float64" else dtype).values():
        if not x.size:
            continue
        if dtype == "float64":
            x = x.astype(np.float64) * 2.0**900
        weights = np.random.default_rng(x.size).choice([0, 1e-30, 0.3, 1, 1e30], x.shape)
        weights[:, -1] = 1
        for k in (1, 2, 5, 40):
            same(x, k)
            same(x, k, weights)
            same(x, k, weights[-1:])


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(
    ("shape", "dtype", "k"),
    [
        ((40, 700), "float32", 16),
        ((3, 5000), "float64", 40),
        ((1, 40_000), "bfloat16", 16),
        ((1, 40_000), "float16", 7),
        ((2, 33_000), "float32", 5),
    ],
)
def test_threads_and_ways_to_sort(shape, dtype, k, threads, level, keep_threads):
    """Sorted or counted, by rows or by pieces of one."""
    qrs.set_num_threads(threads)
    random = np.random.default_rng(threads)
    x = random.standard_t(3, shape).astype(FLOATS.get(dtype, np.float64))
    same(x, k)
    same(x, k, random.random(shape))


def test_bfloat16_values_in_float32_give_the_same(level):
    x = np.random.default_rng(9).standard_normal((1, 50_000)).astype(ml_dtypes.bfloat16)
    for weights in (None, np.random.default_rng(8).random((1, 50_000))):
        narrow, wide = (RUST.kmeans_1d(v, 16, weights, True) for v in (x, x.astype(np.float32)))
        assert bits(narrow) == bits(wide)


# ---- The public function -------------------------------------------------------------------------


def test_a_matrix_is_its_rows(backend):
    x = np.random.default_rng(0).standard_normal((5, 60), np.float32)
    weights = np.random.default_rng(1).random((5, 60))
    for given_weights in (None, weights, weights[0]):
        whole = qrs.kmeans_1d(x, 4, given_weights, backend=backend)
        assert [part.shape for part in whole] == [(5, 4), (5, 60), (5,), (5,)]
        for row in range(5):
            w = given_weights if given_weights is None or given_weights.ndim == 1 else weights[row]
            single = qrs.kmeans_1d(x[row], 4, w, backend=backend)
            assert all(np.array_equal(a[row], b) for a, b in zip(whole, single))
    empty = qrs.kmeans_1d(np.zeros((0, 3)), 4, backend=backend)
    assert [part.shape for part in empty] == [(0, 4), (0, 3), (0,), (0,)]


def test_layouts_and_order_of_points():
    x = np.random.default_rng(0).standard_normal((5, 60), np.float32)
    expected = bits(qrs.kmeans_1d(x, 4))
    for name, same_values in layouts(x):
        assert bits(qrs.kmeans_1d(same_values, 4)) == expected, name


def test_fewer_values_than_centers(backend):
    found = qrs.kmeans_1d([3.0, -0.0, 3.0, 0.0], 4, backend=backend)
    assert found.centers.tolist() == [0.0, 3.0, 3.0, 3.0]
    assert not np.signbit(found.centers[0])
    assert (found.labels.tolist(), found.inertia, found.n_iter) == ([1, 0, 1, 0], 0.0, 0)


def test_points_without_weight_get_a_label_and_move_nothing(backend):
    x, weights = [0.0, 1.0, 4.0, 9.0, 10.0, 5.0], [1, 1, 0, 1, 1, 0]
    found = qrs.kmeans_1d(x, 2, weights, backend=backend)
    assert (found.centers.tolist(), found.inertia) == ([0.5, 9.5], 1.0)
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 0]  # 5.0 is as far from both


def test_float64_is_not_narrowed(backend):
    found = qrs.kmeans_1d(np.array([1.0, 1 + 2.0**-40, 2.0]), 2, backend=backend)
    assert found.centers.tolist() == [1 + 2.0**-41, 2.0]
    assert qrs.kmeans_1d([1e200, -1e200, 3e200], 2, backend=backend).centers[1] == 2e200
    assert qrs.kmeans_1d([5e-324, 0.0], 1, backend=backend).inertia == 0.0


def test_weights_of_any_real_dtype(backend):
    x, weights = [1.0, 2.0, 10.0, 12.0], [1, 2, 3, 1]
    expected = bits(qrs.kmeans_1d([x], 2, np.array([weights], np.float64), backend=backend))
    for dtype in (np.int8, np.uint64, np.float16, ml_dtypes.bfloat16, ">f4"):
        given_weights = np.array([weights]).astype(dtype)
        assert bits(qrs.kmeans_1d([x], 2, given_weights, backend=backend)) == expected
    scaled = qrs.kmeans_1d(x, 2, np.array(weights) * 2.0**800, backend=backend)
    assert scaled.inertia == qrs.kmeans_1d(x, 2, weights, backend=backend).inertia * 2.0**800


@pytest.mark.parametrize("family", FAMILIES)
def test_no_peer_finds_better(family):
    peers = []
    random = np.random.default_rng(11)
    x = FAMILIES[family](random, 1000).astype(np.float64)
    k = min(16, len(np.unique(x)))
    try:
        import kmeans1d

        clusters, centers = kmeans1d.cluster(x, k)
        peers.append(((x - np.array(centers)[clusters]) ** 2).sum())
    except ImportError:
        pass
    try:
        from sklearn.cluster import KMeans

        peers.append(KMeans(k, n_init=10, random_state=0).fit(x[:, None]).inertia_)
    except ImportError:
        pass
    if not peers:
        pytest.skip("neither kmeans1d nor scikit-learn is installed")
    assert qrs.kmeans_1d(x, k).inertia <= min(peers) * (1 + 1e-9) + 1e-26 * np.abs(x).max() ** 2
