"""Which modules of a model are quantized, and how others take their place.

Patterns are those of `fnmatch` on the names that `model.named_modules()` gives. What cannot be
quantized is told apart before anything is computed, and computed before anything is replaced: after
an error the model is what it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from ..errors import ArgTypeError, QrsError, bad
from .packed import FLOATS, PackedWeight

DEVICES = ("cpu", "cuda")
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
WILD = frozenset("*?[")


@dataclass(frozen=True)
class Report:
    """What became of a model: `layers`, name -> how it was quantized; `left`, name -> why not.

    `left` has the modules with parameters of two or more axes of their own that are as they were.
    """

    layers: dict[str, str]
    left: dict[str, str]
    weights: int = field(default=0)
    """Numbers that were quantized; a weight that two layers share counts once."""
    nbytes: int = field(default=0)
    """Bytes that store them."""

    @property
    def bits_per_weight(self) -> float:
        """8 * nbytes / weights."""
        return 8 * self.nbytes / self.weights if self.weights else math.nan

    @classmethod
    def of(cls, layers: dict[str, str], left: dict[str, str], weights: Iterable[Any]) -> Report:
        """The report of packed weights."""
        packed = {id(w): w for w in weights}.values()
        return cls(
            layers, left, sum(w.shape.numel() for w in packed), sum(w.nbytes for w in packed)
        )

    def __str__(self) -> str:
        size = f"{self.nbytes:,} bytes, {self.bits_per_weight:.4g} bits per weight"
        lines = [f"{len(self.layers)} layers quantized: {size}"]
        lines += [f"  {name}: {how}" for name, how in self.layers.items()]
        lines += [f"  {name} left alone: {why}" for name, why in self.left.items()]
        return "\n".join(lines)


@dataclass(frozen=True)
class Choice:
    """Modules to replace by name, and why others stay."""

    chosen: dict[str, nn.Module]
    left: dict[str, str]


def checked_model(model: Any) -> nn.Module:
    """The model; raises for what is none."""
    if not isinstance(model, nn.Module):
        expected = "a torch.nn.Module"
        raise bad("model", f"got {type(model).__name__}", type(model), expected, ArgTypeError)
    return model


@contextmanager
def within(name: str) -> Iterator[None]:
    """Errors that are raised in here name the module."""
    try:
        yield
    except QrsError as error:
        where = {"arg": error.arg, "value": error.value, "expected": error.expected}
        raise type(error)(f"module {name!r}: {error}", **where) from None


def patterns(arg: str, value: Any) -> tuple[str, ...]:
    """A tuple of patterns."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise bad(arg, f"got {value!r}", value, f"patterns: [{value!r}]", ArgTypeError)
    found = tuple(value)
    for each in found:
        if not isinstance(each, str):
            raise bad(arg, f"has {each!r}", each, "patterns of module names", ArgTypeError)
    return found


def matches(name: str, among: Iterable[str]) -> str | None:
    """The pattern that names a module: itself before wild cards, and those in their order."""
    among = tuple(among)
    return name if name in among else next((p for p in among if fnmatchcase(name, p)), None)


def choose(
    model: nn.Module,
    kinds: Sequence[type],
    targets: Any,
    skip: Any = (),
    strict: bool = False,
) -> Choice:
    """The modules of these kinds whose names match `targets` and not `skip`.

    Raises where a pattern matches nothing, where a name without wild cards, or with `strict` any
    pattern, matches what cannot be quantized, and where nothing is left.
    """
    targets, skip = patterns("targets", targets), patterns("skip", skip)
    chosen: dict[str, nn.Module] = {}
    left: dict[str, str] = {}
    weighty = {name: module for name, module in _all_modules(model) if _has_matrices(module)}
    for name, module in weighty.items():
        pattern = matches(name, targets)
        excluded = matches(name, skip)
        why = unsupported(module, kinds)
        if excluded is not None:
            left[name] = f"skipped by {excluded!r}"
        elif pattern is None:
            left[name] = "not among the targets"
        elif why is None:
            chosen[name] = module
        elif strict or not WILD & set(pattern):
            raise bad(f"module {name!r}", why, type(module).__name__, _names(kinds))
        else:
            left[name] = why
    if weighty:
        _check_matched("targets", targets, weighty)
        _check_matched("skip", skip, weighty)
    if not chosen:
        raise bad("model", "has no layer to quantize", type(model).__name__, _names(kinds))
    if "" in chosen:
        found, expected = f"is a {type(model).__name__} itself", "a module that holds it"
        raise bad("model", found, type(model).__name__, expected)
    return Choice(chosen, left)


def unsupported(module: nn.Module, kinds: Sequence[type]) -> str | None:
    """Why a module cannot be replaced by a quantized one; None where it can."""
    if type(module) not in kinds:  # subclasses compute something else, or are called otherwise
        return f"{type(module).__name__} is not supported"
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor):
        return "has no weight"
    if weight.device.type not in DEVICES:
        return f"its weight is on {str(weight.device)!r}"
    if weight.dtype not in FLOATS:
        return f"its weight is {weight.dtype}"
    if any(getattr(module, hooks) for hooks in HOOKS):
        return "has hooks, which would be lost"
    if isinstance(module, nn.Conv1d | nn.Conv2d) and module.padding_mode != "zeros":
        return f"padding_mode {module.padding_mode!r} is not supported"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "max_norm changes the table in each call"
    return None


def tied(model: nn.Module) -> dict[int, list[str]]:
    """Parameters in the memory of a weight -> the modules that own them, twice or more."""
    owners: dict[int, dict[int, str]] = {}
    for name, module in model.named_modules():
        for part in module._parameters.values():
            if isinstance(part, torch.Tensor) and part.numel() and part.device.type != "meta":
                owners.setdefault(part.data_ptr(), {})[id(module)] = name
    return {at: list(names.values()) for at, names in owners.items() if len(names) > 1}


def replace(model: nn.Module, new: Mapping[int, nn.Module]) -> None:
    """Put modules in the places of others, which are known by `id`, wherever those are held."""
    for _, parent in list(_all_modules(model)):
        for key, child in parent._modules.items():
            if child is not None and id(child) in new:
                successor = new[id(child)]
                successor.train(child.training)
                parent._modules[key] = successor


def weights_of(modules: Iterable[Any]) -> list[PackedWeight]:
    """Their packed weights."""
    return [module.weight for module in modules]


def _all_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every module once, by its first name."""
    return list(model.named_modules())


def _has_matrices(module: nn.Module) -> bool:
    """Whether a module has parameters of its own that are no vectors, or are not there yet."""
    own = [p for p in module._parameters.values() if p is not None]
    lazy = [isinstance(p, nn.parameter.UninitializedParameter) for p in own]
    return any(lazy) or any(p.ndim > 1 for p in own) or isinstance(module, nn.Linear)


def _check_matched(arg: str, among: Iterable[str], names: Iterable[str]) -> None:
    for pattern in among:
        if not any(matches(name, [pattern]) for name in names):
            expected = f"names or patterns of {', '.join(list(names)[:8])}"
            raise bad(arg, f"{pattern!r} matches no layer", pattern, expected)


def _names(kinds: Sequence[type]) -> str:
    return f"one of: {', '.join(kind.__name__ for kind in kinds)}"
