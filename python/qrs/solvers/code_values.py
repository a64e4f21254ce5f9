"""What the codes of a quantized weight stand for, as `round_with_feedback` takes it.

Solvers that choose codes one input after the other see a weight (n, k), scales (n, G) with the
group of each input, and levels that ascend: integers from a lowest one on, or a table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import codebooks
from ..backends.reference import Reference
from ..errors import ArgValueError, bad
from ..granularity import PerGroup
from ..qtensor import QTensor
from ..schemes import Codebook, Int, Scheme
from ..schemes.layout import layout_of, packed_bits

Float32 = NDArray[np.float32]
Codes = NDArray[np.uint8]

FITTING = "an integer scheme, or a codebook per tensor or row"


def check_fits(scheme: Scheme, solver: str) -> None:
    """Raise `ArgValueError` for schemes whose codes do not stand for a level times a scale."""
    fits = isinstance(scheme, Int)
    if isinstance(scheme, Codebook):
        per = scheme.book_granularity
        fits = not scheme.centered and not scheme.outlier_fraction
        fits = fits and not isinstance(per, PerGroup)
    if not fits:
        raise bad("solver", f"got {solver!r} for {scheme}", solver, FITTING)


@dataclass(frozen=True)
class CodeValues:
    """Scales and levels of a weight whose axes behind the first count as one: (n, k).

    Codes count from the lowest level here; `stored` makes them the scheme's.
    """

    scale: Float32
    """(n, G)."""
    group_of: NDArray[np.int32]
    """(1, k): the column of `scale` that each input takes."""
    levels: Float32 | None
    """(1 or n, count), ascending; None for integers."""
    lowest: NDArray[np.int32] | None
    """(n, G): the lowest integer of each group; None for tables."""
    count: int
    code_of: Codes | None
    """The scheme's code of each level of a fixed table, where they do not ascend with it."""

    @classmethod
    def of(cls, qt: QTensor, backend: Reference) -> CodeValues:
        """What the codes of `qt` stand for."""
        n, scheme = qt.shape[0], qt.scheme
        ids, group_of = _groups(scheme, qt.shape)
        scale = scheme.scale(qt, backend)
        scale = np.ones(1, np.float32) if scale is None else scale.reshape(-1)
        by_group = np.ascontiguousarray(scale[ids], np.float32)
        if isinstance(scheme, Int):
            zero = scheme.zero_point(qt, backend)
            zeros = np.zeros(len(scale), np.int32) if zero is None else zero.reshape(-1)
            lowest = np.ascontiguousarray(scheme.qmin - zeros.astype(np.int32)[ids])
            count = scheme.qmax - scheme.qmin + 1
            return cls(by_group, group_of, None, lowest, count, None)
        assert isinstance(scheme, Codebook)
        code_of = None
        if scheme.table is not None:
            ascending, _, code_of = codebooks.ranked(scheme.table)
            levels = ascending[None]
        else:
            levels = scheme.codebook(qt).reshape(-1, scheme.levels)
            if len(levels) not in (1, n):
                raise bad("scheme", f"got {scheme}", scheme, FITTING)
        levels = np.ascontiguousarray(levels, np.float32)
        return cls(by_group, group_of, levels, None, levels.shape[1], code_of)

    def of_inputs(self, order: NDArray[np.intp]) -> CodeValues:
        """The same for the inputs in another order."""
        return replace(self, group_of=in_order(self.group_of, order))

    @property
    def arguments(self) -> tuple[Any, ...]:
        """As the operations of the backends take them."""
        return self.scale, self.group_of, self.levels, self.lowest, self.count

    def units(self, codes: Codes) -> Float32:
        """The levels of codes (n, k), before they are scaled: float32."""
        if self.lowest is not None:
            return (self.lowest[:, self.group_of[0]] + codes).astype(np.float32)
        assert self.levels is not None
        rows = np.arange(len(codes))[:, None] if len(self.levels) > 1 else 0
        found: Float32 = self.levels[rows, codes]
        return found

    def decoded(self, codes: Codes) -> Float32:
        """What codes (n, k) decode to: float32."""
        found: Float32 = self.units(codes) * self.scale[:, self.group_of[0]]
        return found

    def ranks(self, qt: QTensor) -> Codes:
        """The codes of `qt`, counted from the lowest level: (n, k)."""
        codes = qt.codes.reshape(qt.shape[0], -1)
        if isinstance(qt.scheme, Int):
            return (codes.astype(np.int16) - qt.scheme.qmin).astype(np.uint8)
        return codes if self.code_of is None else np.argsort(self.code_of).astype(np.uint8)[codes]

    def stored(
        self, qt: QTensor, codes: Codes, backend: Reference, info: dict[str, Any]
    ) -> QTensor:
        """`qt` with these codes in place of its own."""
        scheme = qt.scheme
        if isinstance(scheme, Int):
            own = (codes.astype(np.int16) + scheme.qmin).astype(scheme.code_dtype)
        else:
            own = codes if self.code_of is None else self.code_of[codes]
        layout = layout_of(scheme, qt.shape)
        packed = packed_bits(own.reshape(layout.stored_shape), scheme.bits, backend)
        parts = {**qt.parts, "packed": packed}
        return QTensor(scheme, qt.shape, qt.dtype, parts, {**qt.info, **info})


def _groups(scheme: Scheme, shape: tuple[int, ...]) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
    """For each row and group the flat index of its scale (n, G), and the group of each input."""
    layout = layout_of(scheme, shape)
    if scheme.scale_dtype is None:
        return np.zeros((shape[0], 1), np.intp), np.zeros((1, int(np.prod(shape[1:]))), np.int32)
    column = np.arange(layout.cols) // max(layout.group_size, 1)
    ids = np.arange(layout.rows)[:, None] * layout.groups + column
    by_row = scheme.granularity.from_rows(ids, shape).reshape(shape[0], -1)
    _, first, group_of = np.unique(by_row[0], return_index=True, return_inverse=True)
    return by_row[:, first], group_of.astype(np.int32).reshape(1, -1)


def weight_rows(x: Any, solver: str) -> Float32:
    """A weight as float32 (n, k); raises where it has fewer than two axes."""
    if x.ndim < 2:
        raise ArgValueError(
            f"x: got shape {x.shape} for solver={solver!r}, expected a weight (out, in)",
            arg="x", value=x.shape, expected="a weight (out, in)",
        )  # fmt: skip
    return np.ascontiguousarray(x.reshape(len(x), math.prod(x.shape[1:])), np.float32)


def in_order(x: Any, order: NDArray[np.intp], axis: int = 1) -> Any:
    """`x` with an axis in this order, in C order: itself where that is the one it has.

    >>> in_order(np.array([[1, 2, 3]]), np.array([2, 0, 1])).tolist()
    [[3, 1, 2]]
    """
    return x if np.array_equal(order, np.arange(len(order))) else np.take(x, order, axis=axis)
