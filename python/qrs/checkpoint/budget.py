"""Mixed precision: a scheme for each tensor, so that all take a given number of bits per weight.

Each candidate is tried on each tensor. What it costs is the part of the signal that is lost, times
the number of weights: of the output of the layer where second moments of its inputs are known, of
the weight itself otherwise. Of each tensor the candidates on the lower convex hull of (bits, cost)
are taken, the cheapest first, and then the steps up that gain most per bit, as long as they fit.
That is the least cost for a budget, but for the last step that does not fit (Shoham and Gersho,
"Efficient bit allocation for an arbitrary set of quantizers", 1988).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ArgValueError, bad
from ..schemes import as_scheme
from .plan import Plan, TensorPlan, finite, make_plan
from .recipe import KEEP, Recipe, Rule
from .report import ErrorSums
from .source import Checkpoint, Shard
from .stream import add_errors, add_output, quantized_blocks

CANDIDATES = ("int3-g128-asym-f16", "int4-g128-asym-f16", "nf4-g64-f16", "int8-axis0")


@dataclass(frozen=True)
class Choice:
    """One candidate for one tensor, measured."""

    plan: TensorPlan
    loss: float
    """The part of the signal that is lost."""

    @property
    def bits(self) -> int:
        """All that is stored."""
        return 8 * self.plan.nbytes_after

    @property
    def cost(self) -> float:
        """The loss, once for each weight."""
        return self.loss * self.plan.size

    @property
    def bits_per_weight(self) -> float:
        """Bits over weights."""
        return self.bits / self.plan.size

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "scheme": str(self.plan.scheme),
            "bits_per_weight": self.bits_per_weight,
            "loss": finite(self.loss),
        }


@dataclass(frozen=True)
class Budget:
    """What was chosen for each tensor, and what there was to choose from."""

    target_bits: float
    solver: str
    chosen: tuple[Choice, ...]
    measured: tuple[tuple[Choice, ...], ...]
    kept: tuple[str, ...]

    @property
    def bits_per_weight(self) -> float:
        """Of all tensors together."""
        return sum(c.bits for c in self.chosen) / sum(c.plan.size for c in self.chosen)

    @property
    def loss(self) -> float:
        """The part of the signal that is lost, on average over weights."""
        return sum(c.cost for c in self.chosen) / sum(c.plan.size for c in self.chosen)

    @property
    def recipe(self) -> Recipe:
        """For `quantize_checkpoint(..., recipe=)`; tensors that were not asked about stay."""
        rules = {c.plan.name: Rule(str(c.plan.scheme), self.solver) for c in self.chosen}
        return Recipe(Rule(), rules | {name: Rule(KEEP) for name in self.kept})

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        tensors = [
            {"name": c.plan.name, **c.to_dict(), "candidates": [m.to_dict() for m in measured]}
            for c, measured in zip(self.chosen, self.measured, strict=True)
        ]
        return {
            "target_bits": self.target_bits,
            "bits_per_weight": self.bits_per_weight,
            "loss": finite(self.loss),
            "solver": self.solver,
            "tensors": tensors,
        }


def plan_bits(
    source: Checkpoint,
    target_bits: float,
    candidates: Sequence[str] = CANDIDATES,
    *,
    solver: str = "lsq",
    progress: Callable[[str, int], None] | None = None,
    **options: Any,
) -> Budget:
    """Choose schemes for the tensors of a checkpoint.

    Parameters
    ----------
    source : from `open_checkpoint`.
    target_bits : bits per weight that are not exceeded, scales and tables counted.
    candidates : strings of schemes, two or more.
    solver : for all of them.
    progress : called with a tensor's name and bytes, once for each candidate.
    options : `include`, `exclude`, `embeddings`, `statistics`, `backend` of `make_plan`.

    Raises `ArgValueError` where even the cheapest candidates take more than `target_bits`.
    """
    target_bits = checked_target(target_bits)
    plans = candidate_plans(source, candidates, solver, options)
    check_reachable(plans, target_bits)
    shards = {name: shard for shard in source.shards for name in shard.names}
    measured = [
        tuple(_measured(shards[name], plan, t, progress) for plan, t in tried)
        for name, tried in plans.items()
    ]
    chosen = choose(measured, target_bits)
    kept = [t.name for t in source.tensors if t.name not in plans]
    return Budget(target_bits, solver, tuple(chosen), tuple(measured), tuple(kept))


def candidate_plans(
    source: Checkpoint, candidates: Sequence[str], solver: str, options: dict[str, Any]
) -> dict[str, list[tuple[Plan, TensorPlan]]]:
    """For each tensor what each candidate makes of it, from headers alone."""
    schemes = list(dict.fromkeys(str(as_scheme(text)) for text in candidates))
    if len(schemes) < 2:
        found = f"got {', '.join(schemes) or 'none'}"
        raise bad("candidates", found, schemes, "two schemes or more")
    source.check_plain()
    tried: dict[str, list[tuple[Plan, TensorPlan]]] = {}
    for scheme in schemes:
        plan = make_plan(source.tensors, scheme, solver=solver, **options)
        for t in plan.quantized:
            tried.setdefault(t.name, []).append((plan, t))
    if not tried:
        raise bad("model", "has no tensor to quantize", str(source.path), "weights")
    return tried


def check_reachable(tried: dict[str, list[tuple[Plan, TensorPlan]]], target_bits: float) -> None:
    """Raise `ArgValueError` where the cheapest candidates take more bits per weight."""
    cheapest = [min((t for _, t in some), key=lambda t: t.nbytes_after) for some in tried.values()]
    least = 8 * sum(t.nbytes_after for t in cheapest) / sum(t.size for t in cheapest)
    if least > target_bits:
        found = f"got {target_bits}, and the cheapest candidates take {least:.4f} bits per weight"
        raise bad("target_bits", found, target_bits, f"{least:.4f} or more, or cheaper candidates")


def choose(measured: Sequence[Sequence[Choice]], target_bits: float) -> list[Choice]:
    """A choice for each tensor: the least cost within the budget, up to one step."""
    hulls = [lower_hull(choices) for choices in measured]
    at = [0] * len(hulls)
    room = target_bits * sum(hull[0].plan.size for hull in hulls) - sum(h[0].bits for h in hulls)
    # Of one tensor, each step gains less per bit than the one before: the order keeps them apart.
    steps = sorted(
        (-_gain(hull[k], hull[k + 1]), tensor, k)
        for tensor, hull in enumerate(hulls)
        for k in range(len(hull) - 1)
    )
    for _, tensor, k in steps:
        more = hulls[tensor][k + 1].bits - hulls[tensor][k].bits
        if at[tensor] == k and more <= room:
            at[tensor], room = k + 1, room - more
    return [hull[k] for hull, k in zip(hulls, at, strict=True)]


def lower_hull(choices: Sequence[Choice]) -> list[Choice]:
    """Those of which no mixture of others has less cost at as many bits, by bits."""
    hull: list[Choice] = []
    for choice in sorted(choices, key=lambda c: (c.bits, c.cost)):
        if hull and choice.cost >= hull[-1].cost:
            continue
        while len(hull) > 1 and _gain(hull[-2], hull[-1]) <= _gain(hull[-1], choice):
            hull.pop()
        hull.append(choice)
    return hull


def _gain(cheap: Choice, dear: Choice) -> float:
    """Less cost per bit more."""
    bits = dear.bits - cheap.bits
    return (cheap.cost - dear.cost) / bits if bits else math.inf


def _measured(
    shard: Shard, plan: Plan, t: TensorPlan, progress: Callable[[str, int], None] | None
) -> Choice:
    """A candidate tried on a tensor."""
    errors = ErrorSums()
    known = plan.statistics.of(t.layer) if plan.statistics is not None and t.layer else None
    with shard.open() as file:
        for x, qt in quantized_blocks(file, t, plan.backend, known):
            add_errors(errors, x, qt, plan.backend)
            add_output(errors, x, qt, t, plan.backend, known)
    if progress is not None:
        progress(t.name, t.nbytes)
    lost = errors.noise / errors.signal if errors.signal else 0.0
    output = errors.output_error
    return Choice(t, lost if output is None else output)


def checked_target(value: float) -> float:
    """Bits per weight: a number above 0."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise ArgValueError(
            f"target_bits: got {value!r}, expected a number above 0", arg="target_bits", value=value
        )
    return float(value)
