"""The fully connected layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays import Array, Held, reports_memory, rows_of
from ..errors import KernelFault, bad
from ..granularity import PerAxis
from ..qtensor import QTensor
from ..schemes import InBasis, Int, Scheme
from ..schemes.basis import as_float32
from .activations import Dynamic, Encoded, Outliers, Static
from .layer import Layer, as_dtype_of, check_choice, quantized
from .output import REQUANTIZE, Requantize, combined_scale, integer_bias
from .products import GroupedIntegers, Integers, MixedOutliers, Product, WeightOnly
from .weights import (
    check_group_sums,
    checked_weight,
    grouped_weights,
    has_one_scale_per_output,
    integer_weights,
    output_reach,
)

COMPUTE = ("float32", "bf16x2")


class Linear(Layer):
    """y = x W^T + bias, for a quantized weight (out, in).

    Parameters
    ----------
    weight : QTensor of shape (out, in).
    bias : (out,) floats, or None.
    activation : what becomes of x, whose last axis is `in`:
        None: x stays float and the weight is decoded on the way, any scheme of 2 to 8 bits.
        A scheme, or its string: x is quantized in each call (dynamic), "int8-axis0" per token,
        "uint8" or "int8" per tensor, and multiplied in integers.
        `Static(scheme, scale, zero_point)`: the same with a calibrated range.
        `Outliers(threshold)`: LLM.int8().
    output : `Static`, to return a QTensor of codes for the next layer; with a `Static` activation.
    relu : whether negative results become 0.
    compute : "float32", or "bf16x2" to allow x as two bfloat16 parts in weight-only products.
    requantize : how sums become codes of `output`: "float", or "fixed-point" for integers alone.
    backend : "reference", "rust" or "cupy"; by default where the weight is.

    With integer activations and one scale for each output results are class A: the same bits on
    every backend, but for `Outliers` that are found, which are multiplied in float. Raises
    `ArgValueError` where a sum might not fit into int32, and where a result overflows.

    >>> import numpy as np, qrs
    >>> w = np.array([[1.0, -0.5], [0.25, 2.0]], np.float32)
    >>> layer = Linear.from_float(w, [0.0, 1.0], activation="int8-axis0")
    >>> layer([[1.27, -0.5]]).round(3).tolist()  # sums 19329, -4318 by 0.01 / 127, 0.02 / 127
    [[1.522, 0.32]]
    """

    def __init__(
        self,
        weight: QTensor,
        bias: Any = None,
        *,
        activation: Any = None,
        output: Static | None = None,
        relu: bool = False,
        compute: str = "float32",
        requantize: str = "float",
        backend: str | None = None,
    ) -> None:
        super().__init__(checked_weight(weight, 2), bias, activation, output, backend)
        check_choice("compute", compute, COMPUTE)
        check_choice("requantize", requantize, REQUANTIZE)
        self.relu, self.compute = bool(relu), compute
        self._settings = {
            "bias": self._bias_given, "activation": activation, "output": output, "relu": relu,
            "compute": compute, "requantize": requantize, "backend": backend,
        }  # fmt: skip
        scheme = self.weight.scheme
        self._basis = scheme if isinstance(scheme, InBasis) else None
        if self._basis is not None and not self._basis.suits_layers:
            found = f"got {scheme}, of which no layer multiplies its offsets"
            expected = "integers with zero points, such as 'int4-g128-asym'"
            raise bad("weight", found, str(scheme), expected)
        self._stored = self.weight if self._basis is None else self._basis.tensor(self.weight)
        self._product = self._chosen_product()
        self._sums = None if output is None else self._integer_sums(output, requantize)

    @classmethod
    def from_float(
        cls,
        weight: Any,
        bias: Any = None,
        scheme: Scheme | str = "int8-axis0",
        *,
        solver: str = "minmax",
        backend: str | None = None,
        **settings: Any,
    ) -> Linear:
        """A layer of a float weight (out, in): `qrs.quantize` with `scheme` and `solver`, then the
        class with `settings`."""
        qt = quantized(weight, scheme, solver, backend)
        return cls(qt, bias, backend=backend, **settings)

    @reports_memory
    def __call__(self, x: Any) -> Any:
        """x (..., in), floats or the QTensor of a layer before -> (..., out) in the dtype of x."""
        if isinstance(x, QTensor):
            return self._of_codes(x)
        array, values = self._input(x)
        shape = self._out_shape(array.shape)
        rows = rows_of(values)
        if self._basis is not None:
            rows = self._basis.input_into(as_float32(rows), self.weight.parts)
        with Held(array), np.errstate(over="ignore", invalid="ignore"):
            try:
                if self.output is not None:
                    return self._requantized(self._encoded(rows), shape)
                y = self._product(rows)
            except KernelFault as fault:
                raise self._explained(fault, values) from None
        return as_dtype_of(y.reshape(shape), array)

    def __repr__(self) -> str:
        out, inputs = self.weight.shape
        how = "" if self.activation is None else f", activation={self.activation}"
        return f"Linear({inputs} -> {out}, {self.weight.scheme}{how})"

    def _chosen_product(self) -> Product:
        """How rows are multiplied, from the schemes of weight and activation."""
        qt, ops, activation = self._stored, self.ops, self.activation
        bias, relu = self.bias, self.relu
        if activation is None:
            grouped = grouped_weights(qt, ops)
            return WeightOnly(grouped, bias, relu, self.compute, output_reach(qt), ops)
        if not has_one_scale_per_output(qt):
            check_group_sums(qt, activation.largest)
            per_token = grouped_activation(activation)
            grouped, reach = grouped_weights(qt, ops), output_reach(qt) * activation.largest
            return GroupedIntegers(grouped, bias, relu, per_token, reach, ops)
        weights = integer_weights(qt)
        weights.check_sums(activation.largest)
        packed, reach = weights.packed(ops), output_reach(qt) * activation.largest
        if isinstance(activation, Outliers):
            return MixedOutliers(weights, packed, bias, relu, activation, reach, ops)
        return Integers(packed, weights.scale, bias, relu, activation, reach, ops)

    def _integer_sums(self, output: Static, how: str) -> tuple[Any, Requantize]:
        """Bias in int32 and the way to codes, for a layer that returns them."""
        source = self.activation
        weights = integer_weights(self._stored)
        assert isinstance(source, Static)
        bias = integer_bias(self.bias, source.scale * weights.scale)
        weights.check_sums(source.largest, bias)
        scale = combined_scale(source, weights.scale, output)
        return bias, Requantize(output, scale, self.relu, how, self.ops)

    def _encoded(self, rows: Array) -> Encoded:
        assert isinstance(self.activation, Static)
        return self.activation.encode(rows, self.ops)

    def _of_codes(self, x: QTensor) -> Any:
        if self._basis is not None:
            found = f"got a QTensor for a weight in the basis of {self.weight.scheme}"
            raise bad("x", found, str(x.scheme), "an array of floats")
        shape = self._out_shape(x.shape)
        codes = rows_of(self._codes(x))
        assert isinstance(self.activation, Static)
        encoded = Encoded(codes, *self.activation.as_arrays(codes))
        if self.output is not None:
            return self._requantized(encoded, shape)
        assert isinstance(self._product, Integers)
        with np.errstate(over="ignore", invalid="ignore"):
            try:
                return self._product.of_codes(encoded).reshape(shape)
            except KernelFault as fault:
                raise self._explained(fault, codes) from None

    def _requantized(self, x: Encoded, shape: tuple[int, ...]) -> QTensor:
        assert self._sums is not None
        assert isinstance(self._product, Integers)
        bias, requantize = self._sums
        sums = self.ops.matmul_int8(x.codes, self._product.weights, x.zero_point, bias)
        return self._quantized(requantize(sums), shape)

    def _out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        out, inputs = self.weight.shape
        if shape[-1] != inputs:
            raise bad("x", f"got shape {shape}", shape, f"(..., {inputs})")
        return (*shape[:-1], out)


def grouped_activation(activation: Any) -> Dynamic:
    """The activation of weights with a scale for each group."""
    scheme = activation.scheme
    per_token = isinstance(scheme, Int) and isinstance(scheme.granularity, PerAxis)
    if not isinstance(activation, Dynamic) or not per_token or not scheme.symmetric:
        expected = "None or 'int8-axis0' where the weight has a scale for each group"
        raise bad("activation", f"got {activation}", activation, expected)
    return activation
