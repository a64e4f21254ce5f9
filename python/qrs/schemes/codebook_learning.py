"""How tables are learned: k-means on values, or a table and scales that take turns.

Squared errors are what is lowered, times `weights` (rows, cols) where they are given. Groups lie as
rows here, (n, group_size); behind a shorter last one there are zeros of no weight.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import codebooks
from ..backends.reference import Reference
from ..devices import is_cupy
from ..errors import DeviceError, bad
from ..float_formats import ALIASES, FORMATS
from . import scales
from .base import Array
from .layout import Layout

if TYPE_CHECKING:
    from .codebook import Codebook

Float32 = NDArray[np.float32]

SAMPLE = 1 << 20
"""Values that a table is learned from, where there are more: groups from everywhere."""
ROUNDS = 10
"""Turns of scales and table on the sample."""
LAST_ROUNDS = 2
"""Turns with all values, and the scales as they will be stored."""
FEW_FACTORS = np.linspace(0.6, 1.35, 6, dtype=np.float32)
"""Starts of the scale search while the table still moves; the last search has all."""


def check(scheme: Codebook, x: Array) -> None:
    """Tables are learned on the host."""
    if is_cupy(x):
        expected = "an array on the host: qrs.quantize(x.get(), scheme).to('cupy')"
        found = f"got one on a GPU for {scheme}, whose tables are learned on the host"
        raise bad("x", found, "cupy", expected, DeviceError)


def learned(
    scheme: Codebook,
    rows: Array,
    layout: Layout,
    weights: Float32 | None,
    scale: Any,
    backend: Reference,
) -> tuple[Float32, Any, dict[str, int]]:
    """Tables (B, k), ascending and rounded as stored, scales (rows, G) or None, and info."""
    x, w = groups_apart(rows, layout, weights)
    if scheme.scale_dtype is None:
        table, subnormal = kmeans_tables(scheme, x, w, backend)
        return table, None, {"subnormal_tables": subnormal}
    learner = Learner(scheme, x.astype(np.float32), w, backend)
    table, scale = learner.learn(None if scale is None else scale.reshape(-1, 1))
    return table, scale.reshape(layout.rows, layout.groups), {}


def groups_apart(
    rows: Array, layout: Layout, weights: Float32 | None
) -> tuple[Array, Float32 | None]:
    """Values and weights with a row for each group."""
    size = min(layout.group_size, layout.cols)
    missing = layout.groups * size - layout.cols
    if missing:
        weights = np.ones(rows.shape, np.float32) if weights is None else weights
        rows, weights = (np.pad(part, ((0, 0), (0, missing))) for part in (rows, weights))
    return rows.reshape(-1, size), None if weights is None else weights.reshape(-1, size)


def kmeans_tables(
    scheme: Codebook, x: Array, weights: NDArray[Any] | None, backend: Reference
) -> tuple[Float32, int]:
    """The centers of each row; where all weights are zeros, those without weights.

    And how many tables hold numbers so small that their dtype has few digits left for them.
    """
    if weights is not None:
        weights = weights.astype(np.float64)
        weights[~weights.any(axis=1)] = 1
    centers = backend.kmeans_1d(x, scheme.levels, weights, False)[0]
    largest = np.abs(centers).max(axis=1)
    few_digits = FORMATS[ALIASES[scheme.book_dtype]].smallest_normal
    subnormal = int(np.count_nonzero((largest > 0) & (largest < few_digits)))
    return rounded(scheme, centers.astype(np.float32), backend), subnormal


def rounded(scheme: Codebook, table: Float32, backend: Reference) -> Float32:
    """Levels as they are stored."""
    stored = scales.stored(table, scheme.book_dtype, table.shape, backend)
    found: Float32 = scales.decoded(stored, scheme.book_dtype, backend) + np.float32(0)  # no -0.0
    if not np.isfinite(found).all():
        level = float(table.flat[int(np.argmax(~np.isfinite(found)))])
        text = f"{scheme.book_dtype} overflows: a level is {level:.6g}"
        raise bad("book_dtype", text, scheme.book_dtype, "a wider book_dtype")
    return found


class Learner:
    """A table for groups x (n, group_size) and a scale for each of them."""

    def __init__(
        self, scheme: Codebook, x: Float32, weights: Float32 | None, backend: Reference
    ) -> None:
        self.scheme, self.backend = scheme, backend
        self.x, self.weights = x, weights
        self.scale_dtype = "float32" if scheme.inner is not None else str(scheme.scale_dtype)

    def learn(self, scale: Float32 | None) -> tuple[Float32, Float32]:
        """The table (1, k), rounded, and scales (n, 1), those given or the best."""
        lo, hi = self.backend.group_range(self.x, self.x.shape[1])
        # The largest magnitudes: all tables reach from -1 to 1.
        start = self.backend.choose_scale_codebook(lo, hi, -1.0, 1.0, self.scale_dtype)
        chosen = self.sample(((lo != 0) | (hi != 0))[:, 0])
        x, weights, given, some = (
            part if part is None or chosen is None else part[chosen]
            for part in (self.x, self.weights, scale, start)
        )
        assert x is not None and some is not None
        table = self.first(x, weights)
        for _ in range(ROUNDS):
            found = given
            if found is None:
                found = self.searched(x, weights, table, some, FEW_FACTORS)
            table = self.refitted(x, weights, table, found)
        for _ in range(LAST_ROUNDS):
            table, found = rounded(self.scheme, table, self.backend), scale
            if found is None:
                found = self.searched(self.x, self.weights, table, start, FEW_FACTORS)
                found = self.stored(found)
            table = self.refitted(self.x, self.weights, table, found)
        table = rounded(self.scheme, table, self.backend)
        if scale is None:
            scale = self.searched(self.x, self.weights, table, start, codebooks.LSQ_FACTORS)
        return table, scale

    def sample(self, alive: NDArray[np.bool_]) -> NDArray[np.intp] | None:
        """The groups to learn from, where not all of them: of those with a number other than 0.

        Multiples of about 0.618 of their number, modulo that, are spread evenly over all rows and
        columns; a fixed step may meet the same columns in every row.
        """
        if self.x.size <= SAMPLE:
            return None
        if self.weights is not None:
            alive = alive & self.weights.any(axis=1)
        groups = np.flatnonzero(alive)
        count = min(len(groups), max(1, SAMPLE // self.x.shape[1]))
        if not count:
            return None
        step = round(len(groups) * 0.6180339887498949) or 1
        while math.gcd(step, len(groups)) > 1:
            step += 1
        found: NDArray[np.intp] = groups[np.sort(np.arange(count) * step % len(groups))]
        return found

    def first(self, x: Float32, weights: Float32 | None) -> Float32:
        """k-means of the values over the one of largest magnitude in their group."""
        extreme = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)
        largest = np.abs(extreme).max(initial=0) or np.float32(1)
        squares = np.broadcast_to((extreme / largest) ** 2, x.shape)
        importance = squares if weights is None else squares * weights
        extreme[extreme == 0] = 1
        values, k = (x / extreme).reshape(1, -1), self.scheme.levels
        known: NDArray[np.float64] = importance.reshape(1, -1).astype(np.float64)
        centers = self.backend.kmeans_1d(values, k, known if known.any() else None, False)[0]
        return centers.astype(np.float32)

    def searched(
        self,
        x: Float32,
        weights: Float32 | None,
        table: Float32,
        start: Float32,
        factors: Float32,
    ) -> Float32:
        """The scale search for a table."""
        factors = np.concatenate([factors, -factors])
        found, _ = self.backend.choose_scale_lsq(
            x, x.shape[1], weights, table[0], codebooks.thresholds(table[0]), factors, start,
            self.scale_dtype,
        )  # fmt: skip
        return found

    def stored(self, scale: Float32) -> Float32:
        """Scales as they are stored."""
        inner = self.scheme.inner
        if inner is None:
            return scale
        found: Float32 = scales.quantized(scale, inner, self.backend)[1]
        return found

    def refitted(
        self, x: Float32, weights: Float32 | None, table: Float32, scale: Float32
    ) -> Float32:
        """Each level as the least squares of what was nearest to it; the largest magnitude is 1."""
        codes = self.backend.quantize_codebook(
            x, x.shape[1], scale, codebooks.thresholds(table), None
        ).reshape(-1)
        scale, levels = scale.astype(np.float64), table.shape[1]
        ws = scale if weights is None else weights * scale
        above = np.bincount(codes, (ws * x).reshape(-1), levels)
        squares = np.broadcast_to(ws * scale, x.shape).reshape(-1)
        below = np.bincount(codes, squares, levels)
        found = np.where(below > 0, above / np.where(below > 0, below, 1), table[0])
        found = np.sort(found / (np.abs(found).max() or 1)) + 0.0  # never -0.0
        return found.astype(np.float32)[None]
