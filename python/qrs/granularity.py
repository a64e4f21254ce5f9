"""Which elements share a scale: the whole tensor, one index of an axis, or a group.

A granularity turns an array of any number of dimensions into the (rows, cols) of the kernels and
back, so that backends never know an axis. Nothing is computed here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from .checks import checked_integer
from .devices import contiguous, library_of
from .errors import ArgTypeError, ArgValueError, bad

Array = NDArray[Any]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Rows:
    """How an array lies as (rows, cols), in groups of `group_size` along cols.

    >>> Rows(8, 100, 32).groups
    4
    """

    rows: int
    cols: int
    group_size: int

    @property
    def groups(self) -> int:
        """Groups in each row; the last may be shorter."""
        return -(-self.cols // self.group_size)


@dataclass(frozen=True)
class Granularity:
    """Base of the three; the methods here are right where no axis has to move."""

    def check(self, shape: Shape) -> None:
        """Raise `ArgValueError` where the granularity does not fit an array of `shape`."""

    def stored_shape(self, shape: Shape) -> Shape:
        """The shape whose last axis is packed and, in groups, scaled."""
        return shape

    def scale_shape(self, shape: Shape) -> Shape:
        """The shape of the scales of an array of `shape`."""
        raise NotImplementedError

    def rows(self, shape: Shape) -> Rows:
        """How an array of `shape` lies in the kernels."""
        raise NotImplementedError

    def keeps_order(self, shape: Shape) -> bool:
        """Whether `to_rows` is a mere reshape."""
        return True

    def to_rows(self, x: Array) -> Array:
        """The array as (rows, cols), in C order."""
        view = self.rows(x.shape)
        return contiguous(x.reshape(view.rows, view.cols))

    def from_rows(self, rows: Array, shape: Shape) -> Array:
        """The inverse of `to_rows`."""
        return rows.reshape(shape)

    def is_rowwise(self, ndim: int) -> bool:
        """Whether each row of the leading axis has scales of its own."""
        return True

    def select(self, per_group: Array, index: Any, ndim: int) -> Array:
        """The scales of `x[index]`, an index of the leading axis of two or more."""
        selected: Array = per_group[index]
        return selected

    def suffix(self) -> str:
        """What the string of a scheme says of it."""
        raise NotImplementedError


@dataclass(frozen=True)
class Unscaled(Granularity):
    """No scales: of a plain cast. Without a scale, every row is a group of its own."""

    def scale_shape(self, shape: Shape) -> Shape:
        return (0,)

    def rows(self, shape: Shape) -> Rows:
        *lead, last = shape
        return Rows(math.prod(lead), last, max(last, 1))

    def suffix(self) -> str:
        return ""


@dataclass(frozen=True)
class PerTensor(Granularity):
    """One scale for all elements; `scale.shape` is ().

    >>> PerTensor().scale_shape((3, 4))
    ()
    """

    def scale_shape(self, shape: Shape) -> Shape:
        return ()

    def rows(self, shape: Shape) -> Rows:
        size = math.prod(shape)
        return Rows(1, size, max(size, 1))

    def is_rowwise(self, ndim: int) -> bool:
        return False

    def select(self, per_group: Array, index: Any, ndim: int) -> Array:
        return per_group

    def suffix(self) -> str:
        return ""


@dataclass(frozen=True)
class PerAxis(Granularity):
    """One scale for each index of `axis`; `scale.shape` is `(shape[axis],)`.

    >>> PerAxis(-1).scale_shape((3, 4))
    (4,)
    """

    axis: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "axis", checked_integer(self.axis, "axis"))

    def check(self, shape: Shape) -> None:
        if not -len(shape) <= self.axis < len(shape):
            found = f"got {self.axis}, out of bounds for shape {shape}"
            raise bad("axis", found, self.axis, f"{-len(shape)}..{len(shape) - 1}")

    def scale_shape(self, shape: Shape) -> Shape:
        return (shape[self.axis],)

    def rows(self, shape: Shape) -> Rows:
        cols = math.prod(shape) // max(shape[self.axis], 1)
        return Rows(shape[self.axis], cols, max(cols, 1))

    def keeps_order(self, shape: Shape) -> bool:
        return self.axis % len(shape) == 0

    def to_rows(self, x: Array) -> Array:
        moved = library_of(x).moveaxis(x, self.axis, 0)
        return contiguous(moved.reshape(moved.shape[0], -1))

    def from_rows(self, rows: Array, shape: Shape) -> Array:
        axis = self.axis % len(shape)
        moved = rows.reshape(shape[axis], *shape[:axis], *shape[axis + 1 :])
        return contiguous(library_of(moved).moveaxis(moved, 0, axis))

    def is_rowwise(self, ndim: int) -> bool:
        return self.axis % ndim == 0

    def select(self, per_group: Array, index: Any, ndim: int) -> Array:
        return super().select(per_group, index, ndim) if self.is_rowwise(ndim) else per_group

    def suffix(self) -> str:
        return f"-axis{self.axis}"


@dataclass(frozen=True)
class PerGroup(Granularity):
    """One scale for each `group_size` elements along the last axis.

    `scale.shape` is `(*shape[:-1], shape[-1] / group_size)`. A last axis that `group_size` does
    not divide is an error, or, with `ragged=True`, its last group is shorter. With `flat=True`
    all axes but the first count as one last axis, as (in, kh, kw) of a convolution's weight.

    >>> PerGroup(32).scale_shape((8, 128))
    (8, 4)
    >>> PerGroup(32, ragged=True).scale_shape((8, 100))
    (8, 4)
    >>> PerGroup(32, flat=True).scale_shape((64, 32, 3, 3))
    (64, 9)
    """

    group_size: int
    ragged: bool = False
    flat: bool = False

    def __post_init__(self) -> None:
        group_size = checked_integer(self.group_size, "group_size")
        if not 1 <= group_size < 2**63:
            raise bad("group_size", f"got {group_size}", group_size, "1 or more, below 2**63")
        for arg, value in {"ragged": self.ragged, "flat": self.flat}.items():
            if not isinstance(value, bool):
                raise bad(arg, f"got {value!r}", value, "True or False", ArgTypeError)
        object.__setattr__(self, "group_size", group_size)

    def check(self, shape: Shape) -> None:
        last = self.stored_shape(shape)[-1]
        if last % self.group_size and not self.ragged:
            raise ArgValueError(
                f"group_size must divide the last axis: got group_size={self.group_size}, "
                f"shape={shape} (ragged=True makes the last group shorter)",
                arg="group_size",
                value=self.group_size,
                expected=f"a divisor of {last}",
            )

    def stored_shape(self, shape: Shape) -> Shape:
        return (shape[0], math.prod(shape[1:])) if self.flat and len(shape) > 2 else shape

    def scale_shape(self, shape: Shape) -> Shape:
        return (*self.stored_shape(shape)[:-1], self.rows(shape).groups)

    def rows(self, shape: Shape) -> Rows:
        *lead, last = self.stored_shape(shape)
        return Rows(math.prod(lead), last, self.group_size)

    def suffix(self) -> str:
        return f"-g{self.group_size}"


def granularity_of(
    axis: int | None,
    group_size: int | None,
    granularity: Granularity | None,
    ragged: bool,
    flat: bool,
) -> Granularity:
    """One granularity from the short forms `axis=`, `group_size=` and the long one."""
    given = {"axis": axis, "group_size": group_size, "granularity": granularity}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        found = f"{' and '.join(names)} are both given"
        raise bad(names[1], found, given[names[1]], "one of them")
    if granularity is not None and not isinstance(granularity, Granularity):
        expected = "PerTensor(), PerAxis(axis) or PerGroup(group_size)"
        raise bad("granularity", f"got {granularity!r}", granularity, expected, ArgTypeError)
    if group_size is not None:
        return PerGroup(group_size, ragged, flat)
    if ragged or flat:
        name = "ragged" if ragged else "flat"
        raise bad(
            name, "got True without group_size", True, f"group_size= or PerGroup({name}=True)"
        )
    if axis is not None:
        return PerAxis(axis)
    return granularity or PerTensor()
