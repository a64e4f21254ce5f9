"""How values are distributed: statistics and histograms, in float64, a block at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .plan import finite
from .report import PIECE

Array = NDArray[Any]

SPREAD = 5.0
"""A histogram reaches this many standard deviations to both sides of the mean, if there is more."""


@dataclass
class Statistics:
    """Of values that come in blocks; what is not finite is counted and left out of the rest.

    >>> found = Statistics.of([np.array([3.0, np.nan]), np.array([-4.0, 0.0, 0.0])])
    >>> found.min, found.max, found.mean, found.zeros, found.nonfinite, found.absmax
    (-4.0, 3.0, -0.25, 2, 1, 4.0)
    """

    count: int = 0
    """Of finite values."""
    nonfinite: int = 0
    zeros: int = 0
    min: float = math.inf
    max: float = -math.inf
    mean: float = math.nan
    _squares: float = 0.0
    """The sum of the squared differences from the mean."""

    @classmethod
    def of(cls, blocks: Iterable[Array]) -> Statistics:
        """Those of all blocks together."""
        found = cls()
        for block in blocks:
            found.add(block)
        return found

    def add(self, block: Array) -> None:
        """Count in a block."""
        for values in pieces(block):
            kept = values[np.isfinite(values)]
            self.nonfinite += len(values) - len(kept)
            if len(kept):
                self._add(kept)

    @np.errstate(over="ignore", invalid="ignore")
    def _add(self, values: NDArray[np.float64]) -> None:
        """Chan, Golub, LeVeque: Updating formulae for computing sample variances (1979)."""
        mean, before = float(values.mean()), self.count
        self.count += len(values)
        step = mean - self.mean if before else 0.0
        between = step * step * (before * len(values) / self.count)
        self._squares += float(np.square(values - mean).sum()) + between
        self.mean = self.mean + step * (len(values) / self.count) if before else mean
        self.zeros += int(np.count_nonzero(values == 0))
        self.min = min(self.min, float(values.min()))
        self.max = max(self.max, float(values.max()))

    @property
    def std(self) -> float:
        """The standard deviation."""
        return math.sqrt(self._squares / self.count) if self.count else math.nan

    @property
    def absmax(self) -> float:
        """The largest magnitude."""
        return max(self.max, -self.min) if self.count else math.nan

    def numbers(self) -> dict[str, float]:
        """Those that are no counts, by name."""
        names = ("min", "max", "mean", "std", "absmax")
        return {name: getattr(self, name) for name in names}

    def range(self) -> tuple[float, float]:
        """From where to where a histogram reaches."""
        if not math.isfinite(self.std):
            return self.min, self.max
        reach = SPREAD * self.std
        return max(self.min, self.mean - reach), min(self.max, self.mean + reach)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        counts = {"zeros": self.zeros, "nonfinite": self.nonfinite}
        return {**{name: finite(value) for name, value in self.numbers().items()}, **counts}


@dataclass(frozen=True)
class Histogram:
    """Counts of values in bins of one width from `low` to `high`, and how many lie beyond.

    >>> found = Histogram.of([np.array([0.0, 1.0, 2.0, 9.0])], (0.0, 2.0), 2)
    >>> found.counts, found.above, found.edges
    ((1, 2), 1, (0.0, 1.0, 2.0))
    """

    low: float
    high: float
    counts: tuple[int, ...]
    below: int = 0
    above: int = 0

    @classmethod
    def of(cls, blocks: Iterable[Array], ends: tuple[float, float], bins: int) -> Histogram | None:
        """That of blocks; None where there is no finite range of values."""
        low, high = ends
        if low == high:  # a single value gets the middle
            low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
        if not 0 < high - low < math.inf:
            return None
        counts, below, above = np.zeros(bins, np.int64), 0, 0
        for block in blocks:
            for values in pieces(block):
                below += int(np.count_nonzero(values < low) - np.isneginf(values).sum())
                above += int(np.count_nonzero(values > high) - np.isposinf(values).sum())
                inside = values[(values >= low) & (values <= high)]
                places = ((inside - low) / (high - low) * bins).astype(np.intp)
                counts += np.bincount(np.minimum(places, bins - 1), minlength=bins)
        return cls(low, high, tuple(counts.tolist()), below, above)

    @property
    def edges(self) -> tuple[float, ...]:
        """Where bins begin and end, one more than there are bins."""
        return tuple(np.linspace(self.low, self.high, len(self.counts) + 1).tolist())

    def place(self, value: float) -> int | None:
        """The bin of a value, None where there is none."""
        if not self.low <= value <= self.high:
            return None
        bins = len(self.counts)
        return min(int((value - self.low) / (self.high - self.low) * bins), bins - 1)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        counts = {"counts": list(self.counts), "below": self.below, "above": self.above}
        return {"edges": list(self.edges), **counts}


@dataclass(frozen=True)
class Spread:
    """Of few numbers, such as scales.

    >>> Spread.of(np.array([0.5, -1.0, 0.0, 2.0]))
    Spread(count=4, min=-1.0, median=0.25, max=2.0, negative=1, zero=1)
    """

    count: int
    min: float
    median: float
    max: float
    negative: int
    zero: int

    @classmethod
    def of(cls, numbers: Array) -> Spread:
        """That of one or more finite numbers."""
        wide = numbers.reshape(-1).astype(np.float64)
        ends = float(wide.min()), float(np.median(wide)), float(wide.max())
        return cls(len(wide), *ends, int((wide < 0).sum()), int((wide == 0).sum()))


def pieces(block: Array) -> Iterator[NDArray[np.float64]]:
    """The values of a block, some at a time: it can be one endless row."""
    flat = block.reshape(-1)
    for start in range(0, flat.size, PIECE):
        with np.errstate(invalid="ignore"):  # signalling NaNs
            yield flat[start : start + PIECE].astype(np.float64)
