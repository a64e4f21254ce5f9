"""The global optimum of 1-D k-means: centers, labels, inertia. All arithmetic is float64.

1. Equal values become one value with a weight. Values and weights are scaled by powers of two,
   which no result depends on, so that no square overflows or vanishes.
2. The cost of values p..i-1 as one cluster is (T_i - T_p) - (S_i - S_p)^2 / (W_i - W_p), with
   prefix sums W, S, T of weights, weighted values and weighted squares (`_Sums`).
3. Clusters are the links of a path from 0 to n. With a penalty per link, the best path takes one
   pass, because the cost is concave Monge (`_Sums.path`); the optimal cost is convex in the number
   of links, so a path of k links that is best with some penalty is the best of all with k links,
   and where the number of links jumps over k, two paths are spliced (`_search`). Aggarwal,
   Schieber, Tokuyama: Finding a minimum-weight k-link path in graphs with the concave Monge
   property (1994); Gronlund et al.: Fast exact k-means, k-medians and Bregman divergence
   clustering in 1D (2017).
4. What cancellation in the prefix sums lost is repaired: by narrowing gaps that no cluster can
   span (`_narrowed`), and by steps of Lloyd's algorithm that make the inertia smaller.

Sums run from one end to the other (np.cumsum), never pairwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...errors import KernelFault
from .arrays import Array, Float64
from .codebooks import CodebookOperations

Borders = Sequence[int]
"""Where clusters begin, and n: 0 = b_0 < b_1 < ... < b_k = n."""

STRIDE = 8
"""How much coarser a level is than the next one."""


class Kmeans1dOperations(CodebookOperations):
    """Clustering of the values of rows."""

    def kmeans_1d(
        self, x: Array, k: int, weights: Float64 | None, with_labels: bool
    ) -> tuple[Float64, NDArray[np.int32] | None, Float64, NDArray[np.int32]]:
        """Centers (rows, k), labels (rows, n), inertia and number of passes (rows, 1). Class A.

        `x` may be float64 here, and has a column; `weights` is (rows, n), or (1, n) for all rows,
        and has a positive one in each row, none negative.

        >>> x = np.array([[1.0, 2.0, 10.0, 12.0]])
        >>> Kmeans1dOperations().kmeans_1d(x, 2, None, True)[:3]
        (array([[ 1.5, 11. ]]), array([[0, 0, 1, 1]], dtype=int32), array([[2.5]]))
        """
        with np.errstate(invalid="ignore"):  # signalling NaNs
            values = x.astype(np.float64) + 0.0  # no -0.0
        if not np.isfinite(values).all():
            raise KernelFault("nonfinite", 0)
        rows = len(values)
        centers = np.empty((rows, k))
        labels = np.empty(values.shape, np.int32) if with_labels else None
        inertia, passes = np.empty((rows, 1)), np.empty((rows, 1), np.int32)
        for row, v in enumerate(values):
            w = None if weights is None else weights[row % len(weights)]
            found, inertia[row], passes[row] = _row(v, w, k)
            middles, centers[row, : len(found)] = found[:, 0], found[:, 1]
            centers[row, len(found) :] = found[-1, 1]
            if labels is not None:
                labels[row] = np.searchsorted(middles[1:], v)
        return centers, labels, inertia, passes


def _row(x: Float64, w: Float64 | None, k: int) -> tuple[Float64, float, int]:
    """For each cluster the value above which it begins and its center; the inertia; the passes."""
    weight_scale = 1.0
    if w is not None:
        weight_scale = _magnitude(w.max())
        w = w / weight_scale
        x, w = x[w > 0], w[w > 0]
    x, index = np.unique(x, return_inverse=True)
    scale = _magnitude(max(abs(x[0]), abs(x[-1])))
    x = x / scale
    w = np.bincount(index, w).astype(np.float64)  # adds in the order of the input
    if len(x) <= k:
        centers, inertia, passes = x, 0.0, 0
    else:
        centers, inertia, passes = _optimum(x, w, k)
    found = np.stack([np.append(-np.inf, _middles(centers)), centers], axis=1) * scale
    return found + 0.0, inertia * weight_scale * scale * scale, passes


def _magnitude(x: float) -> float:
    """A power of two near x, and far enough from the ends that dividing by it is harmless."""
    return 2.0 ** min(max(math.frexp(x)[1] - 1, -1000), 1000) if x else 1.0


def _optimum(x: Float64, w: Float64, k: int) -> tuple[Float64, float, int]:
    """Centers and inertia of more than k values, and how many passes over all of them it took."""
    half = np.cumsum(w)
    middle = int(np.searchsorted(half, half[-1] / 2))
    y = x - x[middle]
    best: Float64 | None = None
    inertia, passes, penalty = math.inf, 0, None
    while True:
        sums = _Sums(y, w, middle)
        if penalty is None:
            penalty = _first_penalty(sums, k)
        borders, penalty, used = _search(sums, k, penalty, 0)
        passes += used
        centers, found = _polished(x, w, borders)
        if best is not None and not found < inertia:
            return best, inertia, passes
        best, inertia = centers, found
        narrow = _narrowed(x, w, inertia, middle)
        if not (narrow[-1] - narrow[0]) * 64 < y[-1] - y[0]:
            return best, inertia, passes
        y = narrow


def _first_penalty(sums: _Sums, k: int) -> float:
    """The penalty that gives k clusters when they begin at every 8th, 64th, ... value alone."""
    n = len(sums.w) - 1
    strides = [1]
    while n // (strides[-1] * STRIDE) >= max(8 * k, 64):
        strides.append(strides[-1] * STRIDE)
    # Of n normal values, k clusters cost about 2.7 n / k^2.
    penalty = 4 * sums.cost(0, n) / (float(k) * k * k)
    for stride in reversed(strides[1:]):
        penalty = _search(sums.every(stride), k, penalty, k // 64)[1]
    return penalty


def _search(sums: _Sums, k: int, penalty: float, slack: int) -> tuple[Borders, float, int]:
    """The best path of k links (give or take `slack`), its penalty, and the number of passes.

    The number of links is about proportional to penalty^(-1/3), which gives the next penalty until
    paths with fewer and with more links are known. Then it is the slope between their costs: with
    this penalty both are equally good, and if none with a number of links between is better, both
    are best.
    """
    n = len(sums.w) - 1
    if k == 1:
        return (0, n), penalty, 0
    few: Borders = (0, n)
    many: Borders = range(n + 1)
    few_cost, many_cost = sums.cost(0, n), 0.0
    high, low = math.inf, 0.0
    by_slope, passes = False, 0
    while True:
        path = sums.path(penalty)
        passes += 1
        links = len(path) - 1
        ratio = links / k
        scaled = penalty * (ratio * ratio * ratio)
        if abs(links - k) <= slack:
            return path, scaled, passes
        inside = len(few) - 1 < links < len(many) - 1
        if by_slope and not inside:
            return _spliced(few, many, k), penalty, passes
        if links < k:
            high = min(high, penalty)
            if inside:
                few, few_cost = path, sums.path_cost(path)
        else:
            low = max(low, penalty)
            if inside:
                many, many_cost = path, sums.path_cost(path)
        by_slope = not low < scaled < high or (low > 0 and high < math.inf)
        penalty = (few_cost - many_cost) / (len(many) - len(few)) if by_slope else scaled


def _spliced(few: Borders, many: Borders, k: int) -> Borders:
    """A path of k links, the beginning of `many` and the end of `few`, both best for one penalty.

    They change over where a link of `many` lies within one of `few`, so that the two paths that
    crossing over there makes of these two cost no more together.
    """
    more = k - (len(few) - 1)
    at = next(i for i in range(len(few)) if many[i + more + 1] <= few[i + 1])
    return [*many[: at + more + 1], *few[at + 1 :]]


class _Sums:
    """Prefix sums of weights, weighted values and weighted squares, from `middle` outwards."""

    def __init__(self, y: Float64, w: Float64, middle: int) -> None:
        self.w, self.s, self.t = (
            np.append(-np.append(0.0, np.cumsum(v[:middle][::-1]))[::-1], np.cumsum(v[middle:]))
            .tolist()
            for v in (w, w * y, w * y * y)
        )  # fmt: skip

    def every(self, stride: int) -> _Sums:
        """The same where clusters begin at every `stride`-th value alone."""
        coarse = _Sums.__new__(_Sums)
        coarse.w, coarse.s, coarse.t = (v[:-1:stride] + v[-1:] for v in (self.w, self.s, self.t))
        return coarse

    def cost(self, p: int, i: int) -> float:
        """The cost of values p..i-1 as one cluster."""
        return max(self.t[i] - self.t[p] - self._gain(p, i), 0.0)

    def _gain(self, p: int, i: int) -> float:
        w, s = self.w[i] - self.w[p], self.s[i] - self.s[p]
        return s * s / w if w > 0 else 0.0

    def path_cost(self, path: Borders) -> float:
        total = 0.0
        for p, i in zip(path[:-1], path[1:], strict=True):
            total += self.cost(p, i)
        return total

    def path(self, penalty: float) -> Borders:
        """The path from 0 to n that is best with `penalty` for each link.

        best[i] is its cost as far as i, penalties included. A candidate p for the last border
        before i that is better than an earlier one stays better; so each has one interval of i
        in which it is the best so far, and the intervals follow one another in a queue.
        """
        t, n = self.t, len(self.w) - 1
        best, parents = [0.0] * (n + 1), [0] * (n + 1)
        queue, head = [(0, 1)], 0  # candidates, and where their intervals begin

        def better(q: int, p: int, i: int) -> bool:
            return (best[q] - t[q]) - self._gain(q, i) < (best[p] - t[p]) - self._gain(p, i)

        for i in range(1, n + 1):
            while head + 1 < len(queue) and queue[head + 1][1] <= i:
                head += 1
            p = parents[i] = queue[head][0]
            best[i] = max(t[i] + ((best[p] - t[p]) - self._gain(p, i)), best[p]) + penalty
            if i == n:
                break
            end = n + 1  # from here on i is better than all candidates behind the last one
            while len(queue) > head:
                p, start = queue[-1][0], max(queue[-1][1], i + 1)
                if not better(i, p, start):
                    break
                queue.pop()
                end = start
            if len(queue) == head:
                queue.append((i, i + 1))
                continue
            step = 1
            while start + step < end and not better(i, p, start + step):
                start, step = start + step, step * 2
            end = min(start + step, end)
            while end - start > 1:
                between = (start + end) // 2
                start, end = (start, between) if better(i, p, between) else (between, end)
            if end <= n:
                queue.append((i, end))
        path = [n]
        while path[-1]:
            path.append(parents[path[-1]])
        return path[::-1]


def _polished(x: Float64, w: Float64, borders: Borders) -> tuple[Float64, float]:
    """Centers and inertia, after Lloyd's steps as long as they make the inertia smaller."""
    centers = _means(x, w, borders)
    inertia, nearest = _assigned(x, w, centers)
    while nearest != list(borders) and len(set(nearest)) == len(nearest):
        moved = _means(x, w, nearest)
        less, further = _assigned(x, w, moved)
        if not less < inertia:
            break
        borders, centers, inertia, nearest = nearest, moved, less, further
    return centers, inertia


def _means(x: Float64, w: Float64, borders: Borders) -> Float64:
    """The mean of each cluster, from its first value on: exact where that is its only one."""
    means = np.empty(len(borders) - 1)
    for j, (p, i) in enumerate(zip(borders[:-1], borders[1:], strict=True)):
        offset = np.cumsum(w[p:i] * (x[p:i] - x[p]))[-1] / np.cumsum(w[p:i])[-1]
        means[j] = min(x[p] + offset, x[i - 1])
    return means


def _middles(centers: Float64) -> Float64:
    """A value up to here belongs to the lower one of two neighbouring centers."""
    return centers[:-1] + (centers[1:] - centers[:-1]) * 0.5


def _assigned(x: Float64, w: Float64, centers: Float64) -> tuple[float, list[int]]:
    """The inertia, and the borders, where every value belongs to the nearest center."""
    borders = [0, *np.searchsorted(x, _middles(centers), side="right").tolist(), len(x)]
    offsets = x - np.repeat(centers, np.diff(borders))
    return float(np.cumsum(w * offsets * offsets)[-1]), borders


def _narrowed(x: Float64, w: Float64, inertia: float, middle: int) -> Float64:
    """The values, from x[middle] on, with gaps narrowed that no optimal cluster spans.

    Two values that are d apart cost d^2 / (1 / w_1 + 1 / w_2) in one cluster; if this is more than
    the inertia that has been reached, they are in two. Then nothing depends on how far apart they
    are, but the errors of the prefix sums do.
    """
    limits = np.sqrt(16 * inertia * (1 / w[:-1] + 1 / w[1:]))
    starts = [0, *(np.flatnonzero(np.diff(x) > limits) + 1).tolist(), len(x)]
    y = np.empty_like(x)
    for j, (p, i) in enumerate(zip(starts[:-1], starts[1:], strict=True)):
        y[p:i] = (x[p:i] - x[p]) + (y[p - 1] + limits[p - 1] if j else 0.0)
    return y - y[middle]
