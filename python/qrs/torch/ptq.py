"""Quantize a torch model in place, for inference: layers of `qrs.nn` in the places of torch's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..calibration import Calibration
from ..errors import ArgTypeError, bad
from ..granularity import PerAxis, PerTensor
from ..schemes import Codebook, Scheme, as_scheme
from ..solvers import GPTQ, Solver, as_solver, minmax
from ..statistics import Statistics
from .modules import Report, checked_model, choose, matches, replace, tied, weights_of, within
from .packed import PackedWeight, packed_weight
from .quantized import Quantized, QuantizedConv, QuantizedEmbedding, QuantizedLinear

KEEP = "keep"
DYNAMIC = "-dynamic"
CAPTURE = "qrs.torch.capture(model, batches)"

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
KINDS = (nn.Linear, *CONVOLUTIONS, nn.Embedding)


@dataclass(frozen=True)
class Spec:
    """How weights are stored, and whether products are in integers.

    >>> str(Spec.parse("int8-dynamic")), str(Spec.parse("int4-g128"))
    ('int8-axis0-dynamic', 'int4-g128')
    """

    scheme: Scheme
    dynamic: bool = False

    @classmethod
    def parse(cls, value: Any) -> Spec | None:
        """The spec of a scheme or a string; None of "keep"."""
        if isinstance(value, str) and value == KEEP:
            return None
        dynamic = isinstance(value, str) and value.endswith(DYNAMIC)
        scheme = as_scheme(value.removesuffix(DYNAMIC) if dynamic else value)
        if dynamic and isinstance(scheme.granularity, PerTensor):
            scheme = scheme.with_granularity(PerAxis(0))
        return cls(scheme, dynamic)

    def refusal(self, module: nn.Module) -> str | None:
        """Why a module cannot have it; None where it can."""
        if isinstance(module, CONVOLUTIONS) and not self.dynamic:
            return f"convolutions multiply integers: '{DYNAMIC[1:]}' schemes, not {self}"
        return None

    def __str__(self) -> str:
        return f"{self.scheme}{DYNAMIC if self.dynamic else ''}"


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
        convolution), "int4-g128-dynamic" with one for each group. Or a mapping from patterns of
        module names to these or "keep", of which the first that matches holds, names before
        patterns; layers that none matches stay.
    skip : patterns of modules to leave alone.
    solver : see `qrs.quantize`. Those that need second moments take them from `statistics`.
    statistics : what `qrs.torch.capture` returned. Tables of embeddings, whose inputs are no
        numbers, are quantized without, by "lsq" where a solver needs them.
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
    rules = recipe if isinstance(recipe, Mapping) else {"*": recipe}
    specs = {pattern: Spec.parse(value) for pattern, value in rules.items()}
    choice = choose(model, KINDS, specs, skip, strict)
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
        raise bad("recipe", "leaves every layer as it is", recipe, "a scheme for one of them")
    _check_ties(model, chosen)
    made = _made(chosen, as_solver(solver), statistics)
    replace(model, {id(chosen[name][0]): module for name, module in made.items()})
    how = {name: str(chosen[name][1]) for name in made}
    return Report.of(how, left, weights_of(made.values()))


def _made(
    chosen: Mapping[str, tuple[Any, Spec]], solver: Solver, statistics: Any
) -> dict[str, Quantized]:
    """The modules that take the places of others; those that share a weight still do."""
    known = _known_statistics(statistics, solver, [spec for _, spec in chosen.values()])
    packed: dict[int, PackedWeight] = {}
    # What a weight is multiplied with says more of it than where it is looked up.
    by_inputs = sorted(chosen, key=lambda name: isinstance(chosen[name][0], nn.Embedding))
    for name in by_inputs:
        module, spec = chosen[name]
        at = _place(module)
        if at not in packed:
            with within(name):
                packed[at] = _packed(name, module, spec.scheme, solver, known)
    made: dict[str, Quantized] = {}
    for name, (module, spec) in chosen.items():
        with within(name):
            made[name] = _module(packed[_place(module)], module, spec, name)
            made[name].layer()  # raises where the kernels do not take it
    return made


def _module(weight: PackedWeight, module: Any, spec: Spec, name: str) -> Quantized:
    """What takes the place of one module."""
    if isinstance(module, nn.Embedding):
        return QuantizedEmbedding(weight, None, name)
    if isinstance(module, nn.Linear):
        return QuantizedLinear(weight, module.bias, spec.dynamic, name)
    return QuantizedConv(weight, module, name)


def _packed(
    name: str, module: Any, scheme: Scheme, solver: Solver, known: Mapping[str, Statistics]
) -> PackedWeight:
    """The weight, by the solver with what is known of its inputs."""
    weight, found = module.weight, known.get(name)
    if isinstance(module, nn.Embedding):
        found, solver = None, as_solver(_of_a_table(solver, scheme))
    elif isinstance(solver, GPTQ):
        if found is None:
            have = ", ".join(list(known)[:8]) or "nothing"
            raise bad("statistics", f"has {have}", name, f"moments of the inputs: {CAPTURE}")
        return packed_weight(weight, scheme, solver, found)
    importance = None if found is None else found.diag
    if importance is not None and importance.size != weight[0].numel():
        expected = f"{weight[0].numel()} features"
        raise bad("statistics", f"has {importance.size} features", importance.size, expected)
    if importance is not None:
        importance = importance.reshape(tuple(weight.shape[1:]))
    return packed_weight(weight, scheme, solver, weights=importance)


def _of_a_table(solver: Solver, scheme: Scheme) -> Any:
    """The solver of rows that are looked up: there are no inputs that GPTQ could know of."""
    if not isinstance(solver, GPTQ):
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
    if solver is minmax and not any(_is_learned(spec.scheme) for spec in specs):
        found = "given, and solver 'minmax' looks at the weight alone"
        raise bad("statistics", found, len(known), "solver='lsq' or 'gptq' beside them")
    return known


def _is_learned(scheme: Scheme) -> bool:
    return isinstance(scheme, Codebook) and scheme.is_learned


def _check_ties(model: nn.Module, chosen: Mapping[str, tuple[Any, Spec]]) -> None:
    """Raise where modules that share a weight would no longer do."""
    for names in tied(model).values():
        specs = {name: chosen[name][1] for name in names if name in chosen}
        if specs and (len(specs) < len(names) or len(set(map(str, specs.values()))) > 1):
            how = ", ".join(f"{name!r} {specs.get(name, KEEP)}" for name in names)
            first, expected = next(iter(specs)), "the same for all, or skip= for all"
            raise bad(f"module {first!r}", f"shares its weight: {how}", names, expected)


def _place(module: Any) -> int:
    return int(module.weight.data_ptr())
