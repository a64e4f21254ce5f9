"""A model and its adapters: put in, merged, saved and loaded."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ...checks import checked_integer, checked_number
from ...errors import bad
from ...schemes import Scheme, as_scheme
from ..modules import Report, checked_model, choose, replace, tied, weights_of, within
from ..packed import packed_weight
from ..quantized import QuantizedLinear
from . import adapters
from .linear import LoraLinear

DEFAULT_SCHEME = "nf4-g64-dq"
"""`NF4(double_quant=True)`: 4.127 bits per weight."""


def inject(
    model: nn.Module,
    rank: int,
    scheme: Scheme | str = DEFAULT_SCHEME,
    *,
    alpha: float = 16,
    targets: Iterable[str] = ("*",),
    skip: Iterable[str] = (),
    dropout: float = 0.0,
    solver: str = "minmax",
    strict: bool = False,
) -> Report:
    """Quantize the Linear layers of a model in place, freeze it, and give each a trainable update.

    Parameters
    ----------
    rank : columns of the update, from 1 to the smaller side of each weight.
    scheme : how weights are stored, any that decodes by rows; NF4 with double quantization.
    alpha : the update counts alpha / rank.
    targets, skip : patterns of module names, `fnmatch`'s: `targets=["*.query", "*.value"]`.
    dropout : of the input of the update, from 0 up to 1.
    solver : "minmax" or "lsq".
    strict : whether a layer that matches and cannot be quantized is an error; else it is in `left`
        of the report, unless its whole name was given.

    Only `lora_A` and `lora_B` require gradients afterwards; embeddings and norms are not touched.
    The optimizer is made after this call: parameters of before are gone. Raises `ArgValueError`
    that names the module: for a rank beyond its sides, a group that does not divide its inputs, NaN
    and infinities, a weight that is tied to another module, and a model that has adapters already.
    After an error the model is what it was.

    >>> inject(nn.Sequential(nn.Linear(128, 64)), rank=8).layers
    {'0': 'nf4-g64-dq, rank 8'}
    """
    checked_model(model)
    rank = checked_integer(rank, "rank")
    if rank < 1:
        raise bad("rank", f"got {rank}", rank, "1 or more")
    scheme, alpha, dropout = as_scheme(scheme), _alpha(alpha), _dropout(dropout)
    before = injected(model)
    if before:
        raise bad("model", f"module {next(iter(before))!r} has an adapter", None, "none: merge()")
    choice = choose(model, [nn.Linear], targets, skip, strict)
    ties = tied(model)
    for name, module in choice.chosen.items():
        _check_module(name, module, rank, ties)
    layers: dict[str, LoraLinear] = {}
    for name, module in choice.chosen.items():
        with within(name):
            weight = packed_weight(module.weight, scheme, solver)
        layers[name] = LoraLinear(weight, module.bias, rank, alpha, dropout, name)
    model.requires_grad_(False)
    replace(model, {id(choice.chosen[name]): layer for name, layer in layers.items()})
    how = dict.fromkeys(layers, f"{scheme}, rank {rank}")
    return Report.of(how, choice.left, weights_of(layers.values()))


def merge(
    model: nn.Module, scheme: Scheme | str | None = None, solver: str = "minmax"
) -> list[str]:
    """Put plain layers with the sum of weight and update in the places of those with adapters.

    The sum is W_hat + (alpha / rank) B A, of float32, as an `nn.Linear` in the dtype of the weight
    that was quantized; or with a `scheme` quantized again, as `quantize_` does, for inference.
    Returns the names; no parameter requires gradients on account of this. After an error the model
    is what it was.

    >>> model = nn.Sequential(nn.Linear(64, 8))
    >>> _ = inject(model, rank=2)
    >>> merge(model, "int8-axis0"), model[0]
    (['0'], QuantizedLinear(
      (weight): PackedWeight(int8-axis0, (8, 64))
    ))
    """
    layers = _expect_adapters(model)
    merged: dict[int, nn.Module] = {}
    for name, layer in layers.items():
        weight = layer.merged()
        if scheme is None:
            merged[id(layer)] = _plain(weight, layer.bias)
            continue
        with within(name):
            packed = packed_weight(weight, as_scheme(scheme), solver)
        merged[id(layer)] = QuantizedLinear(packed, layer.bias, None, name)
    replace(model, merged)
    return list(layers)


def save(model: nn.Module, folder: str | os.PathLike[str], base_model: str | None = None) -> None:
    """Write the adapters, and nothing else of the model, as PEFT does.

    `adapter_model.safetensors` has `base_model.model.<name>.lora_A.weight` and `lora_B`, and
    `adapter_config.json` says the rest; `base_model` is the name of the model that they belong to.
    The folder must not be there yet. `peft.PeftModel.from_pretrained` and `load` read it.
    """
    adapters.write(folder, model, _expect_adapters(model), base_model)


def load(
    model: nn.Module, folder: str | os.PathLike[str], scheme: Scheme | str = DEFAULT_SCHEME
) -> None:
    """Read the adapters that `save` or PEFT wrote into a model.

    A model without adapters gets them by `inject` with `scheme`, at the layers that the file names;
    in one with adapters they must be those. Raises `FormatError` for files that are no adapters of
    Linear layers, and `ArgValueError` where they do not fit the model, which is then as it was.
    """
    checked_model(model)
    adapter = adapters.read(folder)
    layers = injected(model)
    adapter.check(model, layers)
    if not layers:
        settings: dict[str, Any] = {"alpha": adapter.alpha, "dropout": adapter.dropout}
        inject(model, adapter.rank, scheme, targets=adapter.names, **settings)
        layers = injected(model)
    adapter.fill(layers)


def injected(model: nn.Module) -> dict[str, LoraLinear]:
    """The layers with adapters, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LoraLinear)}


def _check_module(name: str, module: Any, rank: int, ties: list[list[str]]) -> None:
    """Raise where a Linear cannot have an adapter of this rank."""
    smaller = min(module.weight.shape)
    if rank > smaller:
        found = f"got {rank} for module {name!r} of {tuple(module.weight.shape)}"
        raise bad("rank", found, rank, f"at most {smaller}")
    others = [other for names in ties if name in names for other in names if other != name]
    if others:
        found = f"its weight is that of {', '.join(map(repr, others))} too"
        raise bad(f"module {name!r}", found, others, f"skip=[{name!r}], which leaves both as is")


def _expect_adapters(model: nn.Module) -> dict[str, LoraLinear]:
    layers = injected(checked_model(model))
    if not layers:
        raise bad("model", "has no adapters", type(model).__name__, "one after inject()")
    return layers


def _plain(weight: torch.Tensor, bias: Any) -> nn.Linear:
    """An `nn.Linear` of these; nothing is drawn or copied for it."""
    out, features = weight.shape
    layer = nn.Linear(features, out, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = bias
    return layer


def _alpha(alpha: Any) -> float:
    number = checked_number(alpha, "alpha")
    if not number > 0:
        raise bad("alpha", f"got {alpha!r}", alpha, "a number above 0")
    return number


def _dropout(dropout: Any) -> float:
    number = checked_number(dropout, "dropout")
    if not 0 <= number < 1:
        raise bad("dropout", f"got {dropout!r}", dropout, "a number from 0, below 1")
    return number
