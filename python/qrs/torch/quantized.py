"""Layers of `qrs.nn` as modules of torch, for inference on tensors of the CPU or of a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from .. import nn as layers
from ..errors import bad
from ..qtensor import QTensor
from .arrays import as_array, as_tensor
from .modules import within
from .packed import INTEGERS, PackedWeight, check_features, check_tensor, key_of


class Quantized(nn.Module):
    """A layer of `qrs.nn` over the memory of buffers; it is made anew when they change.

    `inputs` is what becomes of the input, as `qrs.nn` takes it. A calibrated range is two buffers.
    """

    def __init__(
        self,
        weight: PackedWeight,
        bias: torch.Tensor | None,
        inputs: str | layers.Static | None,
        name: str,
    ) -> None:
        super().__init__()
        self.name, self.weight = name, weight
        self.register_buffer("bias", None if bias is None else bias.detach())
        if isinstance(inputs, layers.Static):
            scale, zero_point = inputs.state("input").values()
            # As bytes, which half() does not change.
            self.register_buffer("input_scale", as_tensor(scale.reshape(1).view(np.uint8)))
            self.register_buffer("input_zero_point", as_tensor(zero_point))
        self.inputs = inputs.scheme if isinstance(inputs, layers.Static) else inputs
        self._made: tuple[object, Any] | None = None

    def layer(self) -> Any:
        """The layer of `qrs.nn`."""
        key = key_of(self.buffers())
        if self._made is None or self._made[0] != key:
            bias = self._buffers["bias"]
            given = None if bias is None else as_array(bias)
            self._made = key, self.make(self.weight.qtensor(), given, self._activation())
        return self._made[1]

    def _activation(self) -> Any:
        """The argument of layers."""
        if self.inputs is None or "input_scale" not in self._buffers:
            return self.inputs
        scale, zero_point = (as_array(b.cpu()) for b in (self.input_scale, self.input_zero_point))
        return layers.Static(self.inputs, scale.view(np.float32)[0], zero_point)

    def make(self, weight: QTensor, bias: Any, activation: Any) -> Any:
        """The layer of these."""
        raise NotImplementedError

    def run(self, x: Any) -> Any:
        """The layer on an array; errors name the module."""
        with within(self.name):
            return self.layer()(x)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None}


class QuantizedLinear(Quantized):
    """`qrs.nn.Linear` for tensors: x (..., in) of floats -> (..., out) in its dtype."""

    def make(self, weight: QTensor, bias: Any, activation: Any) -> Any:
        return layers.Linear(weight, bias, activation=activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        check_tensor(x, self.weight, self.name)
        check_features(x, self.weight, self.name)
        return inference(x, self)


class QuantizedConv(Quantized):
    """`qrs.nn.Conv1d` or `Conv2d` for tensors of batches; `module` has the settings."""

    def __init__(
        self, weight: PackedWeight, bias: torch.Tensor | None, inputs: Any, name: str, module: Any
    ) -> None:
        super().__init__(weight, bias, inputs, name)
        self.settings = {
            "stride": module.stride, "padding": margins(module), "dilation": module.dilation,
            "groups": module.groups,
        }  # fmt: skip

    def make(self, weight: QTensor, bias: Any, activation: Any) -> Any:
        kind = layers.Conv1d if len(self.weight.shape) == 3 else layers.Conv2d
        return kind(weight, bias, activation=activation, **self.settings)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        check_tensor(x, self.weight, self.name)
        batched = x.ndim == len(self.weight.shape)
        y = inference(x if batched else x.unsqueeze(0), self)
        return y if batched else y.squeeze(0)


def margins(module: Any) -> tuple[int, ...]:
    """The zeros before and after each axis, as `qrs.nn` takes them: all before, then all after.

    >>> margins(nn.Conv2d(1, 1, (2, 3), padding="same"))
    (0, 1, 1, 1)
    """
    if module.padding == "valid":
        return (0,) * (2 * len(module.kernel_size))
    if module.padding != "same":
        return (*module.padding, *module.padding)
    pairs = zip(module.dilation, module.kernel_size, strict=True)
    total = [dilation * (size - 1) for dilation, size in pairs]
    return (*(n // 2 for n in total), *(n - n // 2 for n in total))


class QuantizedEmbedding(Quantized):
    """`qrs.nn.Embedding` for tensors: integers of any shape -> (..., features)."""

    def __init__(self, weight: PackedWeight, name: str) -> None:
        super().__init__(weight, None, None, name)
        # Of no size: its dtype is that of the model, which half() changes.
        self.register_buffer("like", torch.empty(0, dtype=weight.dtype), persistent=False)

    def make(self, weight: QTensor, bias: Any, activation: Any) -> Any:
        return layers.Embedding(weight)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        check_tensor(tokens, self.weight, self.name, INTEGERS)
        return as_tensor(self.run(as_array(tokens))).to(self.like.dtype)


def quantized_module(
    weight: PackedWeight, module: Any, inputs: str | layers.Static | None, name: str
) -> Quantized:
    """What takes the place of a module of torch, or of one that was trained for it."""
    if isinstance(module, nn.Embedding):
        return QuantizedEmbedding(weight, name)
    if isinstance(module, nn.Linear):
        return QuantizedLinear(weight, module.bias, inputs, name)
    return QuantizedConv(weight, module.bias, inputs, name, module)


class Inference(torch.autograd.Function):
    """The layer of a module, and an error instead of its gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, module: Quantized) -> torch.Tensor:
        """The result of the module's layer."""
        ctx.name = module.name
        return as_tensor(module.run(as_array(x.contiguous())))

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        """Raises."""
        found = "is quantized for inference and has no gradient"
        expected = "qrs.torch.lora.inject or prepare_qat for training"
        raise bad(f"module {ctx.name!r}", found, ctx.name, expected)


@torch.compiler.disable
def inference(x: torch.Tensor, module: Quantized) -> torch.Tensor:
    """`Inference`, which compiled graphs call: its kernels are not torch's."""
    y: torch.Tensor = Inference.apply(x, module)
    return y
