"""Solvers: which of the values that a scheme can store to pick for a tensor.

A solver takes an array and a scheme and returns a QTensor. `SOLVERS` has them by name.
"""

from __future__ import annotations

from typing import Any, Final

from ..backends.reference import Reference
from ..qtensor import QTensor
from ..schemes import Scheme
from .lsq import lsq
from .weights import checked_weights

__all__ = ["SOLVERS", "checked_weights", "lsq", "minmax"]


def minmax(
    x: Any,
    scheme: Scheme,
    backend: Reference,
    scale: Any = None,
    zero_point: Any = None,
    weights: Any = None,
    out: QTensor | None = None,
) -> QTensor:
    """What the scheme does by itself: scales that cover the range of each group."""
    return scheme.quantize(x, backend, scale, zero_point, out, weights)


SOLVERS: Final = {"minmax": minmax, "lsq": lsq}
