"""How an array of one shape lies in the kernels and in the parts of a scheme; packing of codes.

Shapes, and the operations that cut codes into bits; no scheme's arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .. import backends
from ..backends.reference import Reference
from ..constants import DTYPES
from ..devices import contiguous, library_of

if TYPE_CHECKING:
    from ..qtensor import QTensor
    from .base import Array, Scheme, Shape


@dataclass(frozen=True, slots=True)
class Layout:
    """How an array of one shape lies in the kernels and in the parts of a scheme."""

    rows: int
    cols: int
    group_size: int
    groups: int
    stored_shape: Shape
    scale_shape: Shape
    packed_shape: Shape
    packs_in_rows: bool
    """Whether the rows of the kernels, packed, are the bytes that are stored."""

    @property
    def groups_in_all(self) -> int:
        """Groups of all rows."""
        return self.rows * self.groups


@lru_cache(maxsize=1024)
def layout_of(scheme: Scheme, shape: Shape) -> Layout:
    """The layout of `shape`; raises `ArgValueError` where the granularity does not fit it."""
    granularity = scheme.granularity
    granularity.check(shape)
    view = granularity.rows(shape)
    # Kernel rows are stored rows if no axis has to move and either each is a row of the last
    # axis, or several that end on whole bytes, so that packing them in one go leaves no gaps.
    in_order = view.rows == 1 or granularity.keeps_order(shape)
    stored_shape = granularity.stored_shape(shape)
    last = stored_shape[-1]
    whole_bytes = view.cols > last and last * scheme.bits % 8 == 0
    packs_in_rows = in_order and (view.cols == last or whole_bytes)
    return Layout(
        view.rows,
        view.cols,
        view.group_size,
        view.groups,
        stored_shape,
        granularity.scale_shape(shape),
        packed_shape(stored_shape, scheme.bits),
        packs_in_rows,
    )


def packed_shape(shape: Shape, bits: int) -> Shape:
    """The bytes of codes of `shape`: each row of the last axis starts on a byte.

    >>> packed_shape((3, 5), 4), packed_shape((), 4)
    ((3, 3), (1,))
    """
    *rows, cols = shape or (1,)
    return (*rows, -(-cols * bits // 8))


def packed_bits(codes: Array, bits: int, backend: Reference | None = None) -> NDArray[np.uint8]:
    """Codes of any shape, packed along the last axis; a 0-d array becomes one byte."""
    shape = packed_shape(codes.shape, bits)
    if codes.size == 0:
        empty: NDArray[np.uint8] = library_of(codes).empty(shape, np.uint8)
        return empty
    if bits >= 8:
        return contiguous(codes).view(np.uint8).reshape(shape)
    rows = contiguous(codes).reshape(-1, (codes.shape or (1,))[-1])
    return (backend or backends.of(codes)).pack_bits(rows, bits).reshape(shape)


def unpacked_bits(
    packed: NDArray[np.uint8],
    bits: int,
    signed: bool,
    shape: Shape,
    backend: Reference | None = None,
) -> Array:
    """The inverse of `packed_bits`: int8 or uint8 codes of `shape`."""
    if math.prod(shape) == 0:
        empty: Array = library_of(packed).empty(shape, np.int8 if signed else np.uint8)
        return empty
    rows = contiguous(packed).reshape(-1, packed.shape[-1])
    backend = backend or backends.of(packed)
    codes = backend.unpack_bits(rows, bits, (shape or (1,))[-1], signed)
    return codes.reshape(shape)


def empty_like_parts(qt: QTensor, dtype: str) -> Array:
    """A new array for what `qt` decodes to, where its parts are."""
    empty: Array = library_of(qt.packed).empty(qt.shape, DTYPES[dtype])
    return empty
