"""The scale search with zero points: for integers whose codes are q + z.

For a zero point z that is known, x = s (q - z) is a symmetric problem whose levels are the integers
from qmin - z to qmax - z. So the search runs once for each z, on the groups whose range, or least
squares, may want it: those whose min/max zero point is at most `REACH` away.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..backends.reference import Reference
from ..codebooks import CLIPPING_FACTORS, half_even_thresholds
from ..devices import library_of, moved, on_host
from ..qtensor import QTensor
from ..schemes import Int, int_parts
from ..schemes.layout import Layout, layout_of

REACH = 2
"""Steps around the zero point of the range that are tried."""


def quantize(x: Any, scheme: Int, backend: Reference, weights: Any, out: QTensor | None) -> QTensor:
    """The body of `lsq` for schemes with zero points; for no group worse than with min/max."""
    start = scheme.quantize(x, backend)
    if x.size == 0:
        return start if out is None else out.overwrite(start)
    layout = layout_of(scheme, x.shape)
    scale = start.scale.reshape(layout.rows, layout.groups).copy()
    zero_point = scheme.zero_point(start, backend)
    assert zero_point is not None
    zero_point = zero_point.reshape(layout.rows, layout.groups).copy()
    del start  # its codes are not needed
    rows = scheme.granularity.to_rows(x)
    if weights is not None:
        weights = scheme.granularity.to_rows(weights)
    for columns, groups in _pieces(layout):
        part = scale[:, groups].reshape(-1, 1), zero_point[:, groups].reshape(-1, 1)
        shape = part[0].size, (columns.stop - columns.start) // (groups.stop - groups.start)
        values = rows[:, columns].reshape(shape)
        w = None if weights is None else weights[:, columns].reshape(shape)
        found = _searched(values, w, *part, scheme, backend)
        scale[:, groups], zero_point[:, groups] = (a.reshape(layout.rows, -1) for a in found)
    return int_parts.quantize(scheme, x, backend, scale, zero_point, out, searched=True)


def _pieces(layout: Layout) -> Iterator[tuple[slice, slice]]:
    """Columns and the groups in them: the whole groups of a row, and a shorter last one."""
    whole = layout.cols // layout.group_size if layout.group_size else 0
    if whole:
        yield slice(0, whole * layout.group_size), slice(0, whole)
    if whole < layout.groups:
        yield slice(whole * layout.group_size, layout.cols), slice(whole, layout.groups)


def _searched(
    values: Any, weights: Any, scale: Any, zero_point: Any, scheme: Int, backend: Reference
) -> tuple[Any, Any]:
    """Scales and zero points (groups, 1) for groups as rows, from those of the range."""
    xp = library_of(values)
    first = on_host(zero_point).astype(np.int64).reshape(-1)
    best_scale, best_zero = scale.copy(), zero_point.copy()
    least = xp.full(scale.shape, np.inf, np.float64)
    # The zero points of the range come first: they stay where no other is better.
    for away in sorted(range(-REACH, REACH + 1), key=abs):
        wanted = np.clip(first + away, scheme.qmin, scheme.qmax)
        for z in np.unique(wanted[wanted == first + away]):
            index = moved(np.flatnonzero((wanted == z) & (first + away == z)), xp.__name__)
            some, w = values[index], None if weights is None else weights[index]
            given = scale[index]
            found, error = _with_zero_point(some, w, given, int(z), scheme, backend)
            better = (error < least[index]) & (found > 0)
            best_scale[index] = xp.where(better, found, best_scale[index])
            best_zero[index] = xp.where(better, zero_point.dtype.type(z), best_zero[index])
            least[index] = xp.where(better, error, least[index])
    return best_scale, best_zero


def _with_zero_point(
    values: Any, weights: Any, given: Any, z: int, scheme: Int, backend: Reference
) -> tuple[Any, Any]:
    """The best scales of groups with this zero point, and their errors."""
    low, high = scheme.qmin - z, scheme.qmax - z
    levels = np.arange(low, high + 1).astype(np.float32)
    tables = (levels, half_even_thresholds(low, high), CLIPPING_FACTORS)
    library = library_of(values).__name__
    levels, thresholds, factors = (moved(table, library) for table in tables)
    return backend.choose_scale_lsq(
        values, values.shape[1], weights, levels, thresholds, factors, given, scheme.scale_dtype
    )
