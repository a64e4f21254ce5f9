"""Arrays as the extension module takes and returns them."""

from __future__ import annotations

from typing import overload

import numpy as np
from numpy.typing import NDArray

from ...constants import DTYPE_NAMES, DTYPES
from ..reference import Array, Integers

_FLOAT32 = DTYPES["float32"]


def raw(x: Array) -> tuple[Array, str]:
    """An array as the kernels take it, and the name of its dtype."""
    if x.dtype is _FLOAT32:
        return x, "float32"
    name = DTYPE_NAMES[x.dtype]
    return (x if x.itemsize > 2 else x.view(np.uint16)), name


def typed(raw: Array, dtype: str) -> Array:
    """What a kernel returned, in its dtype."""
    return raw if dtype == "float32" else raw.view(DTYPES[dtype])


def bits_of(out: Array | None) -> Array | None:
    """An array to be written as the kernels take it."""
    return None if out is None else raw(out)[0]


def int32(zero_point: Integers | None) -> NDArray[np.int32] | None:
    """Zero points of any integer dtype as kernels take them."""
    return None if zero_point is None else zero_point.astype(np.int32, copy=False)


@overload
def row(vector: Array) -> Array: ...
@overload
def row(vector: None) -> None: ...
def row(vector: Array | None) -> Array | None:
    """A vector as kernels take it, with two axes."""
    return None if vector is None else vector.reshape(1, -1)


@overload
def column(values: None) -> None: ...
@overload
def column(values: Array) -> Array: ...
def column(values: Array | None) -> Array | None:
    """One number for each point, as kernels take them."""
    return None if values is None else values.reshape(-1, 1)
