"""Observers that count values in bins, and choose a range by the counts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import backends
from ..errors import bad
from ..granularity import PerTensor
from ..schemes import Scheme
from .base import Float32, MinMax, State, qparams_of

Float64 = NDArray[np.float64]
Counts = NDArray[np.int64]

HALF = 2048
"""Bins of a histogram on each side of zero."""

NO_WIDTH = -161
"""The exponent of zeros alone: less than any bin of float32 values needs."""

MOST = 1 << 50
"""Values of a bin."""

CHUNK = 1 << 20
"""Values that are counted at once."""


class Histogram(MinMax):
    """Counts in 4096 bins, whatever the amount of data; the range is that of `MinMax`.

    Bin i holds the values in [i, i + 1) * 2^exponent, for i from -2048 to 2047. When a value falls
    outside, bins merge in pairs until it does not: as the edges lie on a grid through 0, the counts
    are those of a histogram that was made with the larger bins at once. With an `axis` each channel
    has counts of its own, in bins of one width.

    >>> h = Histogram().update([0.0, 0.5]).update([3000.0])
    >>> h.exponent, int(h.counts.sum()), int(h.counts[2048])
    (1, 3, 2)
    """

    def __init__(self, axis: int | None = None) -> None:
        super().__init__(axis)
        self.exponent = NO_WIDTH
        self.counts: Counts = np.zeros(2 * HALF, np.int64)
        """(4096,), or (channels, 4096)."""

    @property
    def centers(self) -> Float64:
        """The middle of each bin."""
        middles: Float64 = np.ldexp(np.arange(-HALF, HALF) + 0.5, self.exponent)
        return middles

    def state(self) -> State:
        return {
            **super().state(),
            "counts": self.counts.copy(),
            "exponent": np.array(self.exponent),
        }

    def _restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        super()._restore(state)
        counts, self.exponent = np.array(state["counts"]), int(state["exponent"])
        channels = () if self.axis is None or self.lo is None else self.lo.shape
        if counts.shape != (*channels, 2 * HALF) or counts.dtype != np.int64 or counts.min() < 0:
            expected = f"{(*channels, 2 * HALF)} int64, none negative"
            raise ValueError(f"counts are {counts.shape} {counts.dtype}, expected {expected}")
        seen = self.lo is not None
        if (
            not NO_WIDTH <= self.exponent <= 128
            or bool(counts.any()) != seen
            or counts.max() > MOST
        ):
            raise ValueError(f"exponent {self.exponent} and counts do not go with lo and hi")
        self.counts = counts

    def _take(self, rows: Float32) -> None:
        fresh = None
        if self.axis is not None and self.counts.ndim == 1:
            fresh = np.zeros((len(rows), 2 * HALF), np.int64)  # before anything changes
        super()._take(rows)
        self._grow(_exponent_for(float(rows.min()), float(rows.max())))
        if fresh is not None:
            self.counts = fresh
        for counts, row in zip(self.counts.reshape(-1, 2 * HALF), rows, strict=True):
            for start in range(0, row.size, CHUNK):
                part = row[start : start + CHUNK].astype(np.float64)
                bins = np.floor(np.ldexp(part, -self.exponent)).astype(np.int64)
                counts += np.bincount(bins + HALF, minlength=2 * HALF)

    def _absorb(self, other: Any) -> None:
        super()._absorb(other)
        self._grow(other.exponent)
        self.counts = self.counts + _merged(other.counts, self.exponent - other.exponent)

    def _grow(self, exponent: int) -> None:
        if exponent > self.exponent:
            self.counts = _merged(self.counts, exponent - self.exponent)
            self.exponent = exponent

    def _range(self, lo: Float32, hi: Float32, scheme: Scheme | None) -> tuple[Float32, Float32]:
        if self.axis is None:
            return self._bounds(self.counts, lo, hi, scheme)
        one = None if scheme is None else scheme.with_granularity(PerTensor())
        channels = zip(self.counts, lo, hi, strict=True)
        ends = [
            self._bounds(counts, np.asarray(a), np.asarray(b), one) for counts, a, b in channels
        ]
        low, high = np.array(ends, np.float32).reshape(-1, 2).T
        return low, high

    def _bounds(
        self, counts: Counts, lo: Float32, hi: Float32, scheme: Scheme | None
    ) -> tuple[Float32, Float32]:
        """The range of one channel."""
        return lo, hi


class Percentile(Histogram):
    """All but the outermost values: `percent` of them lie below hi, and as many above lo.

    The bounds are edges of bins, and so up to a bin too wide, never wider than what was seen.

    >>> Percentile(99.0).update(np.arange(1000.0)).range()[1]
    array(989.5, dtype=float32)
    """

    def __init__(self, percent: float = 99.99, axis: int | None = None) -> None:
        super().__init__(axis)
        if not isinstance(percent, float) or not 50 < percent <= 100:
            raise bad("percent", f"got {percent!r}", percent, "a float above 50, up to 100")
        self.percent = percent

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "percent": self.percent}

    def _bounds(
        self, counts: Counts, lo: Float32, hi: Float32, scheme: Scheme | None
    ) -> tuple[Float32, Float32]:
        # Exact: 99.9 percent of 1000 are 999, which float64 rounds up.
        needed = math.ceil(int(counts.sum()) * Fraction(str(self.percent)) / 100)
        upper = int(np.argmax(np.cumsum(counts) >= needed)) + 1 - HALF
        lower = HALF - 1 - int(np.argmax(np.cumsum(counts[::-1]) >= needed))
        low, high = np.ldexp([float(lower), float(upper)], self.exponent)
        return _clipped(low, lo), _clipped(high, hi)


class MSE(Histogram):
    """The range within which the squared error of the quantized histogram is least.

    The one to start with. Needs a scheme. 100 shrunken ranges are tried, then for the best one each
    side alone; of equal errors the wider range is taken.

    >>> x = np.append(np.linspace(-1, 1, 10_001), 8.0)
    >>> bool(MSE().update(x).qparams("int4")[0] < MinMax().update(x).qparams("int4")[0])
    True
    """

    def _bounds(
        self, counts: Counts, lo: Float32, hi: Float32, scheme: Scheme | None
    ) -> tuple[Float32, Float32]:
        if scheme is None:
            raise bad("scheme", "got None", None, "the scheme whose error is to be least")
        found = np.flatnonzero(counts)
        centers = np.clip(self.centers[found], lo, hi)
        shares = counts[found] / counts.sum()
        shrunken = np.arange(100, 0, -1) / 100
        best, left, right = np.inf, 1.0, 1.0
        for kind in range(3):
            start = left, right
            for share in shrunken:
                a, b = (share if kind != 2 else start[0]), (share if kind != 1 else start[1])
                error = _error(centers, shares, lo * np.float32(a), hi * np.float32(b), scheme)
                if error < best:
                    best, left, right = error, a, b
        return np.asarray(lo * np.float32(left)), np.asarray(hi * np.float32(right))


class Entropy(Histogram):
    """The range whose 128 levels tell least apart from all: TensorRT's calibration (Migacz, 2017).

    Of magnitudes, the histogram clipped at each threshold (its tail counted in the last bin) is
    compared by Kullback-Leibler divergence with the same, merged into 128 bins and spread again.
    It makes int8 alike to other calibrators, not good: `MSE` has less error.

    >>> x = np.append(np.linspace(-1, 1, 10_001), 8.0)
    >>> bool(Entropy().update(x).range()[1] < 8)
    True
    """

    def _bounds(
        self, counts: Counts, lo: Float32, hi: Float32, scheme: Scheme | None
    ) -> tuple[Float32, Float32]:
        folded = (counts[HALF:] + counts[:HALF][::-1]).astype(np.float64)
        last = int(np.flatnonzero(folded)[-1]) + 1
        thresholds = range(min(_KL_LEVELS, last), last + 1)
        best = min(thresholds, key=lambda bins: (_divergence(folded, bins), -bins))
        threshold = np.ldexp(float(best), self.exponent)
        return _clipped(-threshold, lo), _clipped(threshold, hi)


_KL_LEVELS = 128
_KL_SMOOTHING = 1e-4  # what empty bins take from full ones, so that no ratio is infinite


def _divergence(folded: Float64, bins: int) -> float:
    """KL(P, Q): P the first bins with the tail in the last, Q what 128 levels keep of them."""
    p = folded[:bins].copy()
    p[-1] += folded[bins:].sum()
    full = p > 0
    level = np.arange(bins) * _KL_LEVELS // bins
    sums = np.bincount(level, folded[:bins], _KL_LEVELS)
    shares = np.maximum(np.bincount(level, full, _KL_LEVELS), 1)
    q = np.where(full, (sums / shares)[level], 0.0)
    p, q = _smoothed(p), _smoothed(q)
    return float(np.sum(p * np.log(p / q)))


def _smoothed(counts: Float64) -> Float64:
    total = max(float(counts.sum()), 1.0)
    shares: Float64 = np.maximum(counts / total, _KL_SMOOTHING / len(counts))
    shares /= shares.sum()
    return shares


def _exponent_for(lo: float, hi: float) -> int:
    """The least exponent with -HALF * 2^exponent <= lo and hi < HALF * 2^exponent."""
    exponent = NO_WIDTH
    for bound, is_inside in ((-lo, True), (hi, False)):
        if bound > 0:
            mantissa, e = np.frexp(bound)  # bound = mantissa * 2^e with mantissa in [0.5, 1)
            below = is_inside and mantissa == 0.5
            exponent = max(exponent, int(e) - int(below) - (HALF.bit_length() - 1))
    return exponent


def _merged(counts: Counts, doublings: int) -> Counts:
    """The counts in bins that are 2^doublings times as wide."""
    merged = np.zeros_like(counts)
    places = (np.arange(-HALF, HALF) >> min(doublings, 62)) + HALF
    np.add.at(merged.T, places, counts.T)
    return merged


def _clipped(bound: Any, seen: Float32) -> Float32:
    """A bound between 0 and what was seen."""
    low, high = min(float(seen), 0.0), max(float(seen), 0.0)
    return np.asarray(np.clip(bound, low, high), np.float32)


def _error(centers: Float64, shares: Float64, lo: Float32, hi: Float32, scheme: Scheme) -> float:
    """The mean squared error with the parameters of a range."""
    scale, zero_point = qparams_of(np.asarray(lo), np.asarray(hi), scheme)
    x = centers.astype(np.float32)
    qt = scheme.quantize(x, backends.of(x), scale, zero_point)
    x_hat = qt.dequantize().astype(np.float64)
    return float(np.sum(shares * (centers - x_hat) ** 2))
