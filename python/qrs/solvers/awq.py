"""AWQ: a factor for each input, so that those that carry more are rounded more finely.

Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", 2023.
W is stored as W / c, c the factors, and the input of the layer is multiplied with c. With a few
powers of the mean magnitudes of the inputs for 1 / c the error tr(E H E^T) that is left in the
output is computed, without running the model, and the best is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..backends.reference import Reference
from ..checks import checked_integer
from ..devices import is_cupy
from ..errors import DeviceError, bad
from ..qtensor import QTensor
from ..schemes import ColumnScaled, Offset, Rotated, Scheme
from ..schemes.basis import as_float32
from ..statistics import Statistics
from . import lsq as scale_search
from .hessian import Float64, checked_hessian, relative

Float32 = NDArray[np.float32]

FLOOR = 1e-4
"""The least factor before normalization, of the greatest: inputs that are always 0 have one too."""

ROWS = 512
"""Outputs that the search looks at, spread evenly; the last comparison sees all."""


@dataclass(frozen=True)
class AWQ:
    """The solver and its option; `solver="awq"` is one with defaults.

    The result has the scheme `ColumnScaled` of the one that is asked for: `steps` powers from 0 on,
    below 1, are tried, and last the scale search with the diagonal of H (the clipping of the
    paper, by least squares). It leaves no more error than the scheme alone, which is the power 0.
    `info` has `alpha`, `output_error` and `output_error_before`, relative to the output.
    """

    needs_statistics: ClassVar[bool] = True

    steps: int = 20

    def __post_init__(self) -> None:
        if not 1 <= checked_integer(self.steps, "steps") <= 1000:
            raise bad("steps", f"got {self.steps}", self.steps, "1 to 1000")

    def __str__(self) -> str:
        return "awq"

    def check(self, scheme: Scheme) -> None:
        """Raise where the solver does not fit the scheme."""
        if scheme.scale_dtype is None or isinstance(scheme, Rotated | Offset):
            expected = "a scheme with scales, and no basis of its own"
            raise bad("solver", f"got 'awq' for {scheme}", "awq", expected)

    def stored_scheme(self, scheme: Scheme) -> Scheme:
        """What a tensor will have."""
        return scheme if isinstance(scheme, ColumnScaled) else ColumnScaled(scheme)

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
        """Quantize a weight (out, in); `statistics` are `Statistics`, or its second moments."""
        for arg, value in {"scale": scale, "zero_point": zero_point, "weights": weights}.items():
            if value is not None:
                raise bad(arg, "given beside solver='awq', which finds it", type(value), "None")
        if is_cupy(x):
            fix = "qrs.quantize(cupy.asnumpy(x), ...)"
            problem = f"x: solver 'awq' runs on the host; fix: {fix}"
            raise DeviceError(problem, arg="x", value="cupy", expected=fix)
        if x.ndim != 2:
            raise bad("x", f"got shape {x.shape} for solver='awq'", x.shape, "a weight (out, in)")
        if statistics is None:
            expected = "the second moments of the inputs, or Statistics that have them"
            raise bad("statistics", "is None for solver='awq'", None, expected)
        stored = self.stored_scheme(scheme)
        assert isinstance(stored, ColumnScaled)
        search = _Search(as_float32(x), stored.inner, magnitudes_of(statistics, x.shape[1]),
                         checked_hessian(statistics, x.shape[1]), backend)  # fmt: skip
        found, column_scale, info = search.best(self.steps)
        qt = stored.of(found, {"column_scale": column_scale})
        qt.dtype, qt.info = x.dtype.name, {**qt.info, **info}
        return qt if out is None else out.overwrite(qt)


@dataclass(frozen=True)
class _Search:
    """A weight, and what is known of its inputs."""

    w: Float32
    inner: Scheme
    magnitudes: Float64
    h: Float64
    backend: Reference

    def best(self, steps: int) -> tuple[QTensor, Float32, dict[str, float]]:
        """The quantized weight in its basis, the factors, and what to say of them."""
        if self.w.size == 0:
            ones = np.ones(self.w.shape[1], np.float32)
            return self.inner.quantize(self.w, self.backend), ones, {}
        rows = self.w[:: -(-len(self.w) // ROWS)]
        alphas = self._alphas(steps)
        errors = [self._error(rows, *self._plain(rows, alpha)) for alpha in alphas]
        alpha = alphas[int(np.argmin(errors))]
        tried = [self._plain(self.w, alpha)]
        if self._can_search:
            tried.append(self._searched(alpha))
        errors = [self._error(self.w, *some) for some in tried]
        before = self._error(self.w, *self._plain(self.w, 0.0))
        if not min(errors) < before:
            alpha, tried, errors = 0.0, [self._plain(self.w, 0.0)], [before]
        qt, column_scale = tried[int(np.argmin(errors))]
        whole = self._form(self.w.astype(np.float64))
        info = {"alpha": alpha}
        if whole:
            info |= {"output_error": min(errors) / whole, "output_error_before": before / whole}
        return qt, column_scale, info

    def column_scale(self, alpha: float) -> Float32:
        """c = 1 / s with s = magnitudes^alpha, over the root of its largest times its least."""
        largest = float(self.magnitudes.max())
        powers = np.maximum(self.magnitudes / largest if largest else 1.0, FLOOR) ** alpha
        normalized = powers / np.sqrt(powers.max() * powers.min())
        found: Float32 = (1 / normalized).astype(np.float32)
        return found

    def _alphas(self, steps: int) -> list[float]:
        """Powers with which the weight over its factors is finite: with 0 it is the weight."""
        greatest, alphas = np.abs(self.w).max(axis=0), [step / steps for step in range(steps)]
        with np.errstate(over="ignore"):
            return [a for a in alphas if np.isfinite(greatest / self.column_scale(a)).all()]

    def _plain(self, w: Float32, alpha: float) -> tuple[QTensor, Float32]:
        c = self.column_scale(alpha)
        return self.inner.quantize(w / c, self.backend), c

    def _searched(self, alpha: float) -> tuple[QTensor, Float32]:
        c = self.column_scale(alpha)
        importance = relative(np.diagonal(self.h) * c.astype(np.float64) ** 2).astype(np.float32)
        weights = np.ascontiguousarray(np.broadcast_to(importance, self.w.shape))
        return scale_search.lsq(self.w / c, self.inner, self.backend, weights=weights), c

    @property
    def _can_search(self) -> bool:
        try:
            scale_search.check_scheme(self.inner)
        except ValueError:
            return False
        return True

    def _error(self, w: Float32, qt: QTensor, c: Float32) -> float:
        with np.errstate(over="ignore", invalid="ignore"):
            decoded = self.inner.dequantize(qt, "float32", self.backend) * c
            error = self._form(w.astype(np.float64) - decoded)
        return error if np.isfinite(error) else np.inf

    def _form(self, e: Float64) -> float:
        """tr(E H E^T)."""
        return float(np.sum(self.backend.matmul_float64(e, self.h) * e))


def magnitudes_of(statistics: Any, features: int) -> Float64:
    """The mean |x| of each input, or the root mean square where there are second moments alone."""
    if isinstance(statistics, Statistics):
        return statistics.absmean
    return np.sqrt(np.diagonal(checked_hessian(statistics, features)))
