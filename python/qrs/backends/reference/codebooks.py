"""Codebooks: numbers to the nearest level of a table, with and without scales, and back."""

from __future__ import annotations

import numpy as np

from ...constants import DTYPES
from ...errors import KernelFault
from .arrays import (
    Array,
    Bytes,
    Codes,
    Float32,
    Float64,
    into,
    lane_sums,
    raise_first,
    spread,
    widened,
)
from .floats import FloatOperations

SMALLEST_DIVISOR = np.float32(1e-38)
"""Of reciprocals: nothing is divided by less. bitsandbytes' number."""


class CodebookOperations(FloatOperations):
    """Rule 8 of the contract.

    A book is a row of levels, ascending; `book` has the shape (1, k), one for all, (rows, k), or
    (rows * G, k), and its thresholds (see `qrs.codebooks`) have one column less. Codes count
    thresholds, unless `codes` (k,) names others for the ranks. `scale` is None where there is none.
    """

    def choose_scale_codebook(
        self, lo: Float32, hi: Float32, low: float, high: float, scale_dtype: str
    ) -> Float32:
        """The scales that reach the ranges with the levels `low` and `high`. Class A.

        >>> from qrs.backends.reference import Reference
        >>> lo, hi = np.array([[-3.0]], np.float32), np.array([[1.0]], np.float32)
        >>> Reference().choose_scale_codebook(lo, hi, -1.0, 1.0, "float32").tolist()
        [[3.0]]
        """
        with np.errstate(over="ignore", under="ignore"):
            up = hi / np.float32(high) if high > 0 else np.zeros_like(hi)
            down = lo / np.float32(low) if low < 0 else np.zeros_like(lo)
            exact = np.maximum(up, down) + np.float32(0)  # never -0.0
            scale = exact.astype(DTYPES[scale_dtype]).astype(np.float32)
            reach = np.float32(max(high, -low))
            raise_first(np.isinf(scale), np.isinf(scale * reach))
        return scale

    def quantize_codebook(
        self,
        x: Array,
        group_size: int,
        scale: Float32 | None,
        thresholds: Float32,
        codes: Codes | None,
        out: Codes | None = None,
    ) -> Codes:
        """The codes (rows, cols), uint8, of the levels nearest to x / scale. Class A.

        >>> from qrs.backends.reference import Reference
        >>> x, limits = np.array([[-4.0, 1, 3, 4]], np.float32), np.array([[0, 0.7]], np.float32)
        >>> scale = np.array([[4.0]], np.float32)
        >>> Reference().quantize_codebook(x, 4, scale, limits, None).tolist()
        [[0, 1, 2, 2]]
        """
        values = widened(x)
        if not np.isfinite(values).all():
            raise KernelFault("nonfinite", 0)
        values = scaled(values, group_size, scale)
        ranks = ranks_of(values, _per_element(thresholds, x, group_size))
        return into(out, ranks if codes is None else codes[ranks])

    def dequantize_codebook(
        self,
        codes: Codes,
        group_size: int,
        scale: Float32 | None,
        offset: Float32 | None,
        book: Float32,
        dtype: str,
        out: Array | None = None,
    ) -> Array:
        """book[code] * scale + offset in float32, then rounded to `dtype`. Class A.

        `book` is in the order of the codes; `offset`, (1, 1), is one for all.
        """
        rows, cols = codes.shape
        levels = _per_element(book, codes, group_size)
        index = codes.astype(np.intp)[..., None]
        x_hat = np.take_along_axis(np.broadcast_to(levels, (rows, cols, book.shape[1])), index, 2)
        x_hat = x_hat[..., 0]
        with np.errstate(over="ignore", under="ignore"):
            if scale is not None:
                x_hat = x_hat * spread(scale, group_size, codes)
            if offset is not None:
                x_hat = x_hat + offset
            return into(out, x_hat.astype(DTYPES[dtype]))

    def center_scales(self, scale: Float32) -> tuple[Float32, Float32]:
        """The mean (1, 1) of scales, and the scales minus that. Class A.

        The sum is float64, in the order of rule 6; the mean is rounded to float32, and 0 of none.

        >>> from qrs.backends.reference import Reference
        >>> mean, centered = Reference().center_scales(np.array([[1.0, 4.0]], np.float32))
        >>> mean.tolist(), centered.tolist()
        ([[2.5]], [[-1.5, 1.5]])
        """
        total = lane_sums(scale.reshape(-1).astype(np.float64))
        mean = (total / max(scale.size, 1)).astype(np.float32).reshape(1, 1)
        return mean, scale - mean

    def choose_scale_lsq(
        self,
        x: Array,
        group_size: int,
        weights: Float32 | None,
        levels: Float32,
        thresholds: Float32,
        factors: Float32,
        scale: Float32,
        scale_dtype: str,
    ) -> tuple[Float32, Float64]:
        """The scale search: scales with less squared error than `scale`, where there are, and the
        error of each group. Class A.

        One table for all: `levels` (k,) ascend. For each factor, the scale that makes the largest
        magnitude of the group the largest level, times the factor, starts two rounds of least
        squares: levels L nearest to x / s, then s = sum(w x L) / sum(w L L). Rounded to its dtype,
        a scale gains s (2 sum(w x L) - s sum(w L L)) over zeros; the first of the largest gains
        is taken, if with it sum(w (x - s L)^2), in float64, is less than with `scale`. All other
        sums are float32, and all follow rule 6. `weights` (rows, cols) are 0 or more. Without
        factors it is `scale`, and its error.

        >>> from qrs.backends.reference import Reference
        >>> x = np.array([[1.0, 1.0, 1.0, 1.4]], np.float32)
        >>> levels = np.array([-1.0, 0.0, 1.0], np.float32)
        >>> limits, start = np.array([-0.5, 0.5], np.float32), np.array([[1.4]], np.float32)
        >>> Reference().choose_scale_lsq(
        ...     x, 4, None, levels, limits, np.float32([1]), start, "float32")[0].tolist()
        [[1.100000023841858]]
        """
        values = _grouped(widened(x), group_size)
        if not np.isfinite(values).all():
            raise KernelFault("nonfinite", 0)
        # Behind a shorter last group there are zeros, which count for nothing.
        w = _grouped(np.ones(x.shape, np.float32) if weights is None else weights, group_size)
        search = _ScaleSearch(values, w, levels, thresholds, scale_dtype)
        best, most = scale.copy(), np.zeros(scale.shape, np.float32)
        with np.errstate(all="ignore"):
            base = np.abs(values).max(axis=2, initial=0) / np.abs(levels).max()
            for factor in factors:
                found, gain = search.refined(base * factor)
                better = (gain > most) & np.isfinite(found * np.abs(levels).max())
                best, most = np.where(better, found, best), np.where(better, gain, most)
            before, after = search.error(scale), search.error(best)
            return np.where(after < before, best, scale), np.where(after < before, after, before)

    # Fused operations. A backend that can do them in one pass over memory overrides them.

    def quantize_codebook_packed(
        self,
        x: Array,
        group_size: int,
        bits: int,
        ends: tuple[float, float],
        scale_dtype: str | None,
        scale: Float32 | None,
        thresholds: Float32,
        codes: Codes | None,
        out: Bytes | None = None,
    ) -> tuple[Bytes, Float32 | None]:
        """Range, scale, codes and packing; with `scale` given or without a dtype, the last two.

        `ends` are the least and the greatest level. Class A.
        """
        if scale is None and scale_dtype is not None:
            lo, hi = self.group_range(x, group_size)
            scale = self.choose_scale_codebook(lo, hi, *ends, scale_dtype)
        found = self.quantize_codebook(x, group_size, scale, thresholds, codes)
        return self.pack_bits(found, bits, out), scale

    def dequantize_codebook_packed(
        self,
        packed: Bytes,
        cols: int,
        group_size: int,
        bits: int,
        scale: Float32 | None,
        offset: Float32 | None,
        book: Float32,
        dtype: str,
        out: Array | None = None,
    ) -> Array:
        """Unpacking and decoding. Class A."""
        codes = self.unpack_bits(packed, bits, cols, False)
        return self.dequantize_codebook(codes, group_size, scale, offset, book, dtype, out)


class _ScaleSearch:
    """Groups (rows, G, group_size) and the sums over them that `choose_scale_lsq` compares."""

    def __init__(
        self,
        values: Float32,
        weights: Float32,
        levels: Float32,
        thresholds: Float32,
        scale_dtype: str,
    ) -> None:
        self.values, self.levels, self.thresholds = values, levels, thresholds
        self.weights, self.dtype = weights, DTYPES[scale_dtype]

    def nearest(self, scale: Float32) -> Float32:
        """The levels nearest to the values over their scales."""
        return self.levels[ranks_of(self.values * reciprocal(scale)[..., None], self.thresholds)]

    def moments(self, level: Float32) -> tuple[Float32, Float32]:
        """sum(w x L) and sum(w L L) of each group."""
        weighted = self.weights * level
        return lane_sums(weighted * self.values), lane_sums(weighted * level)

    def refined(self, scale: Float32) -> tuple[Float32, Float32]:
        """The scale after two rounds of least squares, and what it gains over zeros."""
        for _ in range(2):
            xl, ll = self.moments(self.nearest(scale))
            scale = np.where(ll > 0, xl / ll, np.float32(0))
        scale = scale.astype(self.dtype).astype(np.float32)
        return scale, scale * (np.float32(2) * xl - scale * ll)

    def error(self, scale: Float32) -> Array:
        """sum(w (x - s L)^2) of each group, in float64."""
        rest = self.values.astype(np.float64) - self.nearest(scale) * scale[..., None]
        return lane_sums(rest * self.weights * rest)


def reciprocal(scale: Float32) -> Float32:
    """1 / scale, and no more than 1 / SMALLEST_DIVISOR; 0 for 0."""
    large = np.abs(scale) > SMALLEST_DIVISOR
    magnitude: Float32 = np.where(large, np.abs(scale), SMALLEST_DIVISOR)
    sign: Float32 = np.where(scale > 0, np.float32(1), -(scale < 0).astype(np.float32))
    return sign / magnitude


def scaled(values: Float32, group_size: int, scale: Float32 | None) -> Float32:
    """x times the reciprocal of its scale."""
    if scale is None:
        return values
    with np.errstate(over="ignore", under="ignore"):
        return values * spread(reciprocal(scale), group_size, values)


def ranks_of(values: Float32, thresholds: Float32) -> Codes:
    """How many thresholds each value reaches."""
    ranks = np.zeros(values.shape, np.uint8)
    for i in range(thresholds.shape[-1]):
        ranks += values >= thresholds[..., i]
    return ranks


def _per_element(book: Float32, x: Array, group_size: int) -> Float32:
    """Books as something whose first two axes broadcast against (rows, cols)."""
    rows, cols = x.shape
    if len(book) in (1, rows):
        return book[:, None, :]
    groups = book.reshape(rows, -1, book.shape[1])
    return np.repeat(groups, group_size, axis=1)[:, :cols]


def _grouped(x: Float32, group_size: int) -> Float32:
    """(rows, cols) as (rows, G, group_size), with zeros behind a shorter last group."""
    rows, cols = x.shape
    group_size = min(group_size, max(cols, 1))
    groups = -(-cols // group_size)
    padded = np.zeros((rows, groups * group_size), np.float32)
    padded[:, :cols] = x
    return padded.reshape(rows, groups, group_size)
