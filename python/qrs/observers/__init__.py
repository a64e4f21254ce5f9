"""Observers: the range of an activation, from the batches that pass by.

`update` shows an observer a batch, `merge` adds what another one of its kind saw, and `qparams`
gives the scale and zero point that a scheme makes of the range. But for `MovingAverage` the result
depends on the values alone, not on how they were split into batches, nor on their order. `state`
and `from_state` carry one through a file.
"""

from .base import MinMax, MovingAverage, Observer, from_state
from .histogram import MSE, Entropy, Histogram, Percentile

__all__ = [
    "MSE",
    "Entropy",
    "Histogram",
    "MinMax",
    "MovingAverage",
    "Observer",
    "Percentile",
    "from_state",
]
