"""Observers: the range of an activation, from the batches that pass by.

`update` shows an observer a batch, `merge` adds what another one of its kind saw, and `qparams`
gives the scale and zero point that a scheme makes of the range. But for `MovingAverage` the result
depends on the values alone, not on how they were split into batches, nor on their order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from . import backends
from .arrays import as_input, as_kernel_float, nonfinite_error, plain, refuse_on_gpu
from .checks import checked_integer
from .errors import ArgTypeError, KernelFault, bad
from .granularity import PerAxis, PerTensor
from .schemes import Scheme, as_scheme

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Same = TypeVar("Same", bound="Observer")
Kind = TypeVar("Kind", bound="Percentile")

HALF = 2048
"""Bins of a histogram on each side of zero."""


class Observer(ABC):
    """What all observers share. `axis` gives each index of that axis a range of its own."""

    def __init__(self, axis: int | None = None) -> None:
        self.axis = None if axis is None else checked_integer(axis, "axis")
        self.lo: Float32 | None = None
        """The least value so far, and 0: shape (), or (channels,)."""
        self.hi: Float32 | None = None
        """The greatest value so far, and 0."""

    def update(self: Same, x: Any, name: str = "x") -> Same:
        """Take in a batch: an array of floats, any shape, not changed.

        NaN and infinities are an `ArgValueError` that calls the batch `name`, and after any error
        the observer is what it was. A batch without values changes nothing.
        """
        array = as_input(plain(x, name), name)
        refuse_on_gpu(array, name)
        values = as_kernel_float(array, name).astype(np.float32, copy=False)
        if not np.isfinite(values).all():
            raise nonfinite_error(values, name)
        rows = self._rows(values, name)
        if values.size:
            self._take(rows)
        return self

    def merge(self: Same, other: Same) -> Same:
        """Take in all that `other`, of the same kind and settings, has seen."""
        if type(other) is not type(self) or other.axis != self.axis:
            expected = f"{type(self).__name__} with axis={self.axis}"
            raise bad("other", f"got {other!r}", other, expected, ArgTypeError)
        if other.lo is not None:
            self._check_channels(len(other.lo) if self.axis is not None else None, "other")
            self._absorb(other)
        return self

    def range(self, scheme: Scheme | None = None) -> tuple[Float32, Float32]:
        """The range that shall be representable: lo <= 0 <= hi, of shape () or (channels,).

        Without data an `ArgValueError`.
        """
        if self.lo is None or self.hi is None:
            raise bad("observer", "has seen no data", None, "update() with a batch of values")
        return self._range(self.lo, self.hi, scheme)

    def qparams(self, scheme: Scheme | str) -> tuple[Any, Any]:
        """Scale (float32) and zero point (or None) of `scheme` for the range, of shape () or (n,).

        The scheme is per tensor, or per axis where the observer is.

        >>> scale, zero_point = MinMax().update([-1.0, 4.1]).qparams("uint8")
        >>> bool(scale == np.float32(5.1) / np.float32(255)), int(zero_point)
        (True, 50)
        """
        scheme = as_scheme(scheme)
        expected = PerTensor if self.axis is None else PerAxis
        if not isinstance(scheme.granularity, expected):
            raise bad("scheme", f"got {scheme}", str(scheme), f"one that is {expected.__name__}")
        lo, hi = self.range(scheme)
        return _qparams_of(lo, hi, scheme)

    def __repr__(self) -> str:
        if self.lo is None or self.hi is None:
            return f"{type(self).__name__}(no data)"
        return f"{type(self).__name__}(lo={self.lo.tolist()}, hi={self.hi.tolist()})"

    def _rows(self, values: Float32, name: str) -> Float32:
        """The values as (channels, n), or as (1, n) without an axis."""
        if self.axis is None:
            return values.reshape(1, -1)
        if not -values.ndim <= self.axis < values.ndim:
            shape = values.shape
            raise bad("axis", f"got {self.axis} for {name} of shape {shape}", self.axis, "an axis")
        channels = values.shape[self.axis]
        self._check_channels(channels, name)
        rows = np.moveaxis(values, self.axis, 0)
        return rows.reshape(channels, values.size // max(channels, 1))

    def _check_channels(self, channels: int | None, name: str) -> None:
        if self.lo is not None and channels is not None and len(self.lo) != channels:
            raise bad(name, f"has {channels} channels", channels, f"{len(self.lo)}, as before")

    def _shaped(self, per_row: Float32) -> Float32:
        return per_row if self.axis is not None else per_row.reshape(())

    def _take(self, rows: Float32) -> None:
        lo = self._shaped(rows.min(axis=1, initial=0) + np.float32(0))
        hi = self._shaped(rows.max(axis=1, initial=0) + np.float32(0))
        self._widen(lo, hi)

    def _absorb(self, other: Any) -> None:
        self._widen(other.lo, other.hi)

    def _widen(self, lo: Float32, hi: Float32) -> None:
        self.lo = lo if self.lo is None else np.asarray(np.minimum(self.lo, lo))
        self.hi = hi if self.hi is None else np.asarray(np.maximum(self.hi, hi))

    @abstractmethod
    def _range(
        self, lo: Float32, hi: Float32, scheme: Scheme | None
    ) -> tuple[Float32, Float32]: ...


class MinMax(Observer):
    """All that was seen.

    >>> MinMax().update([1.0, 2.0]).update([-3.0]).range()
    (array(-3., dtype=float32), array(2., dtype=float32))
    """

    def _range(self, lo: Float32, hi: Float32, scheme: Scheme | None) -> tuple[Float32, Float32]:
        return lo, hi


class MovingAverage(MinMax):
    """Extremes averaged: each batch moves them by `momentum` of the way to its own.

    Depends on the order of batches, and cannot merge.

    >>> MovingAverage(momentum=0.5).update([4.0]).update([8.0]).range()[1]
    array(6., dtype=float32)
    """

    def __init__(self, axis: int | None = None, *, momentum: float = 0.01) -> None:
        super().__init__(axis)
        if not isinstance(momentum, float) or not 0 < momentum <= 1:
            raise bad("momentum", f"got {momentum!r}", momentum, "a float above 0, up to 1")
        self.momentum = np.float32(momentum)

    def _widen(self, lo: Float32, hi: Float32) -> None:
        if self.lo is None or self.hi is None:
            self.lo, self.hi = lo, hi
        else:
            self.lo = np.asarray(self.lo + self.momentum * (lo - self.lo))
            self.hi = np.asarray(self.hi + self.momentum * (hi - self.hi))

    def _absorb(self, other: Any) -> None:
        raise bad("other", "moving averages have no common order", other, "MinMax, or one observer")


class Histogram(MinMax):
    """Counts in 4096 bins, whatever the amount of data; the range is that of `MinMax`.

    Bin i holds the values in [i, i + 1) * 2^exponent, for i from -2048 to 2047. When a value falls
    outside, bins merge in pairs until it does not: as the edges lie on a grid through 0, the counts
    are those of a histogram that was made with the larger bins at once.

    >>> h = Histogram().update([0.0, 0.5]).update([3000.0])
    >>> h.exponent, int(h.counts.sum()), int(h.counts[2048])
    (1, 3, 2)
    """

    def __init__(self) -> None:
        super().__init__()
        self.exponent = _NO_WIDTH
        self.counts: NDArray[np.int64] = np.zeros(2 * HALF, np.int64)

    @property
    def centers(self) -> Float64:
        """The middle of each bin."""
        middles: Float64 = np.ldexp(np.arange(-HALF, HALF) + 0.5, self.exponent)
        return middles

    def _take(self, rows: Float32) -> None:
        super()._take(rows)
        self._grow(_exponent_for(float(rows.min()), float(rows.max())))
        bins = np.floor(np.ldexp(rows.reshape(-1).astype(np.float64), -self.exponent))
        self.counts += np.bincount(bins.astype(np.int64) + HALF, minlength=2 * HALF)

    def _absorb(self, other: Any) -> None:
        super()._absorb(other)
        self._grow(other.exponent)
        self.counts += _merged(other.counts, self.exponent - other.exponent)

    def _grow(self, exponent: int) -> None:
        if exponent > self.exponent:
            self.counts = _merged(self.counts, exponent - self.exponent)
            self.exponent = exponent


class Percentile(Histogram):
    """All but the outermost values: `percent` of them lie below hi, and as many above lo.

    The bounds are edges of bins, and so up to a bin too wide, never wider than what was seen.

    >>> Percentile(99.0).update(np.arange(1000.0)).range()[1]
    array(989.5, dtype=float32)
    """

    def __init__(self, percent: float = 99.99) -> None:
        super().__init__()
        if not isinstance(percent, float) or not 50 < percent <= 100:
            raise bad("percent", f"got {percent!r}", percent, "a float above 50, up to 100")
        self.percent = percent

    def merge(self: Kind, other: Kind) -> Kind:
        if not isinstance(other, Percentile) or other.percent != self.percent:
            raise bad("other", f"got {other!r}", other, "the same percent", ArgTypeError)
        return super().merge(other)

    def _range(self, lo: Float32, hi: Float32, scheme: Scheme | None) -> tuple[Float32, Float32]:
        needed = int(np.ceil(self.counts.sum() * (self.percent / 100)))
        upper = int(np.argmax(np.cumsum(self.counts) >= needed)) + 1 - HALF
        lower = HALF - 1 - int(np.argmax(np.cumsum(self.counts[::-1]) >= needed))
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

    def _range(self, lo: Float32, hi: Float32, scheme: Scheme | None) -> tuple[Float32, Float32]:
        if scheme is None:
            raise bad("scheme", "got None", None, "the scheme whose error is to be least")
        found = np.flatnonzero(self.counts)
        centers = np.clip(self.centers[found], lo, hi)
        shares = self.counts[found] / self.counts.sum()
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

    def _range(self, lo: Float32, hi: Float32, scheme: Scheme | None) -> tuple[Float32, Float32]:
        folded = (self.counts[HALF:] + self.counts[:HALF][::-1]).astype(np.float64)
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


_NO_WIDTH = -161  # of zeros alone; less than any bin of float32 values needs


def _exponent_for(lo: float, hi: float) -> int:
    """The least exponent with -HALF * 2^exponent <= lo and hi < HALF * 2^exponent."""
    exponent = _NO_WIDTH
    for bound, is_inside in ((-lo, True), (hi, False)):
        if bound > 0:
            mantissa, e = np.frexp(bound)  # bound = mantissa * 2^e with mantissa in [0.5, 1)
            below = is_inside and mantissa == 0.5
            exponent = max(exponent, int(e) - int(below) - (HALF.bit_length() - 1))
    return exponent


def _merged(counts: NDArray[np.int64], doublings: int) -> NDArray[np.int64]:
    """The counts in bins that are 2^doublings times as wide."""
    merged = np.zeros_like(counts)
    np.add.at(merged, (np.arange(-HALF, HALF) >> min(doublings, 62)) + HALF, counts)
    return merged


def _clipped(bound: Any, seen: Float32) -> Float32:
    """A bound between 0 and what was seen."""
    low, high = min(float(seen), 0.0), max(float(seen), 0.0)
    return np.asarray(np.clip(bound, low, high), np.float32)


def _qparams_of(lo: Float32, hi: Float32, scheme: Scheme) -> tuple[Any, Any]:
    """What the scheme chooses for an array whose extremes these are."""
    ends = np.stack([lo, hi], axis=-1)
    if lo.ndim:
        scheme = scheme.with_granularity(PerAxis(0))
    try:
        qt = scheme.quantize(ends, backends.of(ends))
    except KernelFault as fault:
        raise scheme.explain(fault, ends) from None
    return qt.scale, qt.zero_point


def _error(centers: Float64, shares: Float64, lo: Float32, hi: Float32, scheme: Scheme) -> float:
    """The mean squared error with the parameters of a range."""
    scale, zero_point = _qparams_of(np.asarray(lo), np.asarray(hi), scheme)
    x = centers.astype(np.float32)
    qt = scheme.quantize(x, backends.of(x), scale, zero_point)
    x_hat = qt.dequantize().astype(np.float64)
    return float(np.sum(shares * (centers - x_hat) ** 2))
