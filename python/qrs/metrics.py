"""How far a reconstruction is from its source. Sums are float64, in blocks of bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import plain
from .devices import on_host
from .errors import ArgTypeError, bad

_BLOCK = 1 << 20


def sqnr_db(x: Any, x_hat: Any) -> float:
    """Signal to quantization noise ratio, 10 log10(sum x^2 / sum (x - x_hat)^2), in dB.

    `x`, `x_hat`: arrays of one shape. inf where they are equal.

    >>> sqnr_db([3.0, 4.0], [3.0, 3.5])
    20.0
    """
    signal = noise = 0.0
    for a, b in _blocks(x, x_hat):
        signal += float(np.dot(a, a))
        noise += float(np.dot(a - b, a - b))
    return ratio_db(signal, noise)


def ratio_db(signal: float, noise: float) -> float:
    """10 log10(signal / noise) of two powers; inf without noise.

    >>> ratio_db(100.0, 1.0)
    20.0
    """
    if math.isnan(signal) or math.isnan(noise):
        return math.nan
    if noise == 0:
        return math.inf
    # Two logarithms: the quotient of powers can underflow.
    return 10 * (math.log10(signal) - math.log10(noise)) if signal > 0 else -math.inf


def mse(x: Any, x_hat: Any) -> float:
    """Mean of (x - x_hat)^2; NaN without elements.

    >>> mse([1.0, 2.0], [1.0, 4.0])
    2.0
    """
    total, count = 0.0, 0
    for a, b in _blocks(x, x_hat):
        total += float(np.dot(a - b, a - b))
        count += a.size
    return total / count if count else math.nan


def max_abs_error(x: Any, x_hat: Any) -> float:
    """The greatest |x - x_hat|; 0 without elements, NaN where one is NaN.

    >>> max_abs_error([1.0, 2.0], [1.0, 2.25])
    0.25
    """
    worst = [np.abs(a - b).max() for a, b in _blocks(x, x_hat)]
    return float(np.max(worst, initial=0.0))  # unlike max(), this keeps a NaN


def cosine(x: Any, x_hat: Any) -> float:
    """Cosine of the angle between the two as vectors; NaN where one is all zeros.

    >>> cosine([1.0, 0.0], [1.0, 1.0]) == 1 / 2**0.5
    True
    """
    xx = xy = yy = 0.0
    for a, b in _blocks(x, x_hat):
        xx += float(np.dot(a, a))
        xy += float(np.dot(a, b))
        yy += float(np.dot(b, b))
    return xy / math.sqrt(xx * yy) if xx and yy else math.nan


def _blocks(x: Any, x_hat: Any) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    a, b = _numbers(x, "x"), _numbers(x_hat, "x_hat")
    if a.shape != b.shape:
        raise bad("x_hat", f"got shape {b.shape}", b.shape, f"{a.shape} as x")
    flat_a, flat_b = a.reshape(-1), b.reshape(-1)
    for start in range(0, flat_a.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        yield flat_a[block].astype(np.float64), flat_b[block].astype(np.float64)


def _numbers(x: Any, arg: str) -> NDArray[Any]:
    array = on_host(plain(x, arg, integers=True))
    if not np.can_cast(array.dtype, np.float64, "same_kind"):
        raise bad(arg, f"got dtype {array.dtype}", array.dtype, "real numbers", ArgTypeError)
    return array
