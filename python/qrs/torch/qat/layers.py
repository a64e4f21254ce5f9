"""Layers that are trained as they will run: weights and inputs quantized in the forward pass.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", 2018, section 3. The float weights that the optimizer moves are the parameters of the
layer that was there before, so that optimizers and shared weights still know them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ...errors import ArgTypeError, QrsError, bad
from ..arrays import as_array, as_tensor
from ..modules import within
from ..packed import INTEGERS, PackedWeight, check_features, check_tensor
from ..quantized import Quantized, QuantizedConv, QuantizedEmbedding, QuantizedLinear
from .batch_norm import factor_of, scaled, shifted
from .inputs import Inputs
from .weights import WeightQuantizer

PATIENCE = 20
"""Updates of a weight after which the steps that are learned beside it must have moved too."""


class QATLayer(nn.Module):
    """A layer whose weight and input are quantized in the forward pass.

    `weight` and `bias` are the parameters of `module`, which it stands for; `quantizer` is what
    quantizes the weight, `inputs` the input, and `norm` a batch norm that is folded into it.
    """

    def __init__(
        self,
        module: Any,
        quantizer: WeightQuantizer,
        inputs: Inputs | None,
        norm: Any,
        name: str,
    ) -> None:
        super().__init__()
        self.name, self.source = name, (module,)  # in a tuple: not a module of this one
        self.weight: nn.Parameter = module.weight
        self.register_parameter("bias", getattr(module, "bias", None))
        self.quantizer, self.inputs, self.norm = quantizer, inputs, norm
        if norm is not None:
            self.register_buffer("norm_frozen", torch.tensor(0.0))
        self._seen = (0, 0, 0)
        # Fused paths of torch, TransformerEncoderLayer's, take the float weights of the layers
        # inside, but where one of them has a hook.
        self.register_forward_pre_hook(_checked)

    def product(self, x: torch.Tensor, weight: torch.Tensor, bias: Any) -> torch.Tensor:
        """What the layer computes."""
        raise NotImplementedError

    def converted(self, weight: PackedWeight, activation: Any) -> Quantized:
        """The layer for inference."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.quantized_input(x)
        if self.norm is None:
            return self.product(x, self.quantized_weight(self.weight), self.bias)
        factor = factor_of(self.norm)
        weight = self.quantized_weight(scaled(self.weight, factor))
        if not self.norm.training or bool(self.norm_frozen):
            return self.product(x, weight, shifted(self.bias, self.norm, factor))
        # The statistics are those of what the norm sees: the factor, which is theirs of before, is
        # taken out again. Where it is 0 nothing of the weight is left to see.
        nowhere = factor == 0
        plain = scaled(weight, 1 / torch.where(nowhere, torch.ones_like(factor), factor))
        seen = torch.where(nowhere.reshape(-1, *[1] * (plain.ndim - 1)), self.weight, plain)
        y: torch.Tensor = self.norm(self.product(x, seen, self.bias))
        return y

    @torch.compiler.disable
    def quantized_input(self, x: torch.Tensor) -> torch.Tensor:
        """The input as the codes stand for it."""
        with within(self.name):
            return x if self.inputs is None else self.inputs(x)

    @torch.compiler.disable
    def quantized_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight as the codes stand for it."""
        self._check_updates()
        with self._explained():
            y: torch.Tensor = self.quantizer(weight)
        return y

    def folded(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias with the batch norm in them, as they are stored."""
        with torch.no_grad():
            if self.norm is None:
                bias = None if self.bias is None else self.bias.detach()
                return self.weight.detach(), bias
            factor = factor_of(self.norm)
            return scaled(self.weight, factor), shifted(self.bias, self.norm, factor)

    def packed(self) -> PackedWeight:
        """The weight as it is stored."""
        with self._explained():
            return PackedWeight(self.quantizer.qtensor(self.folded()[0]))

    def unpacked(self, weight: nn.Parameter) -> nn.Module:
        """The module of before, with the values that are stored: for weights of 16 bits."""
        module, bias = self.source[0], self.folded()[1]
        module.weight = weight
        if bias is not None:
            module.bias = nn.Parameter(bias)
        return module

    def check(self, x: Any) -> None:
        """Raise for an input that does not fit."""
        check_tensor(x, self.weight, self.name)
        kind = x.device.type
        if x.dtype != self.weight.dtype and not torch.is_autocast_enabled(kind):
            expected = f"{self.weight.dtype}, as the weight is, or torch.autocast({kind!r})"
            raise bad(f"module {self.name!r}, x", f"got {x.dtype}", x.dtype, expected, ArgTypeError)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Errors of quantization name the layer, and say where numbers were lost."""
        try:
            with within(self.name):
                yield
        except QrsError as error:
            raise (self._lost() or error) from None

    def _lost(self) -> QrsError | None:
        """The error of a parameter that is not finite; None where all are."""
        for name, parameter in self.named_parameters():
            if bool(torch.isfinite(parameter).all()):
                continue
            grad = parameter.grad
            lost = grad is not None and not bool(torch.isfinite(grad).all())
            found = f"has NaN or infinite values{', and so has its gradient' if lost else ''}"
            expected = "finite numbers: look at the loss, the rate, or clip gradients"
            return bad(f"module {self.name!r}, {name}", found, name, expected)
        return None

    def _check_updates(self) -> None:
        """Raise where an optimizer moves the weight, and never the steps beside it."""
        step = getattr(self.quantizer, "step", None)
        if step is None or not self.training or not step.requires_grad:
            return
        weight, known, count = self._seen
        now = self.weight._version, step._version
        count = count + (now[0] != weight) if now[1] == known else 0
        if count > PATIENCE:
            where = f"module {self.name!r}, optimizer"
            found = f"has moved the weight {PATIENCE} times, and quantizer.step never"
            expected = "one of model.parameters() as they are after prepare_qat"
            raise bad(where, found, count, expected)
        self._seen = (*now, count)

    def get_extra_state(self) -> torch.Tensor:
        """Schemes, as bytes: a state dict of others is refused."""
        return as_tensor(np.frombuffer(self._schemes().encode(), np.uint8))

    def set_extra_state(self, state: Any) -> None:
        """Raise where a state dict is that of a layer with other schemes."""
        found = bytes(as_array(state.cpu())).decode(errors="replace")
        if found != self._schemes():
            where = f"module {self.name!r}, state_dict"
            raise bad(where, f"is that of {found}", found, self._schemes())

    def _schemes(self) -> str:
        inputs = "float inputs" if self.inputs is None else f"{self.inputs.kind} inputs"
        scheme = "" if self.inputs is None else f" {self.inputs.scheme}"
        return f"{self.quantizer.scheme}, {inputs}{scheme}"

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}"


def _checked(layer: QATLayer, inputs: tuple[Any, ...]) -> None:
    """Before a forward pass: raise for an input that does not fit."""
    layer.check(*inputs[:1])


class QATLinear(QATLayer):
    """`nn.Linear`, trained for `qrs.nn.Linear`."""

    def product(self, x: torch.Tensor, weight: torch.Tensor, bias: Any) -> torch.Tensor:
        return functional.linear(x, weight, bias)

    def converted(self, weight: PackedWeight, activation: Any) -> Quantized:
        return QuantizedLinear(weight, self.folded()[1], activation, self.name)

    def check(self, x: Any) -> None:
        super().check(x)
        check_features(x, self.weight, self.name)
        if self.norm is not None and x.ndim != 2:
            found, expected = f"got shape {tuple(x.shape)}", "(batch, features), or fold=False"
            raise bad(f"module {self.name!r}, x", found, tuple(x.shape), expected)


class QATConv(QATLayer):
    """`nn.Conv1d` or `nn.Conv2d`, trained for those of `qrs.nn`."""

    def product(self, x: torch.Tensor, weight: torch.Tensor, bias: Any) -> torch.Tensor:
        module = self.source[0]
        convolve = functional.conv1d if weight.ndim == 3 else functional.conv2d
        settings = (module.stride, module.padding, module.dilation, module.groups)
        return convolve(x, weight, bias, *settings)

    def converted(self, weight: PackedWeight, activation: Any) -> Quantized:
        return QuantizedConv(weight, self.folded()[1], activation, self.name, self.source[0])


class QATEmbedding(QATLayer):
    """`nn.Embedding`, trained for `qrs.nn.Embedding`."""

    def product(self, x: torch.Tensor, weight: torch.Tensor, bias: Any) -> torch.Tensor:
        module = self.source[0]
        return functional.embedding(
            x, weight, module.padding_idx, scale_grad_by_freq=module.scale_grad_by_freq
        )

    def converted(self, weight: PackedWeight, activation: Any) -> Quantized:
        return QuantizedEmbedding(weight, self.name)

    def check(self, x: Any) -> None:
        check_tensor(x, self.weight, self.name, INTEGERS)
