"""Adapters in files, as PEFT lays them out: a safetensors file and a JSON file in a folder.

`adapter_model.safetensors` has `base_model.model.<module>.lora_A.weight` (rank, in) and `lora_B`
(out, rank); `adapter_config.json` has rank, alpha, dropout and the modules.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn

from ...errors import FormatError, StorageError, bad
from ...formats import strict_json
from ...formats.atomic import as_path, atomic_folder, atomic_write_bytes
from ...formats.qrs_file import load, save
from ...formats.strict_json import quote
from ..arrays import as_array, as_tensor
from .linear import LoraLinear

TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
NAME = re.compile(rf"{re.escape(PREFIX)}(?P<module>.+)\.lora_(?P<part>[AB])\.weight")
OTHERWISE = {
    "peft_type": "LORA", "bias": "none", "fan_in_fan_out": False, "lora_bias": False,
    "use_dora": False, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {},
}  # fmt: skip
"""What PEFT can do and these layers do not: fields, and what they must say if they are there."""

STARTS = ("gaussian", "orthogonal", "eva")
"""`init_lora_weights`, beside true and false, that leave the base model as it was: PiSSA, OLoRA,
LoftQ and CorDA change it."""

Tensors = dict[str, dict[str, torch.Tensor]]


def write(
    folder: str | os.PathLike[str],
    model: nn.Module,
    layers: Mapping[str, LoraLinear],
    base_model: str | None,
) -> None:
    """The body of `qrs.torch.lora.save`."""
    tensors: dict[str, Any] = {}
    for name, layer in layers.items():
        layer.check_finite()
        for part, linear in (("A", layer.lora_A), ("B", layer.lora_B)):
            tensors[f"{PREFIX}{name}.lora_{part}.weight"] = as_array(linear.weight.cpu())
    first = next(iter(layers.values()))
    config = OTHERWISE | {
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": first.alpha,
        "lora_dropout": getattr(first.dropout, "p", 0.0),
        "modules_to_save": None,
        "r": first.rank,
        "target_modules": _target_modules(model, layers),
        "task_type": None,
    }
    with atomic_folder(as_path(folder, "folder")) as temporary:
        save(temporary / TENSORS, tensors, {"format": "pt"})
        text = json.dumps(config, indent=2, sort_keys=True)
        atomic_write_bytes(temporary / CONFIG, f"{text}\n".encode())


def _target_modules(model: nn.Module, layers: Mapping[str, LoraLinear]) -> list[str] | str:
    """The modules by name; as a regular expression where PEFT would find others by the names' ends.

    A name in PEFT's list stands for all modules whose names end with it.
    """
    names = list(layers)
    ends = tuple(f".{name}" for name in names)
    others = [name for name, _ in model.named_modules() if name not in layers]
    if any(name.endswith(ends) for name in others):
        return "|".join(re.escape(name) for name in names)
    return names


@dataclass(frozen=True)
class Adapter:
    """What a folder has."""

    folder: Path
    rank: int
    alpha: float
    dropout: float
    tensors: Tensors
    """Name of a module -> "A" and "B"."""

    @property
    def names(self) -> list[str]:
        """Of the modules."""
        return list(self.tensors)

    def check(self, model: nn.Module, layers: Mapping[str, LoraLinear]) -> None:
        """Raise `ArgValueError` unless the adapters fit a model, and those that it has."""
        modules = dict(model.named_modules())
        for name, parts in self.tensors.items():
            module = modules.get(name)
            if not isinstance(module, nn.Linear | LoraLinear):
                found = f"{self.folder} has an adapter for {quote(name)}"
                what = "no module of this model" if module is None else type(module).__name__
                raise bad("model", f"{found}, which is {what}", name, "a Linear of that name")
            shapes = tuple(parts["A"].shape), tuple(parts["B"].shape)
            expected = (self.rank, module.in_features), (module.out_features, self.rank)
            if shapes != expected:
                found = f"{self.folder} has lora_A and lora_B of {shapes[0]} and {shapes[1]}"
                raise bad(f"module {name!r}", found, shapes, f"{expected[0]} and {expected[1]}")
        for name in sorted(layers.keys() ^ self.tensors.keys() if layers else ()):
            found = f"has {'no ' * (name not in layers)}adapter at {name!r}"
            raise bad("model", found, name, f"the modules of {self.folder}")
        for name, layer in layers.items():
            mine = layer.rank, layer.alpha
            if mine != (self.rank, self.alpha):
                found = f"has rank and alpha {mine}"
                raise bad(f"module {name!r}", found, mine, f"{(self.rank, self.alpha)}")

    def fill(self, layers: Mapping[str, LoraLinear]) -> None:
        """Copy the numbers into the layers."""
        with torch.no_grad():
            for name, parts in self.tensors.items():
                layers[name].lora_A.weight.copy_(parts["A"])
                layers[name].lora_B.weight.copy_(parts["B"])


def read(folder: str | os.PathLike[str]) -> Adapter:
    """The adapters in a folder. Raises `FormatError` and `StorageError`."""
    path = as_path(folder, "folder")
    rank, alpha, dropout = _read_config(path / CONFIG)
    tensors: Tensors = {}
    for name, array in load(path / TENSORS).items():
        match = NAME.fullmatch(name)
        if match is None or not isinstance(array, np.ndarray) or array.ndim != 2:
            _fail(path / TENSORS, f"{quote(name)} is no lora_A or lora_B of a Linear layer", name)
        if not np.isfinite(array.astype(np.float32)).all():
            _fail(path / TENSORS, f"{quote(name)} has NaN or infinite values", name)
        tensors.setdefault(match["module"], {})[match["part"]] = as_tensor(array)
    for module, parts in tensors.items():
        if len(parts) < 2:
            _fail(path / TENSORS, f"{quote(module)} has lora_{min(parts)} alone", module)
    if not tensors:
        _fail(path / TENSORS, "has no adapters")
    return Adapter(path, rank, alpha, dropout, tensors)


def _read_config(path: Path) -> tuple[int, float, float]:
    """Rank, alpha and dropout of a configuration that these layers can follow."""
    try:
        config = strict_json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise StorageError(error.errno or 0, error.strerror or str(error), path) from None
    except ValueError as error:  # of JSON, of UTF-8
        _fail(path, str(error))
    if not isinstance(config, dict):
        _fail(path, f"got {quote(config)}, expected an object")
    for key, expected in OTHERWISE.items():
        if config.get(key) not in (None, expected):
            _fail(path, f"{key} is {quote(config[key])}, expected {expected!r}", field=key)
    start = config.get("init_lora_weights")
    if not (start is None or isinstance(start, bool) or start in STARTS):
        problem = f"init_lora_weights is {quote(start)}, which changes the weights of the base"
        _fail(
            path, f"{problem}, expected true, false or one of {STARTS}", field="init_lora_weights"
        )
    if config.get("modules_to_save"):
        _fail(path, f"modules_to_save: {quote(config['modules_to_save'])}", field="modules_to_save")
    rank: Any = config.get("r")
    alpha: Any = config.get("lora_alpha")
    dropout: Any = config.get("lora_dropout", 0.0)
    if type(rank) is not int or rank < 1:
        _fail(path, f"r is {quote(rank)}, expected an integer from 1", field="r")
    if type(alpha) not in (int, float) or not 0 < alpha < float("inf"):
        _fail(path, f"lora_alpha is {quote(alpha)}, expected a number", field="lora_alpha")
    if type(dropout) not in (int, float) or not 0 <= dropout < 1:
        _fail(path, f"lora_dropout is {quote(dropout)}, expected 0 to 1", field="lora_dropout")
    return rank, float(alpha), float(dropout)


def _fail(
    path: Path, problem: str, tensor: str | None = None, *, field: str | None = None
) -> NoReturn:
    raise FormatError(f"{path}: {problem}", path=path, tensor=tensor, field=field)
