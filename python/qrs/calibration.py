"""Calibration: a representative set of activations, and what observers and solvers keep of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import as_input, plain
from .errors import ArgTypeError, ArgValueError, FormatError, QrsError, StorageError, bad
from .formats.qrs_file import load, save
from .observers import MSE, Observer, from_state
from .schemes import Int, Scheme, as_scheme
from .statistics import Statistics

Batch = Mapping[str, Any]

OBSERVER, STATISTICS, COUNTS = ".observer.", ".statistics.", ".calibration."


class Calibration(Mapping[str, Observer]):
    """The observer of each layer's input, by name, and its `statistics` where they were asked for.

    Made by `qrs.calibrate`; `save` and `load` carry it through a safetensors file, and `merge` adds
    what another machine has seen.
    """

    def __init__(self) -> None:
        self.observers: dict[str, Observer] = {}
        self.statistics: dict[str, Statistics] = {}
        self.batches: dict[str, int] = {}
        """Batches in which each layer had values."""
        self.tokens: dict[str, int] = {}
        """Rows of the last axis that each layer had."""
        self.features: dict[str, int] = {}
        """The length of the last axis."""

    def __getitem__(self, layer: str) -> Observer:
        return self.observers[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self.observers)

    def __len__(self) -> int:
        return len(self.observers)

    def qparams(self, scheme: Scheme | str = "uint8") -> dict[str, tuple[Any, Any]]:
        """Scale and zero point of each layer's input."""
        return {
            layer: _of_layer(layer, observer.qparams, scheme) for layer, observer in self.items()
        }

    def activation_parameters(self, scheme: Scheme | str = "uint8") -> dict[str, NDArray[Any]]:
        """`<layer>.input_scale` and `<layer>.input_zero_point` of each layer, for `qrs.save`.

        `qrs.nn` layers find them there (`from_state`); zero points have the dtype of codes.
        """
        known = as_scheme(scheme)
        dtype = known.code_dtype if isinstance(known, Int) else np.dtype(np.int8)
        found = {}
        for layer, (scale, zero_point) in self.qparams(known).items():
            zeros = np.zeros(np.shape(scale)) if zero_point is None else zero_point
            found[f"{layer}.input_scale"] = np.asarray(scale, np.float32)
            found[f"{layer}.input_zero_point"] = np.asarray(zeros).astype(dtype)
        return found

    def warnings(self) -> list[str]:
        """What a user should know of: channels that are always zero, too few tokens."""
        found = []
        for layer, observer in self.items():
            if observer.lo is None or observer.hi is None:
                found.append(f"{layer}: no values")
                continue
            silent = (observer.lo == 0) & (observer.hi == 0)
            if silent.any():
                what = (
                    f"{int(silent.sum())} of {silent.size} channels" if silent.ndim else "the input"
                )
                found.append(f"{layer}: {what} always zero, scale 1")
            found += [f"{layer}: {words}" for words in self._warnings_of(layer)]
        return found

    def _warnings_of(self, layer: str) -> list[str]:
        """What is wrong with the second moments of a layer."""
        statistics = self.statistics.get(layer)
        if statistics is None or not statistics.features:
            return []
        found, features = [], statistics.features
        if statistics.n_tokens < features:
            few = f"{statistics.n_tokens} tokens for {features} features"
            found.append(f"{few}, the Hessian is singular")
        dead = int(np.count_nonzero(statistics.diag == 0))
        if dead:
            found.append(f"{dead} of {features} features always zero in the Hessian")
        return found

    def update(self, batch: Batch, make: Callable[[], Observer], hessian: bool, index: int) -> None:
        """Take in the activations of one batch, or after an error nothing of the layer at fault."""
        if not isinstance(batch, Mapping):
            found, expected = f"got {type(batch).__name__}", "a mapping of layer names to arrays"
            raise bad(f"batch {index}", found, type(batch), expected, ArgTypeError)
        for layer, x in batch.items():
            self._update_layer(layer, x, make, hessian, f"layer {layer!r}, batch {index}")

    def _update_layer(
        self, layer: str, x: Any, make: Callable[[], Observer], hessian: bool, where: str
    ) -> None:
        """One layer of a batch; all that can fail comes before anything changes."""
        x = as_input(plain(x, where), where)
        shape = x.shape
        features = shape[-1] if shape else 1
        if self.features.get(layer, features) != features:
            found = f"has {features} features"
            raise bad(where, found, features, f"{self.features[layer]}, as before")
        observer = self.observers.get(layer) or make()
        if not isinstance(observer, Observer):
            expected = "what makes one of qrs.observers"
            raise bad("observer", f"made {observer!r}", observer, expected, ArgTypeError)
        batch = Statistics().update(x, where) if hessian else None
        observer.update(x, where)
        if batch is not None:
            known = self.statistics.get(layer)
            self.statistics[layer] = batch if known is None else known.merge(batch)
        self.observers[layer] = observer
        self.features[layer] = features
        rows = int(np.prod(shape[:-1], dtype=np.int64)) if len(shape) > 1 else 1
        rows = rows if features else 0
        self.batches[layer] = self.batches.get(layer, 0) + (rows > 0)
        self.tokens[layer] = self.tokens.get(layer, 0) + rows

    def merge(self, other: Calibration) -> Calibration:
        """Take in all that another calibration of the same kind has seen; all of it, or nothing."""
        if not isinstance(other, Calibration):
            raise bad("other", f"got {other!r}", other, "a Calibration", ArgTypeError)
        for layer, observer in other.items():
            if layer in self.observers:
                _of_layer(layer, self.observers[layer].check_merge, observer)
            mine, theirs = self.statistics.get(layer), other.statistics.get(layer)
            if mine is not None and theirs is not None:
                _of_layer(layer, mine.check_merge, theirs)
            features = other.features.get(layer)
            if features is not None and self.features.get(layer, features) != features:
                found = f"has {features} features in layer {layer!r}"
                raise bad("other", found, features, f"{self.features[layer]}, as here")
        for layer, observer in other.items():
            if layer in self.observers:
                self.observers[layer].merge(observer)
            else:
                self.observers[layer] = from_state(observer.state())
            self.batches[layer] = self.batches.get(layer, 0) + other.batches[layer]
            self.tokens[layer] = self.tokens.get(layer, 0) + other.tokens[layer]
            if layer in other.features:
                self.features[layer] = other.features[layer]
        for layer, statistics in other.statistics.items():
            known = self.statistics.get(layer) or Statistics(hessian=statistics.keeps_hessian)
            self.statistics[layer] = known.merge(statistics)
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all of it to a safetensors file, which appears whole or not at all."""
        tensors: dict[str, Any] = {}
        for layer, observer in self.items():
            found = self.batches[layer], self.tokens[layer], self.features.get(layer, -1)
            counts = np.array(found, np.int64)
            tensors[f"{layer}{COUNTS}counts"] = counts
            tensors |= {f"{layer}{OBSERVER}{n}": a for n, a in observer.state().items()}
        for layer, statistics in self.statistics.items():
            tensors |= {f"{layer}{STATISTICS}{n}": a for n, a in statistics.state().items()}
        save(path, tensors)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """What `save` wrote; it goes on as if it had never been away."""
        states: dict[str, dict[str, dict[str, Any]]] = {OBSERVER: {}, STATISTICS: {}, COUNTS: {}}
        for name, array in load(path).items():
            # The last of the words: layers may be called by one of them too.
            kind = max(states, key=name.rfind)
            if kind not in name:
                text = f"{os.fspath(path)}: {name} belongs to no calibration"
                raise FormatError(text, path=path, tensor=name)
            layer, _, part = name.rpartition(kind)
            states[kind].setdefault(layer, {})[part] = array
        calibration = cls()
        layer = ""
        try:
            for layer in states[OBSERVER] | states[STATISTICS] | states[COUNTS]:
                calibration._restore(layer, *(states[kind].get(layer) for kind in states))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            text = f"{os.fspath(path)}: layer {layer!r}: {error}"
            raise FormatError(text, path=path, tensor=layer) from None
        return calibration

    def _restore(self, layer: str, observer: Any, statistics: Any, counts: Any) -> None:
        """Take over what a file has of a layer."""
        if observer is None:
            raise ValueError("has no observer")
        self.observers[layer] = from_state(observer)
        if statistics is not None:
            self.statistics[layer] = Statistics.from_state(statistics)
        numbers = [int(n) for n in (counts or {})["counts"]]
        if len(numbers) not in (2, 3) or min(numbers[:2]) < 0:
            raise ValueError(f"counts are {numbers}, expected batches, tokens and features")
        self.batches[layer], self.tokens[layer], *rest = numbers
        if rest and rest[0] >= 0:
            self.features[layer] = rest[0]

    def __repr__(self) -> str:
        most = max(self.batches.values(), default=0)
        kinds = sorted({type(observer).__name__ for observer in self.observers.values()})
        return f"Calibration({len(self)} layers, {', '.join(kinds) or 'no data'}, {most} batches)"


def calibrate(
    batches: Any,
    *,
    observer: Callable[[], Observer] = MSE,
    hessian: bool = False,
    layers: Iterable[str] | None = None,
) -> Calibration:
    """Observe the inputs of layers over a representative set.

    Parameters
    ----------
    batches : mappings of layer names to arrays, one after another; or a callable that yields them
        (a model that is run on its samples); or paths of .npz or .safetensors files, each of which
        is a batch of captured activations. Arrays are (..., features) of floats.
    observer : what makes the observer of a layer: a class of `qrs.observers`, or a function such as
        `lambda: Percentile(99.9)`.
    hessian : whether to keep the second moments X^T X as well (`Calibration.statistics`).
    layers : the names to observe; by default all.

    Raises `ArgValueError` for NaN and infinities, which names layer and batch, and where there is
    nothing to observe.

    >>> c = calibrate([{"fc": np.ones((2, 4), np.float32)}, {"fc": -np.ones((3, 4), np.float32)}])
    >>> c, c.tokens["fc"], float(c["fc"].hi)
    (Calibration(1 layers, MSE, 2 batches), 5, 1.0)
    """
    if not callable(observer):
        expected = "a class of qrs.observers, or a function that makes one"
        raise bad("observer", f"got {observer!r}", observer, expected, ArgTypeError)
    if isinstance(layers, str):
        raise bad("layers", f"got {layers!r}", layers, f"names: [{layers!r}]", ArgTypeError)
    if layers is not None:
        layers = _checked_names(layers)
    wanted = None if layers is None else set(layers)
    calibration = Calibration()
    for index, batch in enumerate(_batches(batches)):
        if isinstance(batch, Mapping) and wanted is not None:
            batch = {layer: batch[layer] for layer in batch if layer in wanted}
        calibration.update(batch, observer, hessian, index)
    missing = sorted((wanted or set()) - calibration.observers.keys())
    if missing or not calibration:
        found = f"have no {', '.join(missing)}" if missing else "are empty"
        raise bad("batches", found, missing, "activations of every layer that is observed")
    return calibration


def _checked_names(layers: Any) -> list[str]:
    """The names of layers; raises for anything else."""
    names = list(layers) if isinstance(layers, Iterable) else [layers]
    if isinstance(layers, bytes) or not all(isinstance(name, str) for name in names):
        raise bad("layers", f"got {layers!r}", layers, "names of layers", ArgTypeError)
    return names


def _of_layer(layer: str, function: Callable[[Any], Any], value: Any) -> Any:
    """`function(value)`, whose errors name the layer."""
    try:
        return function(value)
    except QrsError as error:
        where = {"arg": error.arg, "value": error.value, "expected": error.expected}
        raise type(error)(f"layer {layer!r}: {error}", **where) from None


def _batches(batches: Any) -> Iterator[Any]:
    """The mappings, wherever they come from."""
    if callable(batches):
        batches = batches()
    if isinstance(batches, str | os.PathLike | Mapping):
        batches = [batches]
    if not isinstance(batches, Iterable):
        expected = "mappings, a callable that yields them, or paths"
        raise bad("batches", f"got {type(batches).__name__}", type(batches), expected, ArgTypeError)
    for batch in batches:
        yield read_activations(batch) if isinstance(batch, str | os.PathLike) else batch


def read_activations(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """The arrays of a .npz or .safetensors file."""
    name = os.fspath(path)
    if name.endswith(".npz"):
        try:
            with np.load(name, allow_pickle=False) as arrays:
                return {layer: arrays[layer] for layer in arrays.files}
        except OSError as error:
            raise StorageError(error.errno or 0, error.strerror or str(error), name) from None
        except Exception as error:  # numpy and zipfile raise many kinds
            raise FormatError(f"{name}: is no .npz file of arrays: {error}", path=name) from error
    if name.endswith(".safetensors"):
        loaded = load(name)
        arrays = {layer: x for layer, x in loaded.items() if isinstance(x, np.ndarray)}
        if len(arrays) < len(loaded):
            codes = next(layer for layer in loaded if layer not in arrays)
            raise FormatError(f"{name}: {codes} is quantized", path=name, tensor=codes)
        return arrays
    raise ArgValueError(
        f"batches: got {name!r}, expected a path that ends in .npz or .safetensors",
        arg="batches",
        value=name,
        expected=".npz or .safetensors",
    )
