"""Products with weights that stay packed: codes of 2 to 8 bits, a scale for each group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import KernelFault
from .arrays import Array, Bytes, Codes, Float32, Integers, into, spread, widened, zeros_or
from .int8_matmul import Int8MatmulOperations

GroupedWeights = Any
"""What `pack_grouped` returns; each backend has its own, and takes no other's."""


@dataclass(frozen=True)
class PlainGroupedWeights:
    """Weights of the reference: levels (n, k), which the scales (n, G) multiply."""

    levels: Float32
    group_size: int
    scale: Float32

    @property
    def groups(self) -> list[slice]:
        """Where the groups lie along k; the last one may be shorter."""
        cols = self.levels.shape[1]
        return [slice(i, min(i + self.group_size, cols)) for i in range(0, cols, self.group_size)]


class GroupedMatmulOperations(Int8MatmulOperations):
    """y = x W^T, where W[j, i] = level[j, i] * scale[j, group of i].

    A level is q - zero_point, or the entry of a codebook that q names.
    """

    def pack_grouped(
        self,
        packed: Bytes,
        cols: int,
        group_size: int,
        bits: int,
        signed: bool,
        scale: Float32,
        zero_point: Integers | None = None,
        books: Float32 | None = None,
    ) -> GroupedWeights:
        """Weights (n, cols) made ready once, as `pack_bits` packs them.

        scale, zero_point: (n, G). books: the levels of each code, (1, 2^bits or less) or (n, ...);
        without them codes are integers. A code beyond its book is a fault ("no_level").
        """
        codes = self.unpack_bits(packed, bits, cols, signed)
        if books is None:
            z = spread(zeros_or(zero_point, scale), group_size, codes)
            levels = (codes.astype(np.int32) - z).astype(np.float32)
        else:
            levels = self._levels(codes, books)
        return PlainGroupedWeights(levels, min(group_size, max(cols, 1)), scale)

    def matmul_grouped(
        self,
        x: Array,
        weights: GroupedWeights,
        bias: Float32 | None = None,
        compute: str = "float32",
        out: Float32 | None = None,
    ) -> Float32:
        """y (m, n) = x W^T + bias (1, n), for x (m, k) of any float dtype; y is float32. Class B.

        By definition the sum of a group is a chain of fused multiply-adds from 0,
        s = fma(x, level, s) in the order of k; groups, in order, are another,
        y = fma(s, scale, y) from 0; the bias is added last. Here sums are of float64, rounded to
        float32 where the chain of a group ends, and a result differs from the definition by less
        than (group_size + G + 1) * 2^-24 * (|x| |W|^T + |bias|).

        compute="bf16x2" (class C) allows a backend to take x as the sum of two bfloat16 numbers,
        for a relative error of up to 2^-16 more, and subnormal parts as zeros; one that has no use
        for it computes float32.
        """
        x64 = widened(x).astype(np.float64)
        y = np.zeros((len(x), len(weights.scale)), np.float64)
        for g, group in enumerate(weights.groups):
            sums = (x64[:, group] @ weights.levels[:, group].T.astype(np.float64)).astype(
                np.float32
            )
            y += sums.astype(np.float64) * weights.scale[:, g]
        return into(out, _with_bias(y.astype(np.float32), bias))

    def linear_grouped_int8(
        self,
        x: Codes,
        weights: GroupedWeights,
        x_scale: Float32,
        bias: Float32 | None = None,
        out: Float32 | None = None,
    ) -> Float32:
        """x_scale * y + bias (1, n), for integer levels and int8 x (m, k), x_scale (m, 1). Class A.

        The sums of groups are integers; from 0, y = y + float32(sum) * scale in the order of
        groups, two roundings each.
        """
        y = np.zeros((len(x), len(weights.scale)), np.float32)
        for g, group in enumerate(weights.groups):
            sums = x[:, group].astype(np.float64) @ weights.levels[:, group].T.astype(np.float64)
            y = y + sums.astype(np.float32) * weights.scale[:, g]
        return into(out, _with_bias(x_scale * y, bias))

    def add_matmul(
        self,
        y: Float32,
        x: Array,
        w: Float32,
        bias: Float32 | None = None,
        relu: bool = False,
        out: Float32 | None = None,
    ) -> Float32:
        """y (m, n) + x (m, o) w^T + bias (1, n), for few columns o: w (n, o). Class B.

        By definition a chain of fused multiply-adds that starts at y, in the order of o. Here the
        sum is of float64; it differs by less than (o + 1) * 2^-24 * (|y| + |x| |w|^T + |bias|).
        """
        exact = y + widened(x).astype(np.float64) @ w.T.astype(np.float64)
        total = _with_bias(exact.astype(np.float32), bias)
        return into(out, np.where(total > 0, total, np.float32(0)) if relu else total)

    def column_absmax(self, x: Array) -> Float32:
        """The greatest magnitude of each column: (1, cols). Class A."""
        values = widened(x)
        if not np.isfinite(values).all():
            raise KernelFault("nonfinite", 0)
        greatest: Float32 = np.abs(values).max(axis=0, keepdims=True, initial=0)
        return greatest

    def _levels(self, codes: Codes, books: Float32) -> Float32:
        """The level that each code names."""
        index = codes.astype(np.intp)
        if (index >= books.shape[1]).any():
            raise KernelFault("no_level", 0)
        rows = np.zeros((1, 1), np.intp) if len(books) == 1 else np.arange(len(books))[:, None]
        levels: Float32 = books[rows, index]
        return levels


def _with_bias(y: NDArray[np.float32], bias: Float32 | None) -> Float32:
    return y if bias is None else y + bias
