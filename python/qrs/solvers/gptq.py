"""GPTQ: codes of least error in the output of a layer, given the second moments of its input.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
2023. Inputs are rounded one after the other, and each takes over what those before it left:
tr(E H E^T) falls, not the error of the weight. With H = R R^T, R upper triangular, input j is
rounded to the level nearest to w_j + sum over i < j of (w - w_hat)_i R_ij / R_jj: what the paper
gets from the inverse of H (Chee et al., "QuIP", 2023, theorem 6, show that it is the same).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..backends.reference import Reference
from ..checks import checked_integer
from ..devices import is_cupy
from ..errors import ArgTypeError, ArgValueError, DeviceError, KernelFault, bad
from ..qtensor import QTensor
from ..schemes import Codebook, Scheme
from .code_values import CodeValues, check_fits, in_order, weight_rows
from .hessian import Float64, checked_hessian, relative
from .lsq import lsq
from .polish import polished

ORDERS = (True, False, "group")
STEP = 10.0
MOST = 1.0
"""Damping grows by STEP, up to MOST of the mean of the diagonal, until H has a factor."""
ROUNDING = 1e-12
"""Pivots below this, of the diagonal, are taken for zero."""

_SPELLING = re.compile(r"gptq(?P<order>-inorder|-group)?(?:-polish(?P<polish>\d{1,3}))?", re.ASCII)


@dataclass(frozen=True)
class GPTQ:
    """The solver and its options; `qrs.gptq` calls it, and `solver="gptq"` is one with defaults.

    Parameters
    ----------
    damping : what is added to the diagonal of H, of its mean. Where H has no Cholesky factor even
        so, ten times as much is taken, up to the mean itself; `info["damping"]` says how much.
    act_order : True takes inputs by descending diagonal of H; False as they come; "group" descends
        inside groups, and takes the groups by their greatest. Scales are chosen before, from the
        whole weight, so that no order has to be stored.
    polish : rounds of coordinate descent on tr(E H E^T) afterwards, each followed by the best
        scales for the codes; none makes it worse, and they stop where nothing changes.

    As a string: `gptq`, `gptq-inorder`, `gptq-group`, each with `-polish2` or another number.

    >>> str(GPTQ(act_order="group", polish=2)), GPTQ.parse("gptq-polish3").polish
    ('gptq-group-polish2', 3)
    """

    needs_statistics: ClassVar[bool] = True

    damping: float = 0.01
    act_order: bool | str = True
    polish: int = 0

    def __post_init__(self) -> None:
        damping, order = self.damping, self.act_order
        number = isinstance(damping, (int, float, np.number)) and not isinstance(damping, bool)
        if not number or not 0 <= damping <= MOST:
            kind = ArgValueError if number else ArgTypeError
            raise bad("damping", f"got {damping!r}", damping, f"a number from 0 to {MOST}", kind)
        if not any(order is known or order == known == "group" for known in ORDERS):
            raise bad("act_order", f"got {order!r}", order, "True, False or 'group'")
        if checked_integer(self.polish, "polish") < 0:
            raise bad("polish", f"got {self.polish}", self.polish, "0 or more rounds")

    def __str__(self) -> str:
        order = {True: "", False: "-inorder", "group": "-group"}[self.act_order]
        return f"gptq{order}" + (f"-polish{self.polish}" if self.polish else "")

    @classmethod
    def parse(cls, text: str) -> GPTQ | None:
        """The solver that `text` spells, or None."""
        match = _SPELLING.fullmatch(text)
        if match is None:
            return None
        orders: dict[str | None, bool | str] = {None: True, "-inorder": False, "-group": "group"}
        return cls(act_order=orders[match["order"]], polish=int(match["polish"] or 0))

    def check(self, scheme: Scheme) -> None:
        """Raise where the solver does not fit the scheme."""
        check_fits(scheme, str(self))

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
    ) -> QTensor:
        """Quantize a weight (out, in, ...), the moments of whose inputs are `statistics`.

        Scales and tables are those of the scale search, or of k-means, with the diagonal of H for
        importance (times `weights`); or those given.
        """
        if is_cupy(x):
            problem, fix = (
                "solver 'gptq' runs on the host",
                "qt = qrs.quantize(cupy.asnumpy(x), ...)",
            )
            raise DeviceError(f"x: {problem}; fix: {fix}", arg="x", value="cupy", expected=fix)
        if statistics is None:
            expected = "the second moments of the inputs, or Statistics that have them"
            raise bad("statistics", f"is None for solver={str(self)!r}", None, expected)
        w = weight_rows(x, str(self))
        h = checked_hessian(statistics, w.shape[1])
        of_inputs = relative(np.diagonal(h)).astype(np.float32)
        importance = np.broadcast_to(of_inputs, w.shape).reshape(x.shape)
        if weights is not None:
            importance = importance * weights
        if scale is not None or zero_point is not None:
            grid = scheme.quantize(x, backend, scale, zero_point)
        else:
            grid = start(x, scheme, backend, np.ascontiguousarray(importance))
        if x.size == 0:
            return grid if out is None else out.overwrite(grid)
        values = CodeValues.of(grid, backend)
        codes, info = self.codes(w, h, values, backend)
        qt = values.stored(grid, codes, backend, info)
        if self.polish:
            qt = polished(x, qt, h, self.order(h, values), self.polish, backend)
        return qt if out is None else out.overwrite(qt)

    def codes(
        self, w: NDArray[np.float32], h: Float64, values: CodeValues, backend: Reference
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """The codes of `w` (n, k), and what to say of the Hessian."""
        order = self.order(h, values)
        ordered = in_order(in_order(h, order), order, axis=0)
        factor, damping = damped_factor(ordered, float(self.damping), backend)
        found = backend.round_with_feedback(
            in_order(w, order), factor, *values.of_inputs(order).arguments
        )
        dead = int(np.count_nonzero(np.diagonal(h) == 0))
        return in_order(found, np.argsort(order)), {"damping": damping, "dead_inputs": dead}

    def order(self, h: Float64, values: CodeValues) -> NDArray[np.intp]:
        """In which inputs are rounded."""
        if self.act_order is False:
            return np.arange(len(h))
        diagonal, group_of = np.diagonal(h), values.group_of[0]
        if self.act_order is True:
            return np.argsort(-diagonal, kind="stable")
        greatest = np.full(values.scale.shape[1], -np.inf)
        np.maximum.at(greatest, group_of, diagonal)
        return np.lexsort((-diagonal, group_of, -greatest[group_of]))


def start(x: Any, scheme: Scheme, backend: Reference, importance: Any) -> QTensor:
    """The scales and tables to round with: of least error weighted by `importance`."""
    if isinstance(scheme, Codebook) and scheme.is_learned:
        return scheme.quantize(x, backend, weights=importance)
    return lsq(x, scheme, backend, weights=importance)


def damped_factor(h: Float64, damping: float, backend: Reference) -> tuple[Float64, float]:
    """R with R R^T = H + damping * mean diagonal, and the damping that it took.

    Inputs that were always 0 get the mean of the diagonal in place of 0, so that they neither take
    over nor leave errors.

    >>> factor, damping = damped_factor(np.array([[1.0, 1.0], [1.0, 1.0]]), 0.0, Reference())
    >>> damping
    0.0001
    """
    diagonal = np.diagonal(h)
    mean = float(diagonal.mean())
    tried = damping
    while True:
        damped = h.copy()
        np.fill_diagonal(damped, np.where(diagonal == 0, mean, diagonal) + tried * mean)
        factor = _factor(damped, backend)
        if factor is not None:
            return factor, tried
        if tried >= MOST:
            found = f"has no Cholesky factor, even with damping {tried}"
            expected = "the second moments X^T X of inputs, which are positive semidefinite"
            raise bad("statistics", found, tried, expected)
        tried = min(max(tried * STEP, 1e-4), MOST)


def _factor(h: Float64, backend: Reference) -> Float64 | None:
    """R, or None where a pivot is not positive, or nothing but rounding."""
    try:
        factor = backend.cholesky(h)
    except KernelFault:
        return None
    pivots = np.diagonal(factor) ** 2
    return None if (pivots < ROUNDING * np.diagonal(h)).any() else factor
