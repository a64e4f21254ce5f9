"""What is known of the inputs of layers: the statistics that solvers take for their weights."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from ..calibration import STATISTICS, Calibration
from ..errors import ArgTypeError, FormatError, QrsError, bad
from ..formats.qrs_file import QrsFile
from ..formats.strict_json import quote
from ..schemes import Codebook, Scheme
from ..solvers import as_solver, minmax
from ..statistics import Statistics

WEIGHT = ".weight"
SHOWN = 8
"""Names in a message."""


class KnownStatistics:
    """Statistics by layer, of a file, a `Calibration`, or a mapping.

    A file, as `qrs calibrate --hessian` writes it, is read a layer at a time, when it is asked
    for. The weight of layer `fc` is the tensor `fc.weight`, or one called `fc`.

    >>> import numpy as np
    >>> known = KnownStatistics({"fc": Statistics().update(np.ones((3, 2), np.float32))})
    >>> known.layer_of("fc.weight"), known.layer_of("fc.bias"), known.features("fc")
    ('fc', None, 2)
    """

    def __init__(self, source: str | os.PathLike[str] | Calibration | Mapping[str, Any]) -> None:
        self.path: str | None = None
        self._given: Mapping[str, Any] = {}
        self._features: dict[str, int] = {}
        if isinstance(source, str | os.PathLike):
            self.path = os.fspath(source)
            self._open(self.path)
        else:
            self._take(source.statistics if isinstance(source, Calibration) else source)

    @property
    def layers(self) -> list[str]:
        """All of them."""
        return list(self._features)

    def features(self, layer: str) -> int:
        """Inputs of a layer."""
        return self._features[layer]

    def layer_of(self, tensor: str) -> str | None:
        """The layer whose weight a tensor is."""
        names = (tensor, tensor.removesuffix(WEIGHT))
        return next((name for name in names if name in self._features), None)

    def of(self, layer: str) -> Statistics:
        """The statistics of a layer. Raises `FormatError` where the file has something else."""
        if self.path is None:
            found: Statistics = self._given[layer]
            return found
        head = f"{layer}{STATISTICS}"
        with QrsFile(self.path) as file:
            parts: Any = {
                n.removeprefix(head): file.load(n) for n in file.names if n.startswith(head)
            }
        try:
            return Statistics.from_state(parts)
        except QrsError as error:
            text = f"{self.path}: layer {quote(layer)}: {error}"
            raise FormatError(text, path=self.path, tensor=layer) from None

    def _open(self, path: str) -> None:
        """Which layers a file has, from its header."""
        with QrsFile(path) as file:
            for name in file.names:
                layer, marker, part = name.rpartition(STATISTICS)
                if marker and part == "diag":
                    self._features[layer] = math.prod(file.tensors[name].shape)
        if not self._features:
            text = f"{path}: has no statistics of layers; qrs calibrate --hessian writes them"
            raise FormatError(text, path=path)

    def _take(self, given: Any) -> None:
        """Those of a mapping."""
        if not isinstance(given, Mapping):
            expected = "a path, a Calibration, or Statistics by layer"
            raise bad("statistics", f"got {given!r}", type(given), expected, ArgTypeError)
        for layer, statistics in given.items():
            if not isinstance(statistics, Statistics) or statistics.features is None:
                found = f"layer {layer!r}: got {statistics!r}"
                raise bad("statistics", found, type(statistics), "Statistics that have seen data")
            self._features[layer] = statistics.features
        self._given = dict(given)
        if not self._given:
            raise bad("statistics", "are empty", given, "Statistics of one layer at least")


def as_known(statistics: Any) -> KnownStatistics | None:
    """What is given as `statistics=`, opened."""
    if statistics is None or isinstance(statistics, KnownStatistics):
        return statistics
    return KnownStatistics(statistics)


def layer_for(known: KnownStatistics | None, tensor: str, shape: tuple[int, ...]) -> str:
    """The layer whose weight a tensor is, where its statistics are known; "" otherwise.

    Raises `ArgValueError` where the layer has another number of inputs.
    """
    layer = None if known is None else known.layer_of(tensor)
    if known is None or layer is None:
        return ""
    inputs = math.prod(shape[1:])
    if known.features(layer) != inputs:
        found = f"layer {layer!r} has {known.features(layer)} inputs"
        raise bad("statistics", found, known.features(layer), f"{inputs}, as the weight has")
    return layer


def takes_statistics(scheme: Scheme, solver: str) -> bool:
    """Whether a solver makes use of statistics for a scheme."""
    if as_solver(solver) is minmax:
        return isinstance(scheme, Codebook) and scheme.is_learned
    return True


def needs_statistics(solver: str) -> bool:
    """Whether a solver works with statistics only."""
    return bool(getattr(as_solver(solver), "needs_statistics", False))


def missing(tensors: list[str], solver: str) -> QrsError:
    """The error for tensors without statistics."""
    names = ", ".join(map(quote, tensors[:SHOWN])) + ", ..." * (len(tensors) > SHOWN)
    found = f"has none for {len(tensors)} tensors that {solver} quantizes: {names}"
    expected = "statistics of every layer, other tensors (include, exclude), or another solver"
    return bad("statistics", found, tensors, expected)
