"""Tables of fixed codebooks, and how a number finds its level in one.

A codebook is a table of levels: the code q stands for the level table[q]. Encoding counts
thresholds. Between two neighbouring levels lies the midpoint of both, in float32; a number beyond
it belongs to the upper level, and one on it to the level that ties go to. `thresholds` turns both
rules into one comparison, v >= threshold, so that kernels know nothing of ties. No array of
weights is looked at here.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

NF4: Final = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""Quantiles of the normal distribution: Dettmers et al., "QLoRA", 2023, appendix E; the float32
numbers are those of bitsandbytes."""

_FP4_MAGNITUDES = (
    0.0, 0.0052083334885537624, 0.6666666865348816, 1.0,
    0.3333333432674408, 0.5, 0.1666666716337204, 0.25,
)  # fmt: skip
FP4: Final = (*_FP4_MAGNITUDES, 0.0, *(-level for level in _FP4_MAGNITUDES[1:]))
"""The 4-bit float of bitsandbytes, by code: twelfths of 0, 1/16, 8, 12, 4, 6, 2, 3, then the same
below zero. It is not e2m1; the code 8 is +0.0 once more."""

_DYNAMIC8_POSITIVE = (
    5.500000384017767e-07, 3.250000190746505e-06, 7.749999895168003e-06, 2.1249998098937795e-05,
    4.374999844003469e-05, 6.625000241911039e-05, 8.874999912222847e-05, 0.00015625001105945557,
    0.0002687500382307917, 0.0003812500217463821, 0.000493750034365803, 0.0006062500760890543,
    0.0007187500596046448, 0.0008312499849125743, 0.0009437500848434865, 0.001281249918974936,
    0.001843750011175871, 0.002406249986961484, 0.002968749962747097, 0.0035312497057020664,
    0.004093749914318323, 0.0046562496572732925, 0.0052187503315508366, 0.005781250074505806,
    0.006343749817460775, 0.006906250026077032, 0.0074687497690320015, 0.008031249977648258,
    0.008593750186264515, 0.009156249463558197, 0.009718749672174454, 0.011406250298023224,
    0.014218750409781933, 0.017031250521540642, 0.019843751564621925, 0.02265625074505806,
    0.025468749925494194, 0.028281250968575478, 0.031093750149011612, 0.033906251192092896,
    0.03671875223517418, 0.039531249552965164, 0.04234374687075615, 0.04515625163912773,
    0.047968748956918716, 0.05078125, 0.053593751043081284, 0.05640624836087227,
    0.05921875312924385, 0.062031250447034836, 0.06484375149011612, 0.0676562562584877,
    0.07046874612569809, 0.07328125089406967, 0.07609374821186066, 0.07890625298023224,
    0.08171875774860382, 0.08453124761581421, 0.08734375238418579, 0.09015624970197678,
    0.09296875447034836, 0.09578125923871994, 0.09859374910593033, 0.10703125596046448, 0.12109375,
    0.13515624403953552, 0.14921875298023224, 0.16328124701976776, 0.17734375596046448, 0.19140625,
    0.20546874403953552, 0.21953125298023224, 0.23359374701976776, 0.24765624105930328, 0.26171875,
    0.2757812738418579, 0.28984373807907104, 0.30390626192092896, 0.3179687261581421, 0.33203125,
    0.3460937440395355, 0.36015623807907104, 0.37421876192092896, 0.3882812261581421, 0.40234375,
    0.4164062440395355, 0.43046873807907104, 0.44453126192092896, 0.4585937261581421, 0.47265625,
    0.48671871423721313, 0.500781238079071, 0.5148437023162842, 0.5289062261581421, 0.54296875,
    0.5570312738418579, 0.5710937976837158, 0.585156261920929, 0.5992187261581421, 0.61328125,
    0.6273437738418579, 0.6414062976837158, 0.655468761920929, 0.6695312261581421, 0.68359375,
    0.6976562738418579, 0.7117187976837158, 0.725781261920929, 0.7398437261581421, 0.75390625,
    0.7679687738418579, 0.782031238079071, 0.796093761920929, 0.8101562261581421, 0.82421875,
    0.8382812738418579, 0.852343738079071, 0.866406261920929, 0.8804687261581421, 0.89453125,
    0.9085937738418579, 0.922656238079071, 0.936718761920929, 0.9507812261581421, 0.96484375,
    0.9789062738418579, 0.992968738079071, 1.0,
)  # fmt: skip
DYNAMIC8: Final = (
    *(-level for level in reversed(_DYNAMIC8_POSITIVE[:-1])),
    0.0,
    *_DYNAMIC8_POSITIVE,
)
"""The signed 8-bit dynamic map: Dettmers, "8-Bit Approximations for Parallelism in Deep Learning",
2015. Stored as numbers, those of bitsandbytes, since they come out of a linspace that differs
between libraries in the last place."""

TABLES: Final = {"nf4": NF4, "fp4": FP4, "dynamic8": DYNAMIC8}

LSQ_FACTORS: Final = np.linspace(0.4, 1.45, 28).astype(np.float32)
"""What the scale search tries: this much of the scale that makes the largest magnitude a code."""

CLIPPING_FACTORS: Final = np.linspace(0.6, 1.1, 16).astype(np.float32)
"""The same where levels fit the range on both sides, so that there is only something to clip."""


def thresholds(levels: Float32, codes: NDArray[np.integer] | None = None) -> Float32:
    """From which number on each level but the first is taken: `rank = sum(v >= t for t in ...)`.

    `levels` (..., k) ascend. A number on a midpoint belongs to the lower level; with `codes`,
    (k,), to that of the lower code. Of equal levels the first is taken and the others never are.
    NaN stands for a level that is never reached, since no comparison with it holds.

    >>> thresholds(np.array([-1, 0, 2], np.float32)).tolist() == [
    ...     float(np.nextafter(np.float32(-0.5), np.float32(1))),
    ...     float(np.nextafter(np.float32(1), np.float32(2)))]
    True
    """
    lower = levels[..., :-1]
    upper = _next_distinct(levels)
    # The sum of two float32 is exact here, unless one is negligible; it cannot overflow either.
    with np.errstate(under="ignore", invalid="ignore"):
        middle = ((lower.astype(np.float64) + upper) / 2).astype(np.float32)
    # Of neighbours in float32 the middle is one of them; each is its own nearest nevertheless.
    beyond = np.minimum(_next_float(middle), upper)
    if codes is None:
        return beyond
    lowest = codes[np.searchsorted(levels, lower)]  # codes of equal levels ascend
    following = np.searchsorted(levels, lower, side="right").clip(max=len(levels) - 1)
    return np.where((codes[following] < lowest) & (middle > lower), middle, beyond)


def half_even_thresholds(qmin: int, qmax: int) -> Float32:
    """The thresholds of the integers from `qmin` to `qmax`, where ties go to the even one.

    >>> t = half_even_thresholds(0, 2)
    >>> [int(np.sum(np.float32(v) >= t)) for v in (0.5, 0.6, 1.4, 1.5)]
    [0, 1, 1, 2]
    """
    lower = np.arange(qmin, qmax)
    middle = lower.astype(np.float32) + np.float32(0.5)
    return np.where(lower % 2, middle, _next_float(middle))


@lru_cache(maxsize=64)
def ranked(table: tuple[float, ...]) -> tuple[Float32, Float32, NDArray[np.uint8] | None]:
    """A table of any order as ascending levels, their thresholds, and the codes of the levels.

    Of equal levels only the lowest code is ever taken, and ties go to the lower code. Not so in
    FP4, where ties go to the lower level, and of its two zeros to the first, so that small numbers
    above zero have the code 8. The codes are None where they are 0, 1, 2, ...

    >>> levels, t, codes = ranked((1.0, 0.0))
    >>> levels.tolist(), codes.tolist(), codes[int(np.sum(np.float32(0.5) >= t))]
    ([0.0, 1.0], [1, 0], np.uint8(0))
    """
    values = np.array(table, np.float32)
    codes = np.argsort(values, kind="stable")
    levels = values[codes]
    if table == FP4:
        middle: Float32 = (levels[:-1] + levels[1:]) * np.float32(0.5)
        limits = _next_float(middle)
    else:
        limits = thresholds(levels, codes)
    identity = bool(np.array_equal(codes, np.arange(len(codes))))
    return levels, limits, None if identity else codes.astype(np.uint8)


def _next_float(x: Float32) -> Float32:
    """The next float32 above each number."""
    with np.errstate(under="ignore"):  # numpy says so of subnormal results
        return np.nextafter(x, np.float32(np.inf))


def _next_distinct(levels: Float32) -> Float32:
    """For each level but the last, the next one that differs; NaN where there is none."""
    found = levels[..., 1:].copy()
    for i in range(found.shape[-1] - 1, -1, -1):
        after = found[..., i + 1] if i + 1 < found.shape[-1] else np.float32(np.nan)
        equal = levels[..., i] == levels[..., i + 1]
        found[..., i] = np.where(equal, after, found[..., i])
    return found
