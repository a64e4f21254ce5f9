"""Solvers: which of the values that a scheme can store to pick for a tensor.

A solver takes an array, a scheme and what is known beside the two, and returns a QTensor. `SOLVERS`
has them by name; one with options is spelled `gptq-group-polish2`, or made: `GPTQ(polish=2)`.
"""

from __future__ import annotations

import math
from typing import Any, Final, Protocol

from ..backends.reference import Reference
from ..errors import ArgTypeError, bad
from ..qtensor import QTensor
from ..schemes import Codebook, InBasis, Offset, Scheme
from ..schemes.checks import useless
from ..statistics import Statistics
from . import lsq as scale_search
from .awq import AWQ
from .folding import find_folds, folded
from .gptq import GPTQ
from .hessian import checked_hessian, output_error, relative
from .in_basis import in_basis
from .smoothing import Smoothing, smooth, smooth_scale
from .weights import checked_weights

__all__ = [
    "AWQ", "GPTQ", "SOLVERS", "Smoothing", "Solver", "as_solver", "check_solver",
    "checked_hessian", "checked_weights", "find_folds", "folded", "in_basis", "lsq", "minmax",
    "output_error", "smooth", "smooth_scale", "works_in_basis",
]  # fmt: skip


class Solver(Protocol):
    """What `solver=` names. Arrays are checked; `statistics` are as the user gave them."""

    def __call__(
        self,
        x: Any,
        scheme: Scheme,
        backend: Reference,
        scale: Any = None,
        zero_point: Any = None,
        weights: Any = None,
        statistics: Any = None,
        out: QTensor | None = None,
    ) -> QTensor: ...


def minmax(
    x: Any,
    scheme: Scheme,
    backend: Reference,
    scale: Any = None,
    zero_point: Any = None,
    weights: Any = None,
    statistics: Any = None,
    out: QTensor | None = None,
) -> QTensor:
    """What the scheme does by itself: scales that cover the range of each group.

    Learned codebooks weigh errors by the diagonal of the second moments in `statistics`.
    """
    if statistics is not None:
        if not isinstance(scheme, Codebook) or not scheme.is_learned:
            raise useless(scheme, "statistics", type(statistics).__name__)
        weights = weighted_by_inputs(x, weights, statistics)
    return scheme.quantize(x, backend, scale, zero_point, out, weights)


def lsq(
    x: Any,
    scheme: Scheme,
    backend: Reference,
    scale: Any = None,
    zero_point: Any = None,
    weights: Any = None,
    statistics: Any = None,
    out: QTensor | None = None,
) -> QTensor:
    """The scale search, see `qrs.solvers.lsq`; `statistics` weigh errors by their diagonal."""
    if statistics is not None:
        weights = weighted_by_inputs(x, weights, statistics)
    return scale_search.lsq(x, scheme, backend, scale, zero_point, weights, out)


def weighted_by_inputs(x: Any, weights: Any, statistics: Any) -> Any:
    """The importance of each element of a weight (out, in...), from the moments of its inputs."""
    inputs = x.shape[1:] or x.shape
    if isinstance(statistics, Statistics):
        diagonal = statistics.diag
    else:
        diagonal = checked_hessian(statistics, math.prod(inputs)).diagonal()
    if diagonal.size != math.prod(inputs):
        found = f"has {diagonal.size} inputs for a weight of shape {x.shape}"
        raise bad("statistics", found, diagonal.size, f"{math.prod(inputs)}")
    importance = checked_weights(relative(diagonal).reshape(inputs), x, "statistics")
    return importance if weights is None else importance * weights


SOLVERS: Final[dict[str, Solver]] = {"minmax": minmax, "lsq": lsq, "gptq": GPTQ(), "awq": AWQ()}


def as_solver(solver: Any) -> Solver:
    """The solver of a name, or the solver itself.

    >>> as_solver("gptq-polish2")
    GPTQ(damping=0.01, act_order=True, polish=2)
    """
    if isinstance(solver, str):
        found = SOLVERS.get(solver) or GPTQ.parse(solver)
        if found is not None:
            return found
    elif callable(solver):
        chosen: Solver = solver
        return chosen
    expected = f"one of: {', '.join(SOLVERS)}; or such as gptq-group-polish2"
    kind = {} if isinstance(solver, str) else {"kind": ArgTypeError}
    raise bad("solver", f"got {solver!r}", solver, expected, **kind)


def works_in_basis(solver: Solver, scheme: Any) -> bool:
    """Whether a solver works on what is stored in another basis, and knows nothing of it."""
    knows = isinstance(solver, AWQ) or (solver is lsq and isinstance(scheme, Offset))
    return isinstance(scheme, InBasis) and not knows


def check_solver(solver: Any, scheme: Scheme | None = None) -> None:
    """Raise ArgValueError unless there is such a solver, and it fits the scheme.

    >>> from qrs import NF4, KMeans
    >>> check_solver("lsq", NF4())
    >>> check_solver("lsq", KMeans(4))
    Traceback (most recent call last):
    ...
    qrs.errors.ArgValueError: solver: got 'lsq' for kmeans4, expected an integer scheme or a \
codebook with scales
    """
    chosen = as_solver(solver)
    if isinstance(scheme, InBasis) and works_in_basis(chosen, scheme):
        scheme = scheme.inner
    if scheme is None:
        return
    if chosen is lsq:
        scale_search.check_scheme(scheme)
    elif isinstance(chosen, GPTQ | AWQ):
        chosen.check(scheme)
