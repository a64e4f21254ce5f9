"""Convolutions in integers: `Conv1d` and `Conv2d`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from ..arrays import Held, reports_memory
from ..backends.reference import Float32, Int32
from ..checks import checked_integer
from ..convolution import Convolution
from ..devices import library_of
from ..errors import ArgTypeError, KernelFault, bad
from ..granularity import PerTensor
from ..qtensor import QTensor
from ..schemes import Scheme
from .activations import Dynamic, Encoded, Static
from .layer import Layer, as_dtype_of, check_choice, quantized
from .output import REQUANTIZE, Requantize, combined_scale, integer_bias
from .products import checked_results
from .weights import checked_weight, integer_weights, output_reach

LARGEST = 2**31 - 1
"""Stride, padding and dilation."""

MOST_RESULTS = 2**40


class Convolutional(Layer):
    """What convolutions over one and two axes share: everything, over two."""

    axes: ClassVar[int]

    def __init__(
        self,
        weight: QTensor,
        bias: Any = None,
        *,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        activation: Any = "uint8",
        output: Static | None = None,
        relu: bool = False,
        requantize: str = "float",
        backend: str | None = None,
    ) -> None:
        checked_weight(weight, self.axes + 2)
        if 0 in weight.shape:
            expected = "at least one output, input and element of the window"
            raise bad("weight", f"got shape {weight.shape}", weight.shape, expected)
        super().__init__(weight, bias, activation, output, backend)
        self.stride = self._pair("stride", stride, 1)
        self.dilation = self._pair("dilation", dilation, 1)
        self.padding = self._margins(padding)
        self.groups = checked_integer(groups, "groups")
        if self.groups < 1 or weight.shape[0] % self.groups:
            expected = f"a divisor of the {weight.shape[0]} outputs"
            raise bad("groups", f"got {groups}", groups, expected)
        check_choice("requantize", requantize, REQUANTIZE)
        self._settings = {
            "bias": self._bias_given, "stride": stride, "padding": padding, "dilation": dilation,
            "groups": groups, "activation": activation, "output": output, "relu": relu,
            "requantize": requantize, "backend": backend,
        }  # fmt: skip
        self.relu = bool(relu)
        self._source = per_tensor(self.activation)
        self._weights = integer_weights(weight)
        self._reach = output_reach(weight) * self._source.largest
        self._weights.check_sums(self._source.largest)
        self._packed = self._weights.packed(self.ops, self.groups)
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
    ) -> Any:
        """A layer of a float weight: `qrs.quantize` with `scheme` and `solver`, then the class with
        `settings`."""
        return cls(quantized(weight, scheme, solver, backend), bias, backend=backend, **settings)

    @reports_memory
    def __call__(self, x: Any) -> Any:
        """x (batch, channels, ...), floats or the QTensor of a layer before: convolved."""
        if isinstance(x, QTensor):
            conv = self._convolution(x.shape)
            codes = self._codes(x).reshape(-1, math.prod(conv.size))
            assert isinstance(self._source, Static)
            encoded = Encoded(codes, *self._source.as_arrays(codes))
            with np.errstate(over="ignore", invalid="ignore"):
                try:
                    return self._of_codes(encoded, conv, x.shape)
                except KernelFault as fault:
                    raise self._explained(fault, codes) from None
        array, values = self._input(x)
        conv = self._convolution(array.shape)
        rows = values.reshape(-1, math.prod(conv.size))
        with Held(array), np.errstate(over="ignore", invalid="ignore"):
            try:
                y = self._of_codes(self._source.encode(rows, self.ops), conv, array.shape)
            except KernelFault as fault:
                raise self._explained(fault, values) from None
        return y if isinstance(y, QTensor) else as_dtype_of(y, array)

    def __repr__(self) -> str:
        n, channels = self.weight.shape[:2]
        size = "x".join(str(k) for k in self.weight.shape[2:])
        kind, inputs = type(self).__name__, channels * self.groups
        return f"{kind}({inputs} -> {n}, {size}, {self.weight.scheme}, {self.activation})"

    def _of_codes(self, x: Encoded, conv: Convolution, shape: tuple[int, ...]) -> Any:
        """The convolution of codes (batch * channels, height * width)."""
        batch, n = shape[0], self.weight.shape[0]
        out_shape = (batch, n, *conv.out_size[2 - self.axes :])
        zero_point = 0 if x.zero_point is None else int(x.zero_point[0, 0])
        if self._sums is not None:
            steps, requantize = self._sums
            sums = self.ops.conv_int8(x.codes, self._packed, conv, zero_point, steps)
            return self._quantized(requantize(sums), out_shape)
        sums = self.ops.conv_int8(x.codes, self._packed, conv, zero_point)
        scale = _by_row(x.scale * self._weights.scale, batch)
        bias = None if self.bias is None else _by_row(self.bias, batch)
        y = self.ops.dequantize_sums(sums, scale, bias, self.relu).reshape(out_shape)
        return checked_results(y, self._reach, self.bias, x.scale)

    def _integer_sums(self, output: Static, how: str) -> tuple[Int32 | None, Requantize]:
        """Bias in int32 and the way to codes, for a layer that returns them."""
        assert isinstance(self._source, Static)
        bias = integer_bias(self.bias, self._source.scale * self._weights.scale)
        self._weights.check_sums(self._source.largest, bias)
        scale = combined_scale(self._source, self._weights.scale, output)
        return bias, Requantize(output, scale.reshape(-1, 1), self.relu, how, self.ops)

    def _convolution(self, shape: tuple[int, ...]) -> Convolution:
        """The windows over images of this shape; raises where there is no room for one."""
        channels = self.weight.shape[1] * self.groups
        if len(shape) != self.axes + 2 or shape[1] != channels:
            sizes = "length" if self.axes == 1 else "height, width"
            raise bad("x", f"got shape {shape}", shape, f"(batch, {channels}, {sizes})")
        size, kernel = _two(shape[2:]), _two(self.weight.shape[2:])
        conv = Convolution(
            channels, size, kernel, self.stride, self.padding, self.dilation, self.groups
        )
        if 0 in conv.out_size or 0 in size:
            found = f"got shape {shape}, smaller with its padding than the kernel {kernel}"
            raise bad("x", found, shape, "room for one window")
        top, left, bottom, right = self.padding
        padded = (size[0] + top + bottom) * (size[1] + left + right) * channels
        windows = self.weight.shape[0] * math.prod(conv.out_size)
        if max(shape[0], 1) * max(windows, padded) > MOST_RESULTS:
            found = f"got {self.padding}, which makes {conv.out_size} windows of each image"
            expected = f"at most {MOST_RESULTS} results and padded inputs"
            raise bad("padding", found, self.padding, expected)
        return conv

    def _pair(self, arg: str, value: int | Sequence[int], least: int) -> tuple[int, int]:
        """One number for each axis; along the height of `Conv1d`, 1."""
        numbers = _numbers(arg, value)
        if len(numbers) not in (1, self.axes) or min(numbers) < least:
            expected = f"a number, or {self.axes} of them, from {least}"
            raise bad(arg, f"got {value!r}", value, expected)
        if self.axes == 1:
            return 1, numbers[0]
        return numbers[0], numbers[-1]

    def _margins(self, padding: int | Sequence[int]) -> tuple[int, int, int, int]:
        """Zeros at the top, left, bottom, right."""
        numbers = _numbers("padding", padding)
        if len(numbers) == 1:
            numbers *= self.axes
        if len(numbers) == self.axes:
            numbers *= 2
        if len(numbers) != 2 * self.axes or min(numbers) < 0:
            expected = f"a number, {self.axes} or {2 * self.axes} of them, from 0"
            raise bad("padding", f"got {padding!r}", padding, expected)
        before, after = numbers[: self.axes], numbers[self.axes :]
        lead = [0] * (2 - self.axes)
        top, left, bottom, right = [*lead, *before, *lead, *after]
        return top, left, bottom, right


class Conv2d(Convolutional):
    """Windows over images: x (batch, in, height, width), weight (out, in / groups, kh, kw).

    Parameters
    ----------
    weight, bias, output, relu, requantize, backend : as for `Linear`.
    stride, dilation : a number, or one for each axis.
    padding : a number, one for each axis, or (top, left, bottom, right), as ONNX has it.
    groups : of input channels, each of which gives as many outputs.
    activation : a scheme that is per tensor, "uint8" or "int8", whose range is found in each call,
        or `Static`.

    >>> import numpy as np
    >>> layer = Conv2d.from_float(np.ones((1, 1, 2, 2), np.float32), padding=(0, 0, 0, 1))
    >>> layer([[[[0.0, 1.0], [2.0, 255.0]]]]).round(3).tolist()
    [[[[258.0, 256.0]]]]
    """

    axes = 2


class Conv1d(Convolutional):
    """Windows over sequences: x (batch, in, length), weight (out, in / groups, k); see `Conv2d`.

    `padding` is a number, or (left, right).

    >>> import numpy as np
    >>> layer = Conv1d.from_float(np.ones((1, 1, 2), np.float32), stride=2)
    >>> layer([[[1.0, 2.0, 3.0, 252.0]]]).round(3).tolist()
    [[[2.965, 254.965]]]
    """

    axes = 1


def per_tensor(activation: Any) -> Dynamic | Static:
    """The activation of a convolution."""
    known = isinstance(activation, Dynamic | Static)
    if not known or not isinstance(activation.scheme.granularity, PerTensor):
        expected = "a scheme per tensor such as 'uint8', or Static(...)"
        raise bad("activation", f"got {activation}", activation, expected)
    return activation  # type: ignore[no-any-return]


def _by_row(values: Float32, batch: int) -> Float32:
    """(1, n) -> (batch * n, 1)."""
    rows: Float32 = library_of(values).tile(values.reshape(-1, 1), (batch, 1))
    return rows


def _two(sizes: Sequence[int]) -> tuple[int, int]:
    """(length,) or (height, width) as the latter."""
    height, width = (1, *sizes) if len(sizes) == 1 else sizes
    return height, width


def _numbers(arg: str, value: Any) -> list[int]:
    if isinstance(value, int | np.integer):
        value = [value]
    if not isinstance(value, list | tuple) or not value:
        raise bad(arg, f"got {value!r}", value, "integers", ArgTypeError)
    numbers = [checked_integer(each, arg) for each in value]
    if max(numbers) > LARGEST:
        raise bad(arg, f"got {value!r}", value, f"at most {LARGEST}")
    return numbers
