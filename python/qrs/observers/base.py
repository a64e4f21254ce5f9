"""What all observers share, and those that keep extremes alone."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from .. import backends
from ..arrays import (
    as_input,
    as_kernel_float,
    nonfinite_error,
    plain,
    refuse_on_gpu,
    reports_memory,
)
from ..checks import checked_integer
from ..errors import ArgTypeError, KernelFault, bad
from ..granularity import PerAxis, PerTensor
from ..schemes import Scheme, as_scheme

Float32 = NDArray[np.float32]
State = dict[str, NDArray[Any]]
Same = TypeVar("Same", bound="Observer")


class Observer(ABC):
    """What all observers share. `axis` gives each index of that axis a range of its own."""

    kinds: ClassVar[dict[str, type[Observer]]] = {}
    can_merge: ClassVar[bool] = True

    def __init_subclass__(cls) -> None:
        Observer.kinds[cls.__name__] = cls

    def __init__(self, axis: int | None = None) -> None:
        self.axis = None if axis is None else checked_integer(axis, "axis")
        self.lo: Float32 | None = None
        """The least value so far, and 0: shape (), or (channels,)."""
        self.hi: Float32 | None = None
        """The greatest value so far, and 0."""

    @reports_memory
    def update(self: Same, x: Any, name: str = "x") -> Same:
        """Take in a batch: an array of floats, any shape, not changed.

        NaN and infinities are an `ArgValueError` that calls the batch `name`, and after any error
        the observer is what it was. A batch without values changes nothing.
        """
        array = as_input(plain(x, name), name)
        refuse_on_gpu(array, name)
        values = as_kernel_float(array, name).astype(np.float32, copy=False)
        if not np.isfinite(values).all():
            raise nonfinite_error(values, name)
        rows = self._rows(values, name)
        if values.size:
            self._take(rows)
        return self

    def merge(self: Same, other: Same) -> Same:
        """Take in all that `other`, of the same kind and settings, has seen."""
        self.check_merge(other)
        if other.lo is not None:
            self._absorb(other)
        return self

    def check_merge(self, other: Any) -> None:
        """Raise where `merge` would."""
        if type(other) is not type(self) or other.settings() != self.settings():
            expected = f"{type(self).__name__} with {self.settings()}"
            raise bad("other", f"got {other!r}", other, expected, ArgTypeError)
        if not self.can_merge:
            found = "moving averages have no common order"
            raise bad("other", found, other, "MinMax, or one observer")
        if other.lo is not None:
            self._check_channels(len(other.lo) if self.axis is not None else None, "other")

    def range(self, scheme: Scheme | None = None) -> tuple[Float32, Float32]:
        """The range that shall be representable: lo <= 0 <= hi, of shape () or (channels,).

        Without data an `ArgValueError`.
        """
        if self.lo is None or self.hi is None:
            raise bad("observer", "has seen no data", None, "update() with a batch of values")
        lo, hi = self._range(self.lo, self.hi, scheme)
        return lo.copy(), hi.copy()

    def qparams(self, scheme: Scheme | str) -> tuple[Any, Any]:
        """Scale (float32) and zero point (or None) of `scheme` for the range, of shape () or (n,).

        The scheme is per tensor, or per axis where the observer is.

        >>> scale, zero_point = MinMax().update([-1.0, 4.1]).qparams("uint8")
        >>> bool(scale == np.float32(5.1) / np.float32(255)), int(zero_point)
        (True, 50)
        """
        scheme = as_scheme(scheme)
        expected = PerTensor if self.axis is None else PerAxis
        if not isinstance(scheme.granularity, expected):
            raise bad("scheme", f"got {scheme}", str(scheme), f"one that is {expected.__name__}")
        if scheme.scale_dtype is None:
            raise bad("scheme", f"got {scheme}", str(scheme), "one with scales, such as 'uint8'")
        lo, hi = self.range(scheme)
        return qparams_of(lo, hi, scheme)

    def settings(self) -> dict[str, Any]:
        """What the observer was made with: the arguments of its class."""
        return {"axis": self.axis}

    def state(self) -> State:
        """All of it as arrays, by name: what `from_state` and safetensors files take."""
        text = json.dumps({"kind": type(self).__name__, **self.settings()})
        found: State = {"settings": np.frombuffer(text.encode(), np.uint8)}
        if self.lo is not None and self.hi is not None:
            found |= {"lo": self.lo.copy(), "hi": self.hi.copy()}
        return found

    def _restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take over what was seen from a `state`."""
        if "lo" not in state and "hi" not in state:
            return
        lo, hi = np.array(state["lo"], np.float32), np.array(state["hi"], np.float32)
        legal = lo.shape == hi.shape and bool(np.isfinite([lo, hi]).all())
        legal = legal and bool((lo <= 0).all() and (hi >= 0).all())
        if not legal or lo.ndim != (self.axis is not None):
            raise ValueError(f"lo of shape {lo.shape} and hi of shape {hi.shape} are no range")
        self.lo, self.hi = lo, hi

    def __repr__(self) -> str:
        if self.lo is None or self.hi is None:
            return f"{type(self).__name__}(no data)"
        return f"{type(self).__name__}(lo={self.lo.tolist()}, hi={self.hi.tolist()})"

    def _rows(self, values: Float32, name: str) -> Float32:
        """The values as (channels, n), or as (1, n) without an axis."""
        if self.axis is None:
            return values.reshape(1, -1)
        if not -values.ndim <= self.axis < values.ndim:
            shape = values.shape
            raise bad("axis", f"got {self.axis} for {name} of shape {shape}", self.axis, "an axis")
        channels = values.shape[self.axis]
        self._check_channels(channels, name)
        rows = np.moveaxis(values, self.axis, 0)
        return rows.reshape(channels, values.size // max(channels, 1))

    def _check_channels(self, channels: int | None, name: str) -> None:
        if self.lo is not None and channels is not None and len(self.lo) != channels:
            raise bad(name, f"has {channels} channels", channels, f"{len(self.lo)}, as before")

    def _shaped(self, per_row: Float32) -> Float32:
        return per_row if self.axis is not None else per_row.reshape(())

    def _take(self, rows: Float32) -> None:
        lo = self._shaped(rows.min(axis=1, initial=0) + np.float32(0))
        hi = self._shaped(rows.max(axis=1, initial=0) + np.float32(0))
        self._widen(lo, hi)

    def _absorb(self, other: Any) -> None:
        self._widen(other.lo, other.hi)

    def _widen(self, lo: Float32, hi: Float32) -> None:
        self.lo = np.array(lo) if self.lo is None else np.asarray(np.minimum(self.lo, lo))
        self.hi = np.array(hi) if self.hi is None else np.asarray(np.maximum(self.hi, hi))

    @abstractmethod
    def _range(
        self, lo: Float32, hi: Float32, scheme: Scheme | None
    ) -> tuple[Float32, Float32]: ...


class MinMax(Observer):
    """All that was seen.

    >>> MinMax().update([1.0, 2.0]).update([-3.0]).range()
    (array(-3., dtype=float32), array(2., dtype=float32))
    """

    def _range(self, lo: Float32, hi: Float32, scheme: Scheme | None) -> tuple[Float32, Float32]:
        return lo, hi


class MovingAverage(MinMax):
    """Extremes averaged: each batch moves them by `momentum` of the way to its own.

    Depends on the order of batches, and cannot merge.

    >>> MovingAverage(momentum=0.5).update([4.0]).update([8.0]).range()[1]
    array(6., dtype=float32)
    """

    can_merge = False

    def __init__(self, axis: int | None = None, *, momentum: float = 0.01) -> None:
        super().__init__(axis)
        if not isinstance(momentum, float) or not 0 < momentum <= 1:
            raise bad("momentum", f"got {momentum!r}", momentum, "a float above 0, up to 1")
        self.momentum = np.float32(momentum)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "momentum": float(self.momentum)}

    def _widen(self, lo: Float32, hi: Float32) -> None:
        if self.lo is None or self.hi is None:
            self.lo, self.hi = lo, hi
        else:
            self.lo = np.asarray(self.lo + self.momentum * (lo - self.lo))
            self.hi = np.asarray(self.hi + self.momentum * (hi - self.hi))


def from_state(state: Mapping[str, NDArray[Any]]) -> Observer:
    """The observer whose `state()` this is; it goes on as if it had never been away.

    Raises `ArgValueError` for what is no state.

    >>> from_state(MinMax().update([1.0, -2.0]).state())
    MinMax(lo=-2.0, hi=1.0)
    """
    try:
        settings = json.loads(bytes(np.asarray(state["settings"], np.uint8)))
        observer = Observer.kinds[settings.pop("kind")](**settings)
        observer._restore(state)
    except (
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
        OverflowError,
    ) as error:
        found, expected = f"is no state of an observer: {error!r}", "what state() returned"
        raise bad("state", found, type(state), expected) from None
    return observer


def qparams_of(lo: Float32, hi: Float32, scheme: Scheme) -> tuple[Any, Any]:
    """What the scheme chooses for an array whose extremes these are."""
    ends = np.stack([lo, hi], axis=-1)
    if lo.ndim:
        scheme = scheme.with_granularity(PerAxis(0))
    try:
        qt = scheme.quantize(ends, backends.of(ends))
    except KernelFault as fault:
        raise scheme.explain(fault, ends) from None
    return qt.scale, qt.zero_point
