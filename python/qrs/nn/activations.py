"""How the input of a layer becomes integers: with a range of its own, or with a calibrated one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..arrays import Array
from ..backends.reference import Codes, Float32, Int32, Reference
from ..checks import checked_number
from ..devices import library_of
from ..errors import ArgTypeError, bad
from ..granularity import PerAxis, PerTensor
from ..observers import Observer
from ..schemes import Int, Scheme, as_scheme
from ..schemes.int_checks import given_qparams
from ..schemes.scales import moved_like

OUTLIER_THRESHOLD = 6.0
"""Dettmers et al. 2022, section 3.2."""


class Encoded(NamedTuple):
    """Codes (m, k), int8 or uint8, with a scale for each row or for all."""

    codes: Codes
    scale: Float32
    """(m, 1) or (1, 1)."""
    zero_point: Int32 | None
    """In the shape of the scale."""


@dataclass(frozen=True, repr=False)
class Dynamic:
    """The range is that of the input itself, found in each call.

    `scheme` is an `Int` for x as (tokens, features): per tensor, or with axis=0 per token.
    """

    scheme: Int

    def __repr__(self) -> str:
        return f"Dynamic({str(self.scheme)!r})"

    @property
    def largest(self) -> int:
        """The greatest |q - zero_point|."""
        s = self.scheme
        return max(s.qmax, -s.qmin) if s.symmetric else s.qmax - s.qmin

    def encode(self, rows: Array, ops: Reference) -> Encoded:
        """Codes of rows (m, k)."""
        s = self.scheme
        if rows.size == 0:
            return _of_nothing(s, rows)
        together = rows if isinstance(s.granularity, PerAxis) else rows.reshape(1, -1)
        codes, scale, zero_point = ops.quantize_affine_packed(
            together, together.shape[1], 8, s.qmin, s.qmax, s.symmetric, s.scale_dtype
        )
        return Encoded(codes.reshape(rows.shape).view(s.code_dtype), scale, zero_point)


class Static:
    """The range is known beforehand: scale and zero point, per tensor, from calibration.

    >>> import qrs
    >>> from qrs.observers import MinMax
    >>> Static.of(MinMax().update([-1.0, 1.55]), "uint8")
    Static('uint8', scale=0.01, zero_point=100)
    """

    def __init__(self, scheme: Int | str, scale: Any, zero_point: Any = None) -> None:
        self.scheme = _checked(as_scheme(scheme))
        if not isinstance(self.scheme.granularity, PerTensor):
            expected = "a scheme that is per tensor"
            raise bad("scheme", f"got {self.scheme}", str(self.scheme), expected)
        if self.scheme.symmetric and np.shape(zero_point) == () and zero_point in (0, None):
            zero_point = None  # what symmetric codes have anyway
        scale, zero_point = given_qparams(self.scheme, (), scale, zero_point)
        self.scale = np.float32(scale)
        self.zero_point = 0 if zero_point is None else int(zero_point)
        if not self.scale > 0:
            raise bad("scale", f"got {self.scale}", float(self.scale), "a number above 0")

    @classmethod
    def of(cls, observer: Observer, scheme: Int | str = "uint8") -> Static:
        """The parameters that `scheme` makes of what an observer has seen."""
        if not isinstance(observer, Observer):
            found = f"got {observer!r}"
            raise bad("observer", found, observer, "one of qrs.observers", ArgTypeError)
        return cls(scheme, *observer.qparams(scheme))

    @property
    def largest(self) -> int:
        """The greatest |q - zero_point|."""
        return max(self.scheme.qmax - self.zero_point, self.zero_point - self.scheme.qmin)

    def encode(self, rows: Array, ops: Reference) -> Encoded:
        """Codes of rows (m, k)."""
        s, together = self.scheme, rows.reshape(1, -1)
        scale, zero_point = self.as_arrays(rows)
        if rows.size == 0:
            return _of_nothing(s, rows)
        codes = ops.quantize_affine(together, together.shape[1], scale, zero_point, s.qmin, s.qmax)
        return Encoded(codes.reshape(rows.shape), scale, zero_point)

    def as_arrays(self, like: Array) -> tuple[Float32, Int32]:
        """Scale and zero point, (1, 1), where `like` is."""
        scale = np.full((1, 1), self.scale, np.float32)
        zero_point = np.full((1, 1), self.zero_point, np.int32)
        return moved_like(scale, like), moved_like(zero_point, like)

    def state(self, name: str) -> dict[str, NDArray[Any]]:
        """`<name>_scale` and `<name>_zero_point`, the latter in the dtype of the codes."""
        zero_point = np.array(self.zero_point, self.scheme.code_dtype)
        return {f"{name}_scale": np.array(self.scale), f"{name}_zero_point": zero_point}

    def __repr__(self) -> str:
        return f"Static({str(self.scheme)!r}, scale={self.scale!s}, zero_point={self.zero_point})"


@dataclass(frozen=True)
class Outliers:
    """LLM.int8() (Dettmers et al. 2022): columns with |x| above `threshold` stay float.

    They are found in each call; the others are int8 with a scale per token. 0 means none.
    """

    threshold: float = OUTLIER_THRESHOLD

    def __post_init__(self) -> None:
        object.__setattr__(self, "threshold", checked_number(self.threshold, "threshold"))

    scheme = Int(8, axis=0)
    largest = 127


Activation = Dynamic | Static | Outliers


def as_activation(value: Any) -> Activation | None:
    """None, an activation, or the scheme of a dynamic one."""
    if value is None or isinstance(value, Dynamic | Static | Outliers):
        return value
    if isinstance(value, str | Scheme):
        return Dynamic(_checked(as_scheme(value)))
    expected = "None, a scheme, Static(...) or Outliers(...)"
    raise bad("activation", f"got {value!r}", value, expected, ArgTypeError)


def _of_nothing(scheme: Int, rows: Array) -> Encoded:
    """Codes of no rows; none of them has a scale."""
    xp = library_of(rows)
    codes = xp.zeros(rows.shape, scheme.code_dtype)
    each = len(rows) if isinstance(scheme.granularity, PerAxis) else 1
    return Encoded(codes, xp.ones((each, 1), np.float32), None)


def _checked(scheme: Scheme) -> Int:
    """A scheme that activations can have."""
    fits = isinstance(scheme, Int) and (
        isinstance(scheme.granularity, PerTensor)
        or (isinstance(scheme.granularity, PerAxis) and scheme.granularity.axis == 0)
    )
    if not isinstance(scheme, Int) or not fits:
        expected = "integers per tensor, or per token with axis 0, such as 'int8-axis0'"
        raise bad("activation", f"got {scheme}", str(scheme), expected)
    return scheme
