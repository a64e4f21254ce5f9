"""What goes into a model for training, and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ...errors import ArgTypeError, bad
from ...granularity import PerTensor
from ...observers import MovingAverage, Observer
from ...schemes import Int, Scheme, as_scheme
from ..arrays import as_array
from ..modules import Report, checked_model, place, replace, weights_of, within
from ..packed import PackedWeight
from ..quantized import Quantized
from ..spec import STATIC, Spec, assigned, per_call
from .batch_norm import pairs
from .inputs import Inputs, Observed, PerCall
from .layers import QATConv, QATEmbedding, QATLayer, QATLinear
from .weights import LEARNED, WeightQuantizer, weight_quantizer

SCALES = (LEARNED, "minmax", "lsq")
MASTERS = (torch.float32, torch.float64)


def prepare_qat(
    model: nn.Module,
    recipe: str | Scheme | Mapping[str, Any] = "int8-static",
    *,
    skip: Iterable[str] = (),
    strict: bool = False,
    scales: str | None = None,
    inputs: Scheme | str = "uint8",
    observer: Callable[[], Observer] = MovingAverage,
    fold: bool | Mapping[str, str] = True,
) -> Report:
    """Put layers that quantize in the forward pass in the places of Linear, Conv1d, Conv2d and
    Embedding.

    Parameters
    ----------
    recipe : what weights become, as for `quantize_`: "int4-g32" leaves inputs float; "-dynamic"
        quantizes them in the range of each call, "-static" in a range that is observed during
        training; "bf16" trains float weights with a copy in bfloat16.
    skip, strict : as for `quantize_`.
    scales : of weights: "learned" beside them (LSQ, with zero points where the scheme has them),
        "minmax" or "lsq" found anew in each pass. By default "learned" for integers, "minmax" for
        codebooks, floats and groups that do not divide the last axis.
    inputs : the scheme of static inputs, integers per tensor.
    observer : what makes the observer of an input: one of `qrs.observers`.
    fold : whether batch norms behind layers are folded into them, which torch.fx finds; or a
        mapping from layers to their norms. A folded norm becomes `nn.Identity`, and its layer
        trains as one with it, until `freeze` or a `FreezeSchedule` keeps its statistics.

    Weights and biases stay the parameters that they were; steps that are learned come to them, so
    that the optimizer is made after this call. The state dict of the result loads into a model that
    was prepared in the same way. Layers that share a weight share its scales. Under `torch.compile`
    the graph breaks at each quantization. Raises `ArgValueError` that names the module; after an
    error the model is what it was.

    Returns what will be stored; `convert` makes it so.
    """
    checked_model(model)
    known = next((name for name, m in model.named_modules() if isinstance(m, QATLayer)), None)
    if known is not None:
        raise bad("model", f"module {known!r} is prepared already", known, "convert(model) first")
    if scales is not None and (not isinstance(scales, str) or scales not in SCALES):
        raise bad("scales", f"got {scales!r}", scales, f"None, or one of: {', '.join(SCALES)}")
    plan = assigned(model, recipe, skip, strict)
    for name, (module, _) in plan.chosen.items():
        _check_trainable(name, module)
    folded = pairs(model, {name: module for name, (module, _) in plan.chosen.items()}, fold)
    places = [place(module) for module, _ in plan.chosen.values()]
    for layer in folded:
        if places.count(place(plan.chosen[layer][0])) > 1:
            found = f"folds {folded[layer]!r} into {layer!r}, whose weight is shared"
            raise bad("fold", found, layer, "fold=False, or other pairs")
    norms = {layer: model.get_submodule(norm) for layer, norm in folded.items()}
    makers = _Makers(scales, static_scheme(inputs), observer)
    made = makers.layers(plan.chosen, norms)
    trial = {name: _trial(layer) for name, layer in made.items()}
    new: dict[int, nn.Module] = {id(plan.chosen[n][0]): layer for n, layer in made.items()}
    replace(model, new | {id(norm): nn.Identity() for norm in norms.values()})
    how = {name: _words(plan.chosen[name][1], made[name], folded.get(name)) for name in made}
    return Report.of(how, plan.left, trial.values())


def convert(model: nn.Module) -> Report:
    """Put layers of `qrs.nn` in the places of those that `prepare_qat` made.

    What they store is what the model computed with, bit for bit; ranges of inputs and batch norms
    are those of evaluation mode. `checkpoint(model)` is what `qrs.save` takes of the result. Layers
    of 16 bits become those of torch again, with rounded weights. Raises `ArgValueError` that names
    the module where a range has never been observed or a number is not finite; after an error the
    model is what it was.
    """
    layers = {n: m for n, m in checked_model(model).named_modules() if isinstance(m, QATLayer)}
    if not layers:
        raise bad("model", "has no layer that is prepared", type(model).__name__, "prepare_qat")
    packed: dict[Hashable, PackedWeight] = {}
    made: dict[str, Quantized] = {}
    for name, layer in layers.items():
        with within(name):
            activation = None if layer.inputs is None else layer.inputs.activation()
        if place(layer) not in packed:
            packed[place(layer)] = layer.packed()
        if not _is_wide(layer):
            made[name] = layer.converted(packed[place(layer)], activation)
            with within(name):
                made[name].layer()
    wide = {n: m for n, m in layers.items() if _is_wide(m)}
    new: dict[int, nn.Module] = {id(layers[name]): module for name, module in made.items()}
    values: dict[Hashable, nn.Parameter] = {}
    for layer in wide.values():
        at = place(layer)
        if at not in values:
            values[at] = nn.Parameter(packed[at].dequantize(layer.weight.dtype))
        new[id(layer)] = layer.unpacked(values[at])
    replace(model, new)
    how = {name: str(_spec_of(layer)) for name, layer in layers.items()}
    return Report.of(how, {}, weights_of(made.values()))


def checkpoint(model: nn.Module) -> dict[str, Any]:
    """What `qrs.save` takes of a model with quantized layers: weights, ranges, and all the rest.

    Names are those of modules: `fc.weight` (a QTensor), `fc.bias`, `fc.input_scale`. Each layer
    comes back as `qrs.nn.Linear.from_state(state, "fc.", activation="uint8")`.
    """
    modules = dict(checked_model(model).named_modules(remove_duplicate=False))
    for name, module in modules.items():
        if isinstance(module, QATLayer):
            raise bad("model", f"module {name!r} is prepared", name, "convert(model) first")
    state: dict[str, Any] = {}
    quantized = {n: m for n, m in modules.items() if isinstance(m, Quantized)}
    for name, module in quantized.items():
        state |= module.layer().state(f"{name}.")
    packed = {n: m for n, m in modules.items() if isinstance(m, PackedWeight)}
    for name, module in packed.items():
        state.setdefault(name, module.qtensor())  # of layers with adapters
    known = tuple(f"{name}." for name in (*quantized, *packed))
    own = dict(model.named_parameters(remove_duplicate=False))
    own |= dict(model.named_buffers(remove_duplicate=False))
    for name, tensor in own.items():
        if not name.startswith(known):
            state[name] = as_array(tensor.detach().cpu().contiguous())
    return state


class _Makers:
    """What makes layers that are trained."""

    def __init__(self, scales: str | None, inputs: Int, observer: Callable[[], Observer]) -> None:
        if not callable(observer) or not isinstance(observer(), Observer):
            expected = "a class of qrs.observers, or a function that makes one"
            raise bad("observer", f"got {observer!r}", observer, expected, ArgTypeError)
        self.scales, self.scheme, self.observer = scales, inputs, observer

    def layers(
        self, chosen: Mapping[str, tuple[Any, Spec]], norms: Mapping[str, Any]
    ) -> dict[str, QATLayer]:
        """By name; those that share a weight share what quantizes it."""
        quantizers: dict[Hashable, WeightQuantizer] = {}
        made: dict[str, QATLayer] = {}
        for name, (module, spec) in chosen.items():
            norm = norms.get(name)
            layer = _kind(module)(module, nn.Identity(), self.inputs(module, spec), norm, name)
            at = place(module)
            if at not in quantizers:
                with within(name):
                    weight = layer.folded()[0]
                    quantizers[at] = weight_quantizer(weight, spec.scheme, self.scales)
                quantizers[at].requires_grad_(module.weight.requires_grad)
            layer.quantizer = quantizers[at].to(module.weight.device)
            made[name] = layer
        return made

    def inputs(self, module: nn.Module, spec: Spec) -> Inputs | None:
        """What becomes of the input of a layer."""
        how = spec.inputs_of(module)
        if how != STATIC:
            return PerCall(per_call(module)) if how else None
        observed: Observed = Observed(self.scheme, self.observer()).to(module.weight.device)
        return observed


def static_scheme(inputs: Any) -> Int:
    """The scheme of inputs in a known range."""
    scheme = as_scheme(inputs)
    if not isinstance(scheme, Int) or not isinstance(scheme.granularity, PerTensor):
        expected = "integers per tensor, such as 'uint8'"
        raise bad("inputs", f"got {scheme}", str(scheme), expected)
    return scheme


def _kind(module: nn.Module) -> Any:
    if isinstance(module, nn.Embedding):
        return QATEmbedding
    return QATLinear if isinstance(module, nn.Linear) else QATConv


def _trial(layer: QATLayer) -> PackedWeight:
    """The weight as it would be stored now; raises where no layer of qrs takes it."""
    weight = layer.packed()
    if _is_wide(layer):
        return weight
    activation = None if layer.inputs is None else layer.inputs.stand_in()
    with within(layer.name):
        layer.converted(weight, activation).layer()
    return weight


def _is_wide(layer: QATLayer) -> bool:
    """Whether the weight is of 16 bits, which torch multiplies."""
    return layer.quantizer.scheme.bits > 8 and layer.inputs is None


def _spec_of(layer: QATLayer) -> Spec:
    return Spec(layer.quantizer.scheme, None if layer.inputs is None else layer.inputs.kind)


def _words(spec: Spec, layer: QATLayer, norm: str | None) -> str:
    """How a layer is trained."""
    how = "learned steps" if hasattr(layer.quantizer, "step") else layer.quantizer.solver
    return f"{spec}, {how}{f', folds {norm!r}' if norm else ''}"


def _check_trainable(name: str, module: Any) -> None:
    """Raise for weights that training would lose."""
    if module.weight.dtype not in MASTERS:
        expected = "float32, whose small updates are not lost: model.float(), and torch.autocast"
        raise bad(
            f"module {name!r}, weight", f"is {module.weight.dtype}", module.weight.dtype, expected
        )
    if isinstance(module, nn.Embedding) and module.sparse:
        expected = "sparse=False: all of the table is quantized"
        raise bad(f"module {name!r}", "has sparse gradients", name, expected)
