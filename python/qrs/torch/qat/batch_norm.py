"""Batch norms that are folded into the layer before them.

A norm is y = gamma * (x - mean) / sqrt(var + eps) + beta; with factor = gamma / sqrt(var + eps) the
layer of W * factor and (b - mean) * factor + beta computes it too (Jacob et al. 2018, section 3.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from ...errors import ArgTypeError, bad
from ..modules import HOOKS

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def factor_of(norm: Any) -> torch.Tensor:
    """gamma / sqrt(var + eps), for each output, of the running statistics."""
    inverse = torch.rsqrt(norm.running_var + norm.eps)
    return inverse if norm.weight is None else norm.weight * inverse


def scaled(weight: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Weights of outputs times their factors.

    >>> scaled(torch.ones(2, 2), torch.tensor([1.0, 3.0])).tolist()
    [[1.0, 1.0], [3.0, 3.0]]
    """
    return weight * factor.reshape(-1, *[1] * (weight.ndim - 1))


def shifted(bias: torch.Tensor | None, norm: Any, factor: torch.Tensor) -> torch.Tensor:
    """(b - mean) * factor + beta."""
    centred = -norm.running_mean if bias is None else bias - norm.running_mean
    return centred * factor if norm.bias is None else centred * factor + norm.bias


def pairs(
    model: nn.Module, layers: Mapping[str, nn.Module], fold: bool | Mapping[str, str]
) -> dict[str, str]:
    """Layer -> the norm behind it, among `layers`.

    With True they are found in the graph that torch.fx traces: norms whose input is nothing but
    what one of these layers gives, which goes nowhere else. A mapping names them.
    """
    modules = dict(model.named_modules())
    if isinstance(fold, Mapping):
        return _checked(fold, layers, modules)
    if not isinstance(fold, bool):
        expected = "True, False, or {'layer': 'batch norm'}"
        raise bad("fold", f"got {fold!r}", fold, expected, ArgTypeError)
    norms = {name for name, module in modules.items() if type(module) in NORMS}
    if not fold or not norms:
        return {}
    return {
        layer: norm
        for layer, norm in _traced(model)
        if layer in layers and norm in norms and _misfit(layers[layer], modules[norm]) is None
    }


def _traced(model: nn.Module) -> list[tuple[str, str]]:
    """Modules that are called once, each with the one that alone takes what it gives."""
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:  # whatever the code of a model raises on placeholders
        found = f"has batch norms, and cannot be traced: {error}"
        expected = "fold={'layer': 'its batch norm', ...}, or fold=False"
        raise bad("model", found, type(model).__name__, expected) from None
    calls = [node for node in graph.nodes if node.op == "call_module"]
    targets = [str(node.target) for node in calls]
    once = [node for node in calls if targets.count(str(node.target)) == 1]
    following = []
    for node in once:
        users = list(node.users)
        if len(users) == 1 and users[0] in once and users[0].args[:1] == (node,):
            following.append((str(node.target), str(users[0].target)))
    return following


def _checked(
    fold: Mapping[str, str], layers: Mapping[str, nn.Module], modules: Mapping[str, nn.Module]
) -> dict[str, str]:
    """A mapping that the user gave."""
    for layer, norm in fold.items():
        if layer not in layers:
            expected = f"one of the layers: {', '.join(list(layers)[:8])}"
            raise bad("fold", f"has {layer!r}", layer, expected)
        misfit = _misfit(layers[layer], modules.get(norm))
        if misfit is not None:
            raise bad("fold", f"has {layer!r}: {norm!r}, which {misfit}", norm, "its batch norm")
    repeated = [norm for norm in fold.values() if list(fold.values()).count(norm) > 1]
    if repeated:
        raise bad("fold", f"has {repeated[0]!r} twice", repeated[0], "each batch norm once")
    return dict(fold)


def _misfit(layer: Any, norm: Any) -> str | None:
    """Why a norm cannot be folded into a layer; None where it can."""
    if type(norm) not in NORMS:
        return f"is no batch norm, but {'nothing' if norm is None else type(norm).__name__}"
    if isinstance(layer, nn.Embedding) or isinstance(norm, nn.BatchNorm2d) != isinstance(
        layer, nn.Conv2d
    ):
        return f"is a {type(norm).__name__} behind a {type(layer).__name__}"
    if any(getattr(norm, hooks) for hooks in HOOKS):
        return "has hooks, which would be lost"
    if norm.num_features != len(layer.weight):
        return f"has {norm.num_features} features for {len(layer.weight)} outputs"
    return None if norm.track_running_stats else "keeps no running statistics"
