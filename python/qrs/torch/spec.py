"""Recipes: what the layers of a model become, by patterns of their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import QrsError, bad
from ..granularity import PerAxis, PerTensor
from ..schemes import Scheme, as_scheme
from .modules import choose, matches, place, reasons, tied

KEEP = "keep"
DYNAMIC, STATIC = "dynamic", "static"

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
KINDS = (nn.Linear, *CONVOLUTIONS, nn.Embedding)

PER_TOKEN, PER_BATCH = "int8-axis0", "uint8"
"""What inputs become in each call of `Linear`, and of convolutions."""


@dataclass(frozen=True)
class Spec:
    """How weights are stored, and what becomes of inputs.

    >>> str(Spec.parse("int8-dynamic")), str(Spec.parse("int4-g128"))
    ('int8-axis0-dynamic', 'int4-g128')
    """

    scheme: Scheme
    inputs: str | None = None
    """None: they stay floats; "dynamic", quantized in each call; "static", in a known range."""

    @classmethod
    def parse(cls, value: Any) -> Spec | None:
        """The spec of a scheme or a string; None of "keep"."""
        inputs = None
        if isinstance(value, str):
            if value == KEEP:
                return None
            stem, _, last = value.rpartition("-")
            value, inputs = (stem, last) if last in (DYNAMIC, STATIC) else (value, None)
        scheme = as_scheme(value)
        if inputs and isinstance(scheme.granularity, PerTensor):
            scheme = scheme.with_granularity(PerAxis(0))
        return cls(scheme, inputs)

    def inputs_of(self, module: nn.Module) -> str | None:
        """What becomes of the inputs of a module: those of embeddings are no numbers."""
        return None if isinstance(module, nn.Embedding) else self.inputs

    def refusal(self, module: nn.Module) -> str | None:
        """Why a module cannot have it; None where it can."""
        if isinstance(module, CONVOLUTIONS) and self.inputs is None:
            kinds = f"'-{DYNAMIC}' or '-{STATIC}'"
            return f"convolutions multiply integers: {kinds} schemes, not {self}"
        try:
            self.scheme.granularity.check(tuple(module.weight.shape))
        except QrsError as error:
            return str(error)
        return None

    def __str__(self) -> str:
        return f"{self.scheme}-{self.inputs}" if self.inputs else str(self.scheme)


@dataclass(frozen=True)
class Assigned:
    """Modules with their specs by name, and why others stay."""

    chosen: dict[str, tuple[Any, Spec]]
    left: dict[str, str]


def assigned(model: nn.Module, recipe: Any, skip: Iterable[str], strict: bool) -> Assigned:
    """What the recipe says of each layer: see `quantize_`.

    Raises where it says nothing, or of modules that share a weight not the same.
    """
    rules = recipe if isinstance(recipe, Mapping) else {"*": recipe}
    specs = {pattern: Spec.parse(value) for pattern, value in rules.items()}
    kept = [pattern for pattern, spec in specs.items() if spec is None]
    choice = choose(model, KINDS, specs, skip, strict, kept, "recipe")
    chosen: dict[str, tuple[Any, Spec]] = {}
    left = dict(choice.left)
    for name, module in choice.chosen.items():
        pattern = matches(name, specs)
        spec = specs[str(pattern)]
        why = "kept" if spec is None else spec.refusal(module)
        if spec is not None and why is None:
            chosen[name] = module, spec
        elif spec is not None and (strict or pattern == name):
            raise bad(f"module {name!r}", str(why), str(spec), "a scheme that fits it")
        else:
            left[name] = str(why)
    if not chosen:
        found = f"leaves every layer as it is{reasons(left)}"
        raise bad("recipe", found, recipe, "a scheme for one of them")
    _check_ties(model, chosen)
    return Assigned(chosen, left)


def per_call(module: nn.Module) -> str:
    """What inputs of a module become where they are quantized in each call."""
    return PER_BATCH if isinstance(module, CONVOLUTIONS) else PER_TOKEN


def _check_ties(model: nn.Module, chosen: Mapping[str, tuple[Any, Spec]]) -> None:
    """Raise where modules that share a weight would no longer do."""
    for names in tied(model):
        specs = {name: chosen[name][1] for name in names if name in chosen}
        if specs and (len(specs) < len(names) or len({str(s.scheme) for s in specs.values()}) > 1):
            how = ", ".join(f"{name!r} {specs.get(name, KEEP)}" for name in names)
            first, expected = next(iter(specs)), "the same for all, or skip= for all"
            raise bad(f"module {first!r}", f"shares its weight: {how}", names, expected)
        if len({place(chosen[name][0]) for name in specs}) > 1:
            views = ", ".join(f"{name!r} {tuple(chosen[name][0].weight.shape)}" for name in names)
            found = f"shares the memory of its weight, in other views: {views}"
            raise bad(
                f"module {names[0]!r}", found, names, "weights of their own, or skip= for all"
            )
