"""Quantize a torch model in place, for inference: layers of `qrs.nn` in the places of torch's."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

from torch import nn

from ..calibration import Calibration
from ..errors import ArgTypeError, bad
from ..nn import Static
from ..schemes import Codebook, Scheme
from ..solvers import Solver, as_solver, minmax
from ..statistics import Statistics
from .modules import Report, checked_model, place, replace, weights_of, within
from .packed import PackedWeight, packed_weight
from .quantized import Quantized, quantized_module
from .spec import STATIC, Spec, assigned, per_call

CAPTURE = "qrs.torch.capture(model, batches)"

STATIC_INPUTS = "uint8"
"""What inputs become in a known range."""


def quantize_(
    model: nn.Module,
    recipe: str | Scheme | Mapping[str, Any],
    *,
    skip: Iterable[str] = (),
    solver: str | Solver = "minmax",
    statistics: Calibration | Mapping[str, Statistics] | None = None,
    strict: bool = False,
) -> Report:
    """Quantize the Linear, Conv1d, Conv2d and Embedding layers of a model in place.

    Parameters
    ----------
    recipe : what weights become, a scheme or its string: "int4-g128" leaves inputs float; one that
        ends in "-dynamic" quantizes them in each call and multiplies integers, "int8-dynamic" with
        a scale for each output of the weight and each token of the input (for each image batch of a
        convolution), "int4-g128-dynamic" with one for each group; "-static" the same in the range
        that `statistics` have of the input, as uint8. Or a mapping from patterns of module names
        to these or "keep", of which the first that matches holds, names before patterns; layers
        that none matches stay.
    skip : patterns of modules to leave alone.
    solver : see `qrs.quantize`. Those that need second moments take them from `statistics`.
    statistics : what `qrs.torch.capture` returned, or its second moments alone. Tables of
        embeddings, whose inputs are no numbers, are quantized without, by "lsq" where a solver
        needs them.
    strict : whether a layer that matches and cannot be quantized is an error; else it is in `left`
        of the report, unless its whole name was given.

    Layers that share a weight share the quantized one. The state dict of the result loads into a
    model that was quantized in the same way. Results carry no gradients: a backward pass through
    one of these layers is an error. Raises `ArgValueError` that names the module; after an error
    the model is what it was.

    >>> model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> quantize_(model, {"0": "int8-dynamic", "2": "keep"}).layers
    {'0': 'int8-axis0-dynamic'}
    """
    checked_model(model)
    plan = assigned(model, recipe, skip, strict)
    made = _made(plan.chosen, as_solver(solver), statistics)
    replace(model, {id(plan.chosen[name][0]): module for name, module in made.items()})
    how = {name: str(plan.chosen[name][1]) for name in made}
    return Report.of(how, plan.left, weights_of(made.values()))


def _made(
    chosen: Mapping[str, tuple[Any, Spec]], solver: Solver, statistics: Any
) -> dict[str, Quantized]:
    """The modules that take the places of others; those that share a weight still do."""
    known = _known_statistics(statistics, solver, [spec for _, spec in chosen.values()])
    packed: dict[Hashable, PackedWeight] = {}
    # What a weight is multiplied with says more of it than where it is looked up.
    by_inputs = sorted(chosen, key=lambda name: isinstance(chosen[name][0], nn.Embedding))
    for name in by_inputs:
        module, spec = chosen[name]
        at = place(module)
        if at not in packed:
            with within(name):
                packed[at] = _packed(name, module, spec.scheme, solver, known)
    made: dict[str, Quantized] = {}
    for name, (module, spec) in chosen.items():
        with within(name):
            inputs = inputs_of(module, spec, name, statistics)
            made[name] = quantized_module(packed[place(module)], module, inputs, name)
            made[name].layer()  # raises where the kernels do not take it
    return made


def inputs_of(module: nn.Module, spec: Spec, name: str, statistics: Any) -> str | Static | None:
    """What becomes of the input of a layer."""
    how = spec.inputs_of(module)
    if how != STATIC:
        return per_call(module) if how else None
    if not isinstance(statistics, Calibration) or name not in statistics:
        found = f"have no range of the input of {name!r}, which {spec} wants"
        raise bad("statistics", found, name, CAPTURE)
    return Static.of(statistics[name], STATIC_INPUTS)


def _packed(
    name: str, module: Any, scheme: Scheme, solver: Solver, known: Mapping[str, Statistics]
) -> PackedWeight:
    """The weight, by the solver with what is known of its inputs."""
    weight, found = module.weight, known.get(name)
    if isinstance(module, nn.Embedding):
        found, solver = None, as_solver(_of_a_table(solver, scheme))
    elif _needs_statistics(solver):
        if found is None:
            have = ", ".join(list(known)[:8]) or "nothing"
            raise bad("statistics", f"has {have}", name, f"moments of the inputs: {CAPTURE}")
        return packed_weight(weight, scheme, solver, found)
    if solver is minmax and not _is_learned(scheme):
        found = None
    importance = None if found is None else found.diag
    if importance is not None and importance.size != weight[0].numel():
        expected = f"{weight[0].numel()} features"
        raise bad("statistics", f"has {importance.size} features", importance.size, expected)
    if importance is not None:
        importance = importance.reshape(tuple(weight.shape[1:]))
    return packed_weight(weight, scheme, solver, weights=importance)


def _of_a_table(solver: Solver, scheme: Scheme) -> Any:
    """The solver of rows that are looked up: there are no inputs that GPTQ could know of."""
    if not _needs_statistics(solver):
        return solver
    return "minmax" if _is_learned(scheme) else "lsq"


def _known_statistics(
    statistics: Any, solver: Solver, specs: Iterable[Spec]
) -> Mapping[str, Statistics]:
    """Second moments by module; raises where they are none, or nobody has a use for them."""
    if statistics is None:
        return {}
    known = statistics.statistics if isinstance(statistics, Calibration) else statistics
    if not isinstance(known, Mapping) or not all(isinstance(s, Statistics) for s in known.values()):
        found = f"got {type(statistics).__name__}"
        raise bad("statistics", found, type(statistics), f"a Calibration: {CAPTURE}", ArgTypeError)
    wanted = any(_is_learned(spec.scheme) or spec.inputs == STATIC for spec in specs)
    if solver is minmax and not wanted:
        found = "given, and solver 'minmax' looks at the weight alone"
        raise bad("statistics", found, len(known), "solver='lsq' or 'gptq' beside them")
    return known


def _needs_statistics(solver: Solver) -> bool:
    return bool(getattr(solver, "needs_statistics", False))


def _is_learned(scheme: Scheme) -> bool:
    return isinstance(scheme, Codebook) and scheme.is_learned
