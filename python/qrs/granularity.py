"""Which elements share a scale: the whole tensor, one index of an axis, or a group.

A granularity turns an array of any number of dimensions into the (rows, cols) of the kernels and
back, so that backends never know an axis. Nothing is computed here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checks import checked_integer
from .errors import ArgTypeError, ArgValueError

Array = NDArray[Any]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Rows:
    """How an array lies as (rows, cols) with groups of `group_size` along cols."""

    rows: int
    cols: int
    group_size: int


@dataclass(frozen=True)
class PerTensor:
    """One scale for all elements; `scale.shape` is ().

    >>> PerTensor().scale_shape((3, 4))
    ()
    """

    def check(self, shape: Shape) -> None:
        """Any shape will do."""

    def scale_shape(self, shape: Shape) -> Shape:
        return ()

    def rows(self, shape: Shape) -> Rows:
        size = math.prod(shape)
        return Rows(1, size, max(size, 1))

    def keeps_order(self, shape: Shape) -> bool:
        """Whether `to_rows` is a mere reshape."""
        return True

    def to_rows(self, x: Array) -> Array:
        return x.reshape(1, -1)

    def from_rows(self, rows: Array, shape: Shape) -> Array:
        return rows.reshape(shape)

    def select(self, per_group: Array, index: Any, ndim: int) -> Array:
        """The scales of `x[index]`, an index of the leading axis of two or more."""
        return per_group

    def suffix(self) -> str:
        return ""


@dataclass(frozen=True)
class PerAxis:
    """One scale for each index of `axis`; `scale.shape` is `(shape[axis],)`.

    >>> PerAxis(-1).scale_shape((3, 4))
    (4,)
    """

    axis: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "axis", checked_integer(self.axis, "axis"))

    def check(self, shape: Shape) -> None:
        if not -len(shape) <= self.axis < len(shape):
            raise ArgValueError(
                f"axis: got {self.axis}, out of bounds for an array of {len(shape)} dimensions, "
                f"shape={shape}",
                arg="axis",
                value=self.axis,
                expected=f"{-len(shape)}..{len(shape) - 1}",
            )

    def scale_shape(self, shape: Shape) -> Shape:
        return (shape[self.axis],)

    def rows(self, shape: Shape) -> Rows:
        cols = math.prod(shape) // max(shape[self.axis], 1)
        return Rows(shape[self.axis], cols, max(cols, 1))

    def keeps_order(self, shape: Shape) -> bool:
        """Whether `to_rows` is a mere reshape."""
        return self.axis % len(shape) == 0

    def to_rows(self, x: Array) -> Array:
        moved = np.moveaxis(x, self.axis, 0)
        return np.ascontiguousarray(moved.reshape(moved.shape[0], -1))

    def from_rows(self, rows: Array, shape: Shape) -> Array:
        axis = self.axis % len(shape)
        moved = rows.reshape(shape[axis], *shape[:axis], *shape[axis + 1 :])
        return np.ascontiguousarray(np.moveaxis(moved, 0, axis))

    def select(self, per_group: Array, index: Any, ndim: int) -> Array:
        return per_group[index] if self.axis % ndim == 0 else per_group

    def suffix(self) -> str:
        return f"-axis{self.axis}"


@dataclass(frozen=True)
class PerGroup:
    """One scale for each `group_size` elements along the last axis.

    `scale.shape` is `(*shape[:-1], shape[-1] / group_size)`. A last axis that `group_size` does
    not divide is an error, or, with `ragged=True`, its last group is shorter.

    >>> PerGroup(32).scale_shape((8, 128))
    (8, 4)
    >>> PerGroup(32, ragged=True).scale_shape((8, 100))
    (8, 4)
    """

    group_size: int
    ragged: bool = False

    def __post_init__(self) -> None:
        group_size = checked_integer(self.group_size, "group_size")
        if not 1 <= group_size < 2**31:
            raise ArgValueError(
                f"group_size: got {group_size}, expected 1 or more (and less than 2**31)",
                arg="group_size",
                value=group_size,
                expected=">= 1",
            )
        if not isinstance(self.ragged, bool):
            raise ArgTypeError(
                f"ragged: got {self.ragged!r}, expected True or False",
                arg="ragged",
                value=self.ragged,
                expected="bool",
            )
        object.__setattr__(self, "group_size", group_size)

    def check(self, shape: Shape) -> None:
        if shape[-1] % self.group_size and not self.ragged:
            raise ArgValueError(
                f"group_size must divide the last axis: got group_size={self.group_size}, "
                f"shape={shape} (ragged=True makes the last group shorter)",
                arg="group_size",
                value=self.group_size,
                expected=f"a divisor of {shape[-1]}",
            )

    def scale_shape(self, shape: Shape) -> Shape:
        return (*shape[:-1], -(-shape[-1] // self.group_size))

    def rows(self, shape: Shape) -> Rows:
        return Rows(math.prod(shape[:-1]), shape[-1], self.group_size)

    def keeps_order(self, shape: Shape) -> bool:
        """Whether `to_rows` is a mere reshape."""
        return True

    def to_rows(self, x: Array) -> Array:
        return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])

    def from_rows(self, rows: Array, shape: Shape) -> Array:
        return rows.reshape(shape)

    def select(self, per_group: Array, index: Any, ndim: int) -> Array:
        selected: Array = per_group[index]
        return selected

    def suffix(self) -> str:
        return f"-g{self.group_size}"


Granularity = PerTensor | PerAxis | PerGroup


def granularity_of(
    axis: int | None, group_size: int | None, granularity: Granularity | None, ragged: bool
) -> Granularity:
    """One granularity from the short forms `axis=`, `group_size=` and the long one."""
    given = {"axis": axis, "group_size": group_size, "granularity": granularity}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise ArgValueError(
            f"{names[1]}: {' and '.join(names)} are both given, expected one of them",
            arg=names[1],
            value=given[names[1]],
            expected="one granularity",
        )
    if granularity is not None and not isinstance(granularity, Granularity):
        raise ArgTypeError(
            f"granularity: got {granularity!r}, expected PerTensor(), PerAxis(axis) or "
            "PerGroup(group_size)",
            arg="granularity",
            value=granularity,
            expected="PerTensor | PerAxis | PerGroup",
        )
    if group_size is not None:
        return PerGroup(group_size, ragged)
    if ragged:
        raise ArgValueError(
            "ragged: got True without group_size, expected a group_size beside it",
            arg="ragged",
            value=True,
            expected="group_size",
        )
    if axis is not None:
        return PerAxis(axis)
    return granularity or PerTensor()
