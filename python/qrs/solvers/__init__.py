"""Solvers: which of the values that a scheme can store to pick for a tensor.

A solver takes an array and a scheme and returns a QTensor. `SOLVERS` has them by name.
"""

from __future__ import annotations

from typing import Any, Final

from ..backends.reference import Reference
from ..errors import bad
from ..qtensor import QTensor
from ..schemes import Scheme
from .lsq import check_scheme, lsq
from .weights import checked_weights

__all__ = ["SOLVERS", "check_solver", "checked_weights", "lsq", "minmax"]


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


def check_solver(solver: Any, scheme: Scheme | None = None) -> None:
    """Raise ArgValueError unless there is such a solver, and it fits the scheme.

    >>> from qrs import NF4, Int
    >>> check_solver("lsq", NF4())
    >>> check_solver("lsq", Int(4, signed=False))
    Traceback (most recent call last):
    ...
    qrs.errors.ArgValueError: solver: got 'lsq' for uint4, expected a symmetric integer scheme or \
a codebook with scales
    """
    if not isinstance(solver, str) or solver not in SOLVERS:
        raise bad("solver", f"got {solver!r}", solver, f"one of: {', '.join(SOLVERS)}")
    if solver == "lsq" and scheme is not None:
        check_scheme(scheme)
