"""Statistics of the input of a layer: what a solver may know beside the weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import backends
from .arrays import (
    as_input,
    as_kernel_float,
    first_index,
    nonfinite_error,
    plain,
    refuse_on_gpu,
    reports_memory,
    rows_of,
)
from .errors import ArgTypeError, bad

Float64 = NDArray[np.float64]

CHUNK = 4096
"""Rows that are widened to float64 at once."""


class Statistics:
    """Sums over all tokens (rows) that were seen, in float64.

    Attributes: `n_tokens`; `hessian` (features, features), the sum of x x^T over tokens, or None
    where only the `diag` (features,) was asked for; `absmean` and `absmax` (features,) of |x|. Sums
    add up in the order of the batches, of which the last bits depend; products are chains of fused
    multiply-adds, the same on every x86 level and with any number of threads (class B).

    >>> s = Statistics().update([[1.0, 2.0], [3.0, 0.0]])
    >>> s.hessian.tolist(), s.absmax.tolist(), s.n_tokens
    ([[10.0, 2.0], [2.0, 4.0]], [3.0, 2.0], 2)
    """

    def __init__(self, *, hessian: bool = True) -> None:
        self.n_tokens = 0
        self.keeps_hessian = hessian
        self._hessian: Float64 | None = None
        self._diag: Float64 | None = None
        self._abs_sum: Float64 | None = None
        self._absmax: Float64 | None = None

    @property
    def hessian(self) -> Float64 | None:
        """The sum of x x^T: (features, features), not writable."""
        return None if self._hessian is None else _read_only(self._hessian)

    @property
    def diag(self) -> Float64:
        """The diagonal of the Hessian, the sum of x^2: (features,), not writable."""
        return _read_only(self._seen(self._diag))

    @property
    def absmean(self) -> Float64:
        """The mean of |x|: (features,)."""
        mean: Float64 = self._seen(self._abs_sum) / self.n_tokens
        return mean

    @property
    def absmax(self) -> Float64:
        """The greatest |x|: (features,), not writable."""
        return _read_only(self._seen(self._absmax))

    @property
    def features(self) -> int | None:
        """How many there are; None before data."""
        return None if self._diag is None else len(self._diag)

    @reports_memory
    def update(self, x: Any, name: str = "x") -> Statistics:
        """Take in a batch (..., features) of floats; after an error nothing has changed."""
        array = as_input(plain(x, name), name)
        refuse_on_gpu(array, name)
        values = as_kernel_float(array, name)
        rows = rows_of(values)
        self._check_features(rows.shape[1], name)
        if not np.isfinite(rows).all():
            raise nonfinite_error(values, name)
        ops = backends.resolve(None)
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK].astype(np.float64)
            magnitudes = np.abs(part)
            columns = np.ascontiguousarray(part.T)
            self._add(
                ops.matmul_float64(columns, part) if self.keeps_hessian else None,
                np.square(part).sum(axis=0),
                magnitudes.sum(axis=0),
                magnitudes.max(axis=0),
            )
        self.n_tokens += len(rows)
        return self

    def merge(self, other: Statistics) -> Statistics:
        """Take in all that `other` has seen."""
        self.check_merge(other)
        if other._diag is not None and other._abs_sum is not None and other._absmax is not None:
            self._add(other._hessian, other._diag, other._abs_sum, other._absmax)
            self.n_tokens += other.n_tokens
        return self

    def check_merge(self, other: Any) -> None:
        """Raise where `merge` would."""
        if not isinstance(other, Statistics) or other.keeps_hessian != self.keeps_hessian:
            expected = f"Statistics(hessian={self.keeps_hessian})"
            raise bad("other", f"got {other!r}", other, expected, ArgTypeError)
        if other._diag is not None:
            self._check_features(len(other._diag), "other")

    def state(self) -> dict[str, NDArray[Any]]:
        """All of it as arrays by name; `from_state` is the inverse."""
        parts = {
            "hessian": self._hessian,
            "diag": self._diag,
            "abs_sum": self._abs_sum,
            "absmax": self._absmax,
        }
        found: dict[str, NDArray[Any]] = {"n_tokens": np.array(self.n_tokens, np.int64)}
        found["keeps_hessian"] = np.array(self.keeps_hessian)
        return found | {name: part.copy() for name, part in parts.items() if part is not None}

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[Any]]) -> Statistics:
        """The statistics whose `state()` this is. Raises `ArgValueError` for what is no state."""
        try:
            keeps = state.get("keeps_hessian", "hessian" in state or "diag" not in state)
            statistics = cls(hessian=bool(keeps))
            statistics.n_tokens = int(state["n_tokens"])
            if (statistics.n_tokens > 0) != ("diag" in state) and "diag" in state:
                raise ValueError(f"{statistics.n_tokens} tokens beside sums")
            if "diag" in state:
                statistics._restore(state)
        except KeyError as error:
            found, expected = f"lacks {error}", "what state() returned"
            raise bad("state", found, list(state), expected) from None
        except (TypeError, ValueError, OverflowError, AttributeError) as error:
            found, expected = f"is no state of statistics: {error}", "what state() returned"
            raise bad("state", found, type(state), expected) from None
        return statistics

    def _restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take over the sums of a `state`."""
        features = len(state["diag"])
        for name in ("hessian", "diag", "abs_sum", "absmax")[not self.keeps_hessian :]:
            part = np.array(state[name], np.float64)
            expected = (features, features) if name == "hessian" else (features,)
            if part.shape != expected:
                raise ValueError(f"{name} has shape {part.shape}, expected {expected}")
            wrong = ~np.isfinite(part) | ((part < 0) & (name != "hessian"))
            if wrong.any():
                at, where = first_index(wrong)
                raise ValueError(f"{name} is {part[at]}{where}, expected finite sums of squares")
            if name == "hessian" and not np.array_equal(part, part.T):
                raise ValueError("hessian is not symmetric")
            setattr(self, f"_{name}", part)

    def __repr__(self) -> str:
        kind = "hessian" if self.keeps_hessian else "diagonal"
        return f"Statistics({self.n_tokens} tokens of {self.features} features, {kind})"

    def _add(
        self, hessian: Float64 | None, diag: Float64, abs_sum: Float64, absmax: Float64
    ) -> None:
        if self._diag is None or self._abs_sum is None or self._absmax is None:
            self._hessian = None if hessian is None else hessian.copy()
            self._diag, self._abs_sum, self._absmax = diag.copy(), abs_sum.copy(), absmax.copy()
            return
        if self._hessian is not None and hessian is not None:
            self._hessian = self._hessian + hessian
        self._diag, self._abs_sum = self._diag + diag, self._abs_sum + abs_sum
        self._absmax = np.maximum(self._absmax, absmax)

    def _check_features(self, features: int, name: str) -> None:
        if self._diag is not None and features != len(self._diag):
            raise bad(name, f"has {features} features", features, f"{len(self._diag)}, as before")

    def _seen(self, sums: Float64 | None) -> Float64:
        if sums is None:
            raise bad("statistics", "has seen no data", None, "update() with a batch of rows")
        return sums


def _read_only(sums: Float64) -> Float64:
    view = sums.view()
    view.flags.writeable = False
    return view
