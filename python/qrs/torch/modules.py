"""Which modules of a model are quantized, and how others take their place.

Patterns are those of `fnmatch` on the names that `model.named_modules()` gives. What cannot be
quantized is told apart before anything is computed, and computed before anything is replaced: after
an error the model is what it was.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

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
    kept: Collection[str] = (),
    arg: str = "targets",
) -> Choice:
    """The modules of these kinds whose names match `targets` and not `skip`.

    What matches one of `kept` first, and cannot be quantized, stays; `arg` is what errors call the
    patterns. Raises where a pattern matches nothing, where a name without wild cards, or with
    `strict` any pattern, matches what cannot be quantized, and where nothing is left.
    """
    targets, skip = patterns(arg, targets), patterns("skip", skip)
    chosen: dict[str, nn.Module] = {}
    left: dict[str, str] = {}
    weighty = {name: module for name, module in model.named_modules() if _has_matrices(module)}
    packed = [name for name, m in model.named_modules() if _is_packed(m)]
    for name, module in weighty.items():
        pattern = matches(name, targets)
        excluded = matches(name, skip)
        owner = next((owner for owner in packed if name.startswith(f"{owner}.")), None)
        why = f"is part of {owner!r}, which is quantized" if owner else unsupported(module, kinds)
        if excluded is not None:
            left[name] = f"skipped by {excluded!r}"
        elif pattern is None:
            left[name] = "not among the targets"
        elif why is None:
            chosen[name] = module
        elif pattern in kept:
            left[name] = "kept"
        elif strict or not WILD & set(pattern):
            raise bad(f"module {name!r}", why, type(module).__name__, _names(kinds))
        else:
            left[name] = why
    if weighty:
        _check_matched(arg, targets, weighty)
        _check_matched("skip", skip, weighty)
    if not chosen:
        found = f"has no layer to quantize{reasons(left)}"
        raise bad("model", found, type(model).__name__, _names(kinds))
    if "" in chosen:
        found, expected = f"is a {type(model).__name__} itself", "a module that holds it"
        raise bad("model", found, type(model).__name__, expected)
    return Choice(chosen, left)


def reasons(left: Mapping[str, str]) -> str:
    """Why modules stay, as the end of a message."""
    return "".join(f"; {name!r}: {why}" for name, why in list(left.items())[:4])


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


def place(module: Any) -> Hashable:
    """Where the weight of a module is: the same for those that share it."""
    weight = module.weight
    if not weight.numel():
        return id(weight)  # all that are empty have the address 0
    return weight.data_ptr(), weight.shape, weight.stride()


def tied(model: nn.Module) -> list[list[str]]:
    """Modules that own parameters of the same memory, or of memory that overlaps.

    Vectors alone make no tie: a bias is not quantized.
    """
    modules = list(model.named_modules())
    spans = [
        _Span.of(part, at)
        for at, (_, module) in enumerate(modules)
        for part in module._parameters.values()
        if isinstance(part, torch.Tensor) and part.numel() and part.device.type != "meta"
    ]
    groups: list[list[_Span]] = []
    for span in sorted(spans):
        if groups and any(span.overlaps(other) for other in groups[-1]):
            groups[-1].append(span)
        else:
            groups.append([span])
    matrices = [group for group in groups if any(span.is_matrix for span in group)]
    owners = [sorted({span.owner for span in group}) for group in matrices]
    return [[modules[at][0] for at in group] for group in owners if len(group) > 1]


class _Span(NamedTuple):
    """The memory of a parameter."""

    device: str
    start: int
    end: int
    owner: int
    is_matrix: bool

    @classmethod
    def of(cls, tensor: torch.Tensor, owner: int) -> _Span:
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        length = 1 + sum((size - 1) * stride for size, stride in steps)
        start, device = tensor.data_ptr(), str(tensor.device)
        end = start + length * tensor.element_size()
        return cls(device, start, end, owner, tensor.ndim > 1)

    def overlaps(self, other: _Span) -> bool:
        """With one that does not start later."""
        return self.device == other.device and self.start < other.end


def replace(model: nn.Module, new: Mapping[int, nn.Module]) -> None:
    """Put modules in the places of others, which are known by `id`, wherever those are held.

    What is new takes over the settings, such as `in_features`, and whether it is in training mode;
    what was in the model keeps it.
    """
    known = {id(module) for module in model.modules()}
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if child is not None and id(child) in new:
                successor = parent._modules[key] = new[id(child)]
                for part in successor.modules():
                    if id(part) not in known:
                        part.training = child.training
                _take_settings(successor, child)


def _take_settings(successor: Any, module: nn.Module) -> None:
    """Give a module the settings of the one before it; `__constants__` are their names in torch."""
    names = getattr(module, "__constants__", ())
    for name in names:
        if hasattr(module, name) and not hasattr(successor, name):
            setattr(successor, name, getattr(module, name))
    if not hasattr(successor, "__constants__"):
        successor.__constants__ = names  # what takes its place needs them too


def weights_of(modules: Iterable[Any]) -> list[PackedWeight]:
    """Their packed weights."""
    return [module.weight for module in modules]


def _is_packed(module: nn.Module) -> bool:
    """Whether the weight of a module is packed."""
    return isinstance(module._modules.get("weight"), PackedWeight)


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
