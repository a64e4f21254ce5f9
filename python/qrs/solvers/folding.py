"""Factors of inputs folded into the operation before, so that a layer need not apply them.

Where x = norm(...) * g + b, or x comes from a layer without an activation in between, x * c is as
cheap as x: g * c and b * c. That holds where nobody else reads x: in networks whose norm comes
before each block. Where a norm's output goes to a residual too, as in BERT, it cannot be done.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import bad

Float32 = NDArray[np.float32]

PATTERNS = (
    ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    ("mlp.up_proj", ("mlp.down_proj",)),
    ("self_attn.v_proj", ("self_attn.o_proj",)),
    ("attention.self.value", ("attention.output.dense",)),
)
"""What comes before, and the layers that alone read it: Llama and its kin, and BERT's attention."""


class Fold(NamedTuple):
    """An operation, and the layers whose factors it can take."""

    previous: str
    layers: tuple[str, ...]


def find_folds(tensors: Mapping[str, Any]) -> list[Fold]:
    """Where factors can be folded in a model with these tensors, by names and shapes.

    >>> names = ("self_attn.v_proj", "self_attn.o_proj")
    >>> find_folds({f"h.0.{name}.weight": np.ones((4, 4)) for name in names})
    [Fold(previous='h.0.self_attn.v_proj', layers=('h.0.self_attn.o_proj',))]
    """
    names = {name.removesuffix(".weight") for name in tensors if name.endswith(".weight")}
    found = []
    for last, layers in PATTERNS:
        for previous in sorted(names):
            if previous != last and not previous.endswith(f".{last}"):
                continue
            prefix = previous.removesuffix(last)
            readers = tuple(f"{prefix}{layer}" for layer in layers)
            if all(reader in names for reader in readers) and _fits(tensors, previous, readers):
                found.append(Fold(previous, readers))
    return found


def _fits(tensors: Mapping[str, Any], previous: str, readers: Iterable[str]) -> bool:
    """Whether every output of one is an input of the others: not so with grouped heads."""
    outputs = np.shape(tensors[f"{previous}.weight"])[0]
    return all(np.shape(tensors[f"{reader}.weight"])[1] == outputs for reader in readers)


def folded(tensors: Mapping[str, Any], fold: Fold, column_scale: Any) -> dict[str, Float32]:
    """The tensors that change: the operation before times the factors, the layers divided by them.

    `column_scale` (inputs,) are the factors c, finite and above 0. The function of the network
    stays what it is, but for rounding.

    >>> t = {"v.weight": np.eye(2), "o.weight": np.ones((1, 2)), "v.bias": np.ones(2)}
    >>> new = folded(t, Fold("v", ("o",)), [0.5, 4.0])
    >>> new["v.weight"].tolist(), new["v.bias"].tolist(), new["o.weight"].tolist()
    ([[0.5, 0.0], [0.0, 4.0]], [0.5, 4.0], [[2.0, 0.25]])
    """
    c = np.asarray(column_scale, np.float32)
    weight = np.asarray(tensors[f"{fold.previous}.weight"], np.float32)
    if c.shape != weight.shape[:1] or not (np.isfinite(c) & (c > 0)).all():
        expected = f"{weight.shape[:1]} finite numbers above 0"
        raise bad("column_scale", f"got shape {c.shape}", c.shape, expected)
    new = {f"{fold.previous}.weight": weight * (c if weight.ndim == 1 else c[:, None])}
    bias = tensors.get(f"{fold.previous}.bias")
    if bias is not None:
        new[f"{fold.previous}.bias"] = np.asarray(bias, np.float32) * c
    for layer in fold.layers:
        new[f"{layer}.weight"] = np.asarray(tensors[f"{layer}.weight"], np.float32) / c
    return new
