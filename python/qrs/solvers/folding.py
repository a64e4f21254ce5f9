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
from ..schemes.checks import refuse_first

Float32 = NDArray[np.float32]


class Pattern(NamedTuple):
    """What comes before, and the layers that alone read it."""

    previous: str
    layers: tuple[str, ...]
    beside: tuple[str, ...] = ()
    """Without these it is another network, where others read it, or something is in between."""
    without: tuple[str, ...] = ()
    """With one of these, too."""


NORMS_BEHIND = ("pre_feedforward_layernorm", "post_feedforward_layernorm")
"""Of Gemma 2, OLMo 2 and their kin, whose other norms are not where Llama has them."""
EXPERTS = ("mlp.gate", "mlp.router", "mlp.experts", "mlp.shared_expert", "block_sparse_moe")

PATTERNS = (
    Pattern(
        "input_layernorm",
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        beside=("post_attention_layernorm",),  # without it the MLP reads this one (Cohere)
        without=NORMS_BEHIND,
    ),
    Pattern(
        "post_attention_layernorm",
        ("mlp.gate_proj", "mlp.up_proj"),
        without=(*NORMS_BEHIND, *EXPERTS),
    ),
    # act(gate) * up: without the gate an activation is in between.
    Pattern("mlp.up_proj", ("mlp.down_proj",), beside=("mlp.gate_proj",)),
    Pattern("self_attn.v_proj", ("self_attn.o_proj",)),
    Pattern("attention.self.value", ("attention.output.dense",)),
)
"""Llama and its kin, and BERT's attention."""


class Fold(NamedTuple):
    """An operation, and the layers whose factors it can take."""

    previous: str
    layers: tuple[str, ...]


def find_folds(tensors: Mapping[str, Any]) -> list[Fold]:
    """Where factors can be folded in a model with these tensors, by names and shapes.

    Names of Llama and BERT are known (`PATTERNS`); a model that has the names and computes
    something else must give a `Fold` of its own.

    >>> names = ("self_attn.v_proj", "self_attn.o_proj")
    >>> find_folds({f"h.0.{name}.weight": np.ones((4, 4)) for name in names})
    [Fold(previous='h.0.self_attn.v_proj', layers=('h.0.self_attn.o_proj',))]
    """
    names = {name.removesuffix(".weight") for name in tensors if name.endswith(".weight")}
    found = []
    for pattern in PATTERNS:
        last = pattern.previous
        for previous in sorted(names):
            if previous != last and not previous.endswith(f".{last}"):
                continue
            prefix = previous.removesuffix(last)
            readers = tuple(f"{prefix}{layer}" for layer in pattern.layers)
            if _is_there(pattern, prefix, names) and _fits(tensors, previous, readers):
                found.append(Fold(previous, readers))
    return found


def _is_there(pattern: Pattern, prefix: str, names: set[str]) -> bool:
    """Whether a block has all that a pattern wants, and nothing that it excludes."""
    block = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    others = tuple(f"{name}." for name in pattern.without)
    excluded = any(name in pattern.without or name.startswith(others) for name in block)
    return block.issuperset((*pattern.layers, *pattern.beside)) and not excluded


def _fits(tensors: Mapping[str, Any], previous: str, readers: Iterable[str]) -> bool:
    """Whether every output of one is an input of the others: not so with grouped heads."""
    outputs = np.shape(tensors[f"{previous}.weight"])[:1]
    return all(np.shape(tensors[f"{reader}.weight"])[1:] == outputs for reader in readers)


def folded(tensors: Mapping[str, Any], fold: Fold, column_scale: Any) -> dict[str, Float32]:
    """The tensors that change: the operation before times the factors, the layers divided by them.

    `column_scale` (inputs,) are the factors c, finite and above 0. The function of the network
    stays what it is, but for rounding.

    >>> t = {"v.weight": np.eye(2), "o.weight": np.ones((1, 2)), "v.bias": np.ones(2)}
    >>> new = folded(t, Fold("v", ("o",)), [0.5, 4.0])
    >>> new["v.weight"].tolist(), new["v.bias"].tolist(), new["o.weight"].tolist()
    ([[0.5, 0.0], [0.0, 4.0]], [0.5, 4.0], [[2.0, 0.25]])
    """
    for name in (fold.previous, *fold.layers):
        if f"{name}.weight" not in tensors:
            raise bad("fold", f"has {name!r}", name, f"a name of: {', '.join(list(tensors)[:8])}")
    c = np.asarray(column_scale, np.float32)
    weight = np.asarray(tensors[f"{fold.previous}.weight"], np.float32)
    expected = f"{weight.shape[:1]} finite numbers above 0"
    if c.shape != weight.shape[:1]:
        raise bad("column_scale", f"got shape {c.shape}", c.shape, expected)
    refuse_first(~(np.isfinite(c) & (c > 0)), c, "column_scale", expected)
    if not _fits(tensors, fold.previous, fold.layers):
        shapes = [np.shape(tensors[f"{layer}.weight"]) for layer in fold.layers]
        raise bad("fold", f"layers have shapes {shapes}", shapes, f"(out, {len(c)})")
    new = {f"{fold.previous}.weight": weight * (c if weight.ndim == 1 else c[:, None])}
    bias = tensors.get(f"{fold.previous}.bias")
    if bias is not None:
        new[f"{fold.previous}.bias"] = np.asarray(bias, np.float32) * c
    for layer in fold.layers:
        new[f"{layer}.weight"] = np.asarray(tensors[f"{layer}.weight"], np.float32) / c
    return new
