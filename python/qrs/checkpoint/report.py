"""What a run did: the error, size and time of each tensor, and their totals.

Errors are summed in float64 over blocks of rows, so that no second float32 copy of a tensor is
ever made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..constants import DTYPES
from ..metrics import ratio_db
from ..solvers.hessian import quadratic_form
from ..statistics import Statistics
from .plan import Plan, TensorPlan, finite
from .selection import source_dtype

RATE_DB = 6.0206
"""What a bit more is worth: 20 log10(2)."""

PIECE = 1 << 18
"""Elements that are compared at once: their float64 copies stay in the cache."""


@dataclass
class ErrorSums:
    """Sums over blocks of a tensor, from which its figures come; two of them add up.

    >>> sums = ErrorSums()
    >>> sums.add(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 2.9]))
    >>> round(sums.sqnr_db, 2), round(sums.max_abs_error, 3)
    (31.46, 0.1)
    """

    signal: float = 0.0
    noise: float = 0.0
    max_abs_error: float = 0.0
    peak: float = 0.0
    """The largest magnitude that is read back."""
    size: int = 0
    largest: float = 0.0
    """The largest magnitude of the source."""
    output: float | None = None
    """tr(E H E^T), where second moments H of the inputs are known."""
    output_signal: float = 0.0
    """tr(W H W^T)."""

    def add(self, x: NDArray[Any], x_hat: NDArray[Any]) -> None:
        """Count in a block: the source `x` and what is read back, of the same size."""
        exact, decoded = x.reshape(-1), x_hat.reshape(-1)
        for start in range(0, exact.size, PIECE):  # a block can be one endless row
            piece = exact[start : start + PIECE].astype(np.float64)
            read_back = decoded[start : start + PIECE].astype(np.float64)
            error = piece - read_back
            # einsum rather than dot: BLAS would wake its threads for each of these small sums.
            self.signal += float(np.einsum("i,i->", piece, piece))
            self.noise += float(np.einsum("i,i->", error, error))
            self.max_abs_error = max(self.max_abs_error, float(np.abs(error, out=error).max()))
            self.peak = max(self.peak, float(np.abs(read_back, out=read_back).max()))
            self.largest = max(self.largest, float(np.abs(piece, out=piece).max()))
            self.size += piece.size

    def add_output(self, x: NDArray[Any], x_hat: NDArray[Any], known: Statistics) -> None:
        """Count in what rows (n, inputs...) of a weight leave in the output of their layer."""
        assert known.hessian is not None
        w = x.reshape(len(x), math.prod(x.shape[1:])).astype(np.float64)
        self.output_signal += quadratic_form(w, known.hessian)
        error = quadratic_form(w - x_hat.reshape(w.shape), known.hessian)
        self.output = error + (self.output or 0.0)

    def __add__(self, other: ErrorSums) -> ErrorSums:
        outputs = [sums.output for sums in (self, other) if sums.output is not None]
        return ErrorSums(
            self.signal + other.signal,
            self.noise + other.noise,
            max(self.max_abs_error, other.max_abs_error),
            max(self.peak, other.peak),
            self.size + other.size,
            max(self.largest, other.largest),
            sum(outputs) if outputs else None,
            self.output_signal + other.output_signal,
        )

    @property
    def output_error(self) -> float | None:
        """tr(E H E^T) / tr(W H W^T): what is lost in the output; None where nothing is known."""
        if self.output is None or not self.output_signal:
            return None
        return self.output / self.output_signal

    @property
    def outlier_ratio(self) -> float:
        """The largest magnitude of the source over its root mean square; 0 where that is."""
        rms = (self.signal / self.size) ** 0.5 if self.size else 0.0
        return self.largest / rms if rms else 0.0

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise ratio in dB; infinite where nothing is lost."""
        return ratio_db(self.signal, self.noise)


@dataclass(frozen=True)
class TensorReport:
    """One quantized tensor: its plan, its error, and the seconds it took."""

    plan: TensorPlan
    errors: ErrorSums
    seconds: float
    info: dict[str, Any] = field(default_factory=dict)
    """What the solver said: the damping that it took, inputs that were always 0, tokens."""

    @property
    def gap_db(self) -> float:
        """How far the SQNR is from what a Gaussian source allows at these bits, 6.02 dB each.

        Below 0 where the values are no Gaussian's and that is made use of.
        """
        return RATE_DB * self.bits_per_weight - self.errors.sqnr_db

    @property
    def warnings(self) -> list[str]:
        """What a user should know."""
        tokens, inputs = self.info.get("tokens"), self.info.get("inputs")
        if tokens is None or inputs is None or tokens >= inputs:
            return []
        return [f"{tokens} tokens for {inputs} inputs of layer {self.plan.layer}"]

    @property
    def bits_per_weight(self) -> float:
        """Bits stored per element, scales and zero points counted."""
        return 8 * self.plan.nbytes_after / self.plan.size

    @property
    def overflows(self) -> bool:
        """Whether a value that is read back is infinite in the dtype that the tensor had."""
        with np.errstate(over="ignore"):
            peak = np.float32(self.errors.peak).astype(DTYPES[source_dtype(self.plan.dtype)])
        return bool(np.isinf(peak))

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "name": self.plan.name,
            "shape": list(self.plan.shape),
            "dtype": self.plan.dtype,
            "scheme": str(self.plan.scheme),
            "fallback": self.plan.fallback,
            "sqnr_db": finite(self.errors.sqnr_db),
            "max_abs_error": self.errors.max_abs_error,
            "output_error": self.errors.output_error,
            "gap_db": finite(self.gap_db),
            "outlier_ratio": self.errors.outlier_ratio,
            "solver": self.plan.solver,
            "info": self.info,
            "warnings": self.warnings,
            "bits_per_weight": self.bits_per_weight,
            "overflows": self.overflows,
            "seconds": self.seconds,
        }


@dataclass
class Report:
    """A finished run: the plan, one `TensorReport` per quantized tensor, and what was left behind.

    `skipped` names the files of the source folder that were not carried along.
    """

    plan: Plan
    output: str
    tensors: list[TensorReport] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def errors(self) -> ErrorSums:
        """The errors of all quantized tensors together."""
        return sum((t.errors for t in self.tensors), ErrorSums())

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        plan = self.plan
        return {
            "output": self.output,
            "solver": plan.solver,
            "tensors": [t.to_dict() for t in self.tensors],
            "kept": [t.name for t in plan.tensors if t.scheme is None],
            "skipped_files": self.skipped,
            "total": {
                "sqnr_db": finite(self.errors.sqnr_db),
                "max_abs_error": self.errors.max_abs_error,
                "bits_per_weight": finite(plan.bits_per_weight),
                "nbytes": plan.nbytes,
                "nbytes_after": plan.nbytes_after,
                "kept_share": plan.kept_share,
                "seconds": self.seconds,
            },
        }
