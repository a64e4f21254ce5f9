"""The ways to multiply rows with the weights of a `Linear`, one class for each.

Each takes rows (m, k) of a float dtype, or codes, and returns float32 (m, n). What a kernel finds
wrong with the numbers leaves as a `KernelFault`; so does a result that overflows
("result_overflow"), which is looked for only where `reach`, a bound of what comes of inputs or
scales of 1, lets it be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import Array
from ..backends.reference import Float32, GroupedWeights, Int8Weights, Reference
from ..devices import library_of, on_host
from ..errors import KernelFault
from .activations import Dynamic, Encoded, Outliers, Static
from .weights import IntegerWeights

FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class WeightOnly:
    """Float activations, weights decoded on the way."""

    weights: GroupedWeights
    bias: Float32 | None
    relu: bool
    compute: str
    reach: float
    ops: Reference

    def __call__(self, rows: Array) -> Float32:
        lo, hi = self.ops.group_range(rows, max(rows.shape[1], 1))  # finds NaN and infinities
        y = self.ops.matmul_grouped(rows, self.weights, self.bias, self.compute)
        y = checked_results(y, self.reach, self.bias, lo, hi)
        return clamped(y) if self.relu else y


@dataclass(frozen=True)
class Integers:
    """Integer activations and weights, one scale for each output."""

    weights: Int8Weights
    scale: Float32
    bias: Float32 | None
    relu: bool
    activation: Dynamic | Static
    reach: float
    ops: Reference

    def __call__(self, rows: Array) -> Float32:
        return self.of_codes(self.activation.encode(rows, self.ops))

    def of_codes(self, x: Encoded) -> Float32:
        """The product with codes."""
        y = self.ops.linear_int8(
            x.codes, self.weights, x.scale, x.zero_point, self.scale, self.bias, self.relu
        )
        return checked_results(y, self.reach, self.bias, x.scale)


@dataclass(frozen=True)
class GroupedIntegers:
    """Int8 activations per token, integer weights with a scale for each group."""

    weights: GroupedWeights
    bias: Float32 | None
    relu: bool
    activation: Dynamic
    reach: float
    ops: Reference

    def __call__(self, rows: Array) -> Float32:
        x = self.activation.encode(rows, self.ops)
        y = self.ops.linear_grouped_int8(x.codes, self.weights, x.scale, self.bias)
        y = checked_results(y, self.reach, self.bias, x.scale)
        return clamped(y) if self.relu else y


@dataclass(frozen=True)
class MixedOutliers:
    """LLM.int8(): columns of large activations in float, the others in integers, summed."""

    weights: IntegerWeights
    packed: Int8Weights
    bias: Float32 | None
    relu: bool
    activation: Outliers
    reach: float
    ops: Reference

    def __call__(self, rows: Array) -> Float32:
        threshold = self.activation.threshold
        magnitudes = on_host(self.ops.column_absmax(rows)).reshape(-1).astype(np.float64)
        columns = np.flatnonzero(magnitudes > threshold if threshold > 0 else False)
        inner = Dynamic(self.activation.scheme)
        if not columns.size:
            return self._integers(self.bias, self.relu, inner)(rows)
        index = library_of(rows).asarray(columns)
        rest = rows.copy()
        rest[:, index] = 0
        y = self._integers(None, False, inner)(rest)
        outliers = library_of(rows).ascontiguousarray(rows[:, index])
        w = self.weights.columns(index)
        y = self.ops.add_matmul(y, outliers, w, self.bias, self.relu)
        return checked_results(y, self.reach, self.bias, magnitudes / self.activation.largest)

    def _integers(self, bias: Float32 | None, relu: bool, inner: Dynamic) -> Integers:
        return Integers(self.packed, self.weights.scale, bias, relu, inner, self.reach, self.ops)


def checked_results(y: Float32, reach: float, bias: Float32 | None, *inputs: Any) -> Float32:
    """`y` itself; a fault where a result is not finite.

    It is finite for sure where inputs of these magnitudes, times `reach`, stay far below the
    largest float32: results are looked at only where they do not.
    """
    largest = max((float(abs(part).max()) for part in inputs if part.size), default=0.0)
    bound = largest * reach + (0.0 if bias is None or not bias.size else float(abs(bias).max()))
    if not bound < FLOAT32_MAX / 4 and y.size:
        wrong = on_host(~library_of(y).isfinite(y).reshape(len(y), -1).all(axis=1))
        if wrong.any():
            raise KernelFault("result_overflow", int(np.argmax(wrong)))
    return y


def clamped(y: Float32) -> Float32:
    """ReLU, in place."""
    result: Float32 = library_of(y).maximum(y, np.float32(0), out=y)
    return result


Product = WeightOnly | Integers | GroupedIntegers | MixedOutliers
