"""The ways to multiply rows with the weights of a `Linear`, one class for each.

Each takes rows (m, k) of a float dtype, or codes, and returns float32 (m, n). What a kernel finds
wrong with the numbers leaves as a `KernelFault`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..arrays import Array
from ..backends.reference import Float32, GroupedWeights, Int8Weights, Reference
from ..devices import library_of, on_host
from .activations import Dynamic, Encoded, Outliers, Static
from .weights import IntegerWeights


@dataclass(frozen=True)
class WeightOnly:
    """Float activations, weights decoded on the way."""

    weights: GroupedWeights
    bias: Float32 | None
    relu: bool
    compute: str
    ops: Reference

    def __call__(self, rows: Array) -> Float32:
        self.ops.group_range(rows, max(rows.shape[1], 1))  # finds NaN and infinities
        y = self.ops.matmul_grouped(rows, self.weights, self.bias, self.compute)
        return clamped(y) if self.relu else y


@dataclass(frozen=True)
class Integers:
    """Integer activations and weights, one scale for each output."""

    weights: Int8Weights
    scale: Float32
    bias: Float32 | None
    relu: bool
    activation: Dynamic | Static
    ops: Reference

    def __call__(self, rows: Array) -> Float32:
        return self.of_codes(self.activation.encode(rows, self.ops))

    def of_codes(self, x: Encoded) -> Float32:
        """The product with codes."""
        return self.ops.linear_int8(
            x.codes, self.weights, x.scale, x.zero_point, self.scale, self.bias, self.relu
        )


@dataclass(frozen=True)
class GroupedIntegers:
    """Int8 activations per token, integer weights with a scale for each group."""

    weights: GroupedWeights
    bias: Float32 | None
    relu: bool
    activation: Dynamic
    ops: Reference

    def __call__(self, rows: Array) -> Float32:
        x = self.activation.encode(rows, self.ops)
        y = self.ops.linear_grouped_int8(x.codes, self.weights, x.scale, self.bias)
        return clamped(y) if self.relu else y


@dataclass(frozen=True)
class MixedOutliers:
    """LLM.int8(): columns of large activations in float, the others in integers, summed."""

    weights: IntegerWeights
    packed: Int8Weights
    bias: Float32 | None
    relu: bool
    activation: Outliers
    ops: Reference

    def __call__(self, rows: Array) -> Float32:
        threshold = np.float32(self.activation.threshold)
        large = on_host(self.ops.column_absmax(rows)).reshape(-1) > threshold
        columns = np.flatnonzero(large if threshold > 0 else False)
        inner = Dynamic(self.activation.scheme)
        if not columns.size:
            return Integers(self.packed, self.weights.scale, self.bias, self.relu, inner, self.ops)(
                rows
            )
        index = library_of(rows).asarray(columns)
        rest = rows.copy()
        rest[:, index] = 0
        y = Integers(self.packed, self.weights.scale, None, False, inner, self.ops)(rest)
        outliers = library_of(rows).ascontiguousarray(rows[:, index])
        w = self.weights.columns(index)
        return self.ops.add_matmul(y, outliers, w, self.bias, self.relu)


def clamped(y: Float32) -> Float32:
    """ReLU, in place."""
    result: Float32 = library_of(y).maximum(y, np.float32(0), out=y)
    return result


Product = WeightOnly | Integers | GroupedIntegers | MixedOutliers
