"""Observers: ranges from batches, in any split and order."""

import numpy as np
import pytest

import qrs
from qrs.observers import MSE, Entropy, Histogram, MinMax, MovingAverage, Percentile
from qrs.observers.histogram import HALF

EXACT = (MinMax, Histogram, Percentile, MSE, Entropy)


def values(seed: int = 0) -> np.ndarray:
    """Eight magnitudes, zeros, and the powers of two that are edges of bins."""
    random = np.random.default_rng(seed)
    x = random.standard_normal(3000) * 10.0 ** random.integers(-6, 3, 3000)
    return np.concatenate([x, [0.0, -0.0, 1024.0, -2048.0, 1e-45]]).astype(np.float32)


def state(observer) -> tuple:
    found = [float(observer.lo), float(observer.hi)]
    if isinstance(observer, Histogram):
        found += [observer.exponent, observer.counts.tolist()]
    return tuple(found)


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("order", range(4))
def test_split_order_and_merging_change_nothing(kind, order):
    x = values()
    whole = kind().update(x)
    random = np.random.default_rng(order)
    parts = np.split(random.permutation(x), np.sort(random.integers(0, x.size, 9)))
    apart = kind()
    halves = kind(), kind()
    for i, part in enumerate(parts):
        apart.update(part)
        halves[i % 2].update(part)
    assert state(apart) == state(whole)
    assert state(halves[1].merge(halves[0])) == state(whole)
    assert apart.qparams("uint8") == whole.qparams("uint8")


def test_histogram_counts_are_those_of_numpy():
    x = values()
    h = Histogram().update(x)
    assert h.exponent == 0  # -2048 is the lower end of the lowest bin
    edges = np.arange(-HALF, HALF + 1, dtype=np.float64)
    assert h.counts.tolist() == np.histogram(x.astype(np.float64), edges)[0].tolist()


@pytest.mark.parametrize(
    ("x", "exponent"),
    [([2048.0], 1), ([-2048.0], 0), ([-2048.0, 2048.0], 1), ([2047.9], 0), ([0.0], -161)],
)
def test_the_width_is_the_least_that_holds_the_range(x, exponent):
    h = Histogram().update(x)
    assert h.exponent == exponent
    assert h.counts.sum() == len(x)


@pytest.mark.parametrize("x", [[1e-45], [3.4028235e38, -3.4028235e38], [-1e-45, 3.4e38]])
def test_every_float32_has_a_bin(x):
    assert Histogram().update(np.array(x, np.float32)).counts.sum() == len(x)


@pytest.mark.parametrize("scheme", ["int8", "uint8", "int4", "int8-asym"])
def test_min_max_is_what_quantize_would_choose(scheme):
    x = values()
    scale, zero_point = MinMax().update(x).qparams(scheme)
    qt = qrs.quantize(x, scheme)
    assert scale == qt.scale
    assert zero_point == qt.zero_point


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_channels_have_ranges_of_their_own(axis):
    x = np.random.default_rng(1).standard_normal((4, 5, 6), np.float32)
    observer = MinMax(axis).update(x[:, :, :]).update(x * 0.5)
    rows = np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)
    qt = qrs.quantize(rows, "int8-axis0-asym")
    scale, zero_point = observer.qparams("int8-axis0-asym")
    assert scale.tolist() == qt.scale.tolist()
    assert zero_point.tolist() == qt.zero_point.tolist()


def test_moving_average_by_hand():
    observer = MovingAverage(momentum=0.25).update([-4.0, 8.0]).update([-8.0, 4.0])
    assert [float(bound) for bound in observer.range()] == [-5.0, 7.0]
    with pytest.raises(qrs.ArgValueError, match="other"):
        observer.merge(MovingAverage(momentum=0.25).update([1.0]))


def test_percentile_by_hand():
    """Of 100 values from -50 to 49 the outermost one on each side: bins are 1/32 wide."""
    lo, hi = Percentile(99.0).update(np.arange(-50.0, 50.0)).range()
    assert (float(lo), float(hi)) == (-49.0, 48.03125)
    assert [float(b) for b in Percentile(100.0).update([3.0]).range()] == [0.0, 3.0]


@pytest.mark.parametrize("scheme", ["int8", "uint8", "int4", "uint4"])
@pytest.mark.parametrize("df", [3, 30])
def test_mse_has_less_error_than_min_max(scheme, df):
    x = np.random.default_rng(2).standard_t(df, 50_000).astype(np.float32)

    def sqnr(observer) -> float:
        scale, zero_point = observer.update(x).qparams(scheme)
        qt = qrs.quantize(x, scheme, scale=scale, zero_point=zero_point)
        return qrs.metrics.sqnr_db(x, qt.dequantize())

    assert sqnr(MSE()) >= sqnr(MinMax()) + (0.4 if df == 3 else 0.0)


@pytest.mark.parametrize(
    ("draw", "figures"),
    [
        (lambda random, n: random.standard_normal(n), (39.4, 39.9, 40.5)),
        (lambda random, n: random.laplace(size=n), (34.5, 34.0, 35.6)),
        (lambda random, n: random.standard_t(3, n), (21.7, 16.6, 23.7)),
    ],
    ids=["gauss", "laplace", "t3"],
)
def test_int8_of_200_000_samples(draw, figures):
    """Prototypes, other samples: MSE is best; KL gains on Gaussians and loses on long tails."""
    x = draw(np.random.default_rng(0), 200_000).astype(np.float32)
    found = []
    for kind in (MinMax, Entropy, MSE):
        scale, _ = kind().update(x).qparams("int8")
        found.append(qrs.metrics.sqnr_db(x, qrs.quantize(x, "int8", scale=scale).dequantize()))
    assert found[2] >= max(found[:2])
    # Other samples of long tails have other extremes.
    assert all(abs(sqnr - figure) < 2.0 for sqnr, figure in zip(found, figures, strict=True))


@pytest.mark.parametrize("kind", [*EXACT, MovingAverage])
def test_p15_nothing_seen(kind):
    for observer in (kind(), kind().update(np.zeros((0, 4), np.float32))):
        with pytest.raises(qrs.ArgValueError, match="observer: has seen no data"):
            observer.qparams("int8")


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_p15_channels_without_values(shape):
    with pytest.raises(qrs.ArgValueError, match="observer: has seen no data"):
        MinMax(0).update(np.zeros(shape, np.float32)).range()


@pytest.mark.parametrize("kind", [*EXACT, MovingAverage])
def test_p15_all_zeros_and_one_value(kind):
    assert kind().update(np.zeros(9, np.float32)).qparams("int8")[0] == 1
    assert kind().update([254.0]).qparams("int8")[0] == 2


@pytest.mark.parametrize("kind", [*EXACT, MovingAverage])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_p15_nonfinite_names_the_batch_and_changes_nothing(kind, bad):
    observer = kind().update([1.0, -2.0])
    before = state(observer)
    x = np.zeros((3, 4), np.float32)
    x[1, 2] = bad
    with pytest.raises(qrs.ArgValueError, match=r"layer 3, batch 7: 1 non-finite value.*\(1, 2\)"):
        observer.update(x, "layer 3, batch 7")
    assert state(observer) == before


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: MinMax("0"), "axis"),
        (lambda: MinMax(2).update([[1.0]]), "axis"),
        (lambda: MinMax(0).update([[1.0]]).update([[1.0], [2.0]]), "2 channels"),
        (lambda: MinMax(0).merge(MinMax(1)), "other"),
        (lambda: MinMax().merge(Histogram()), "other"),
        (lambda: Percentile(99.0).merge(Percentile(98.0)), "other"),
        (lambda: Percentile(120.0), "percent"),
        (lambda: MovingAverage(momentum=0.0), "momentum"),
        (lambda: MinMax().update(np.array([1, 2])), "x"),
        (lambda: MinMax().update([1.0]).qparams("int8-axis0"), "scheme"),
        (lambda: MSE().update([1.0]).range(), "scheme"),
    ],
)
def test_bad_arguments(call, match):
    with pytest.raises(qrs.QrsError, match=match):
        call()


@pytest.mark.parametrize(("percent", "count"), [(99.9, 1000), (99.9, 10_000), (55.0, 100)])
def test_a_percentile_leaves_out_as_many_as_it_says(percent: float, count: int) -> None:
    """99.9 percent of 1000 values are 999, although 99.9 / 100 * 1000 is more in float64."""
    left_out = round(count * (1 - percent / 100))
    x = np.append(np.linspace(0, 1, count - left_out), np.full(left_out, 1000.0))
    assert qrs.observers.Percentile(percent).update(x).range()[1] <= 1.5
