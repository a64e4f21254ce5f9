"""A frozen packed weight with a trainable update of low rank.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021; Dettmers et al., "QLoRA:
Efficient Finetuning of Quantized LLMs", 2023: y = x W_hat^T + bias + (alpha / rank) x A^T B^T.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from ...arrays import first_index
from ...errors import bad
from ..arrays import as_array
from ..packed import PackedWeight, check_features, check_tensor


class FrozenProduct(torch.autograd.Function):
    """x W_hat^T for a packed weight that gets no gradient.

    Both directions decode a tile of rows at a time, and nothing but the packed weight is kept for
    the second: dx = dy W_hat needs no x. Products are those of torch in the dtype of x, with the
    weight rounded to it. dx adds up over tiles in float32 (float64 for float64), which differs from
    one product by at most (out + 1) * 2^-23 * |dy| |W_hat|, or where products of tiles are rounded
    to half precision, by 2^-7 * |dy| |W_hat| (2^-10 for float16).
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: PackedWeight, name: str) -> torch.Tensor:
        """x (..., in) -> (..., out), in the dtype of x."""
        ctx.weight, ctx.name = weight, name
        out, features = weight.shape
        rows = x.reshape(-1, features)
        y = x.new_empty((len(rows), out))
        for span, tile in weight.tiles(x.dtype):
            torch.mm(rows, tile.T, out=y[:, span])
        return y.reshape(*x.shape[:-1], out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[Any, None, None]:
        """dx (..., in); raises `ArgValueError` where dy is not finite."""
        check_gradient(dy, ctx.name)
        out, features = ctx.weight.shape
        rows = dy.reshape(-1, out)
        wide = torch.float64 if dy.dtype == torch.float64 else torch.float32
        dx = torch.zeros((len(rows), features), dtype=wide, device=dy.device)
        for span, tile in ctx.weight.tiles(dy.dtype):
            if dy.dtype == wide:
                dx.addmm_(rows[:, span], tile)
            else:
                dx += rows[:, span] @ tile
        return dx.to(dy.dtype).reshape(*dy.shape[:-1], features), None, None


class LoraLinear(nn.Module):
    """`nn.Linear` whose weight is packed and frozen, and the update that is trained.

    `lora_A` (rank, in) begins kaiming-uniform and `lora_B` (out, rank) as zeros, in float32, so
    that the layer begins as the quantized one. The bias is frozen. Made by `qrs.torch.lora.inject`.
    """

    def __init__(
        self,
        weight: PackedWeight,
        bias: torch.Tensor | None,
        rank: int,
        alpha: float,
        dropout: float,
        name: str,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.name, self.rank, self.alpha, self.scaling = name, rank, alpha, alpha / rank
        self.weight = weight
        frozen = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.register_parameter("bias", frozen)
        device = weight.device
        self.lora_A = nn.Linear(self.in_features, rank, bias=False, device=device)
        self.lora_B = nn.Linear(rank, self.out_features, bias=False, device=device)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., in) of floats -> (..., out) in its dtype, or that of autocast."""
        check_tensor(x, self.weight, self.name)
        check_features(x, self.weight, self.name)
        kind = x.device.type
        if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype(kind))
        y: torch.Tensor = frozen_product(x, self.weight, self.name)
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        update = self.lora_B(self.lora_A(self.dropout(x.to(self.lora_A.weight.dtype))))
        return y + (update * self.scaling).to(y.dtype)

    def merged(self) -> torch.Tensor:
        """W_hat + (alpha / rank) B A in float32, which is rounded to the dtype of the source."""
        with torch.no_grad():
            a, b = (part.weight.float() for part in (self.lora_A, self.lora_B))
            w = self.weight.dequantize(torch.float32)
            found = w.addmm_(b, a, alpha=self.scaling).to(self.weight.dtype)
        self.check_finite()
        if not bool(torch.isfinite(found).all()):
            overflow = f"and its update add up to more than {found.dtype} has"
            raise bad(f"module {self.name!r}, weight", overflow, found.dtype, "a smaller update")
        return found

    def check_finite(self) -> None:
        """Raise where a number of the update is NaN or infinite."""
        for name, part in (("lora_A", self.lora_A), ("lora_B", self.lora_B)):
            _refuse_nonfinite(part.weight.detach(), self.name, name)

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, rank={self.rank}, alpha={self.alpha:g}"


@torch.compiler.disable
def frozen_product(x: torch.Tensor, weight: PackedWeight, name: str) -> torch.Tensor:
    """`FrozenProduct`, which compiled graphs call: its kernels are not torch's."""
    y: torch.Tensor = FrozenProduct.apply(x, weight, name)
    return y


def check_gradient(dy: torch.Tensor, name: str) -> None:
    """Raise for NaN and infinities, but in float16, where loss scaling looks for them itself."""
    if dy.dtype == torch.float16 or bool(torch.isfinite(dy.sum(dtype=torch.float64))):
        return
    _refuse_nonfinite(dy, name, "gradient of the output")


def _refuse_nonfinite(tensor: torch.Tensor, name: str, what: str) -> None:
    """Raise where a number is NaN or infinite."""
    wrong = as_array(~torch.isfinite(tensor).cpu())
    if wrong.any():
        _, at = first_index(wrong)
        found = f"has {int(wrong.sum())} NaN or infinite values, the first{at}"
        raise bad(f"module {name!r}, {what}", found, name, "finite numbers")
