"""The scale search with offsets: for integers whose scale and offset are both floats.

For an offset that is known, x - offset = s q is the problem of the symmetric search with the levels
0, 1, 2, .... So it runs for a few offsets around the least value of each group, and then for some
around the best of these, ever closer.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backends.reference import Reference
from ..codebooks import CLIPPING_FACTORS
from ..devices import library_of, moved
from ..qtensor import QTensor
from ..schemes import Offset, scales
from ..schemes.layout import layout_of

STEPS = ((-0.5, 0.5, 1.0, 1.5, 2.0), (-0.25, 0.25), (-0.125, 0.125), (-0.0625, 0.0625))
"""Moves of the offsets in steps of the scale of min/max, round after round."""


def quantize(
    x: Any, scheme: Offset, backend: Reference, weights: Any, out: QTensor | None
) -> QTensor:
    """The body of `lsq` for such schemes; for no group worse than with min/max."""
    start = scheme.quantize(x, backend)
    if x.size == 0:
        return start if out is None else out.overwrite(start)
    layout, dtype = layout_of(scheme, x.shape), str(scheme.scale_dtype)
    first = scheme.scale(start, backend).reshape(layout.rows, layout.groups)
    search = _Search(x, scheme, backend, weights)
    offset = scales.decoded(start.parts["offset"], dtype, backend).reshape(first.shape)
    scale, error = search.at(offset, first, start.parts)
    xp = library_of(x)
    for moves in STEPS:
        center = offset
        for move in moves:
            parts = scheme.parts_of(center + np.float32(move) * first, x.shape, backend)
            tried = scales.decoded(parts["offset"], dtype, backend).reshape(first.shape)
            found, its_error = search.at(tried, first, parts)
            better = its_error < error
            offset, scale = xp.where(better, tried, offset), xp.where(better, found, scale)
            error = xp.where(better, its_error, error)
    parts = scheme.parts_of(offset, x.shape, backend)
    changed = scheme.weight_into(search.x, parts)
    qt = scheme.of(scheme.inner.quantize_with(changed, backend, scale), parts)
    qt.dtype = x.dtype.name
    return qt if out is None else out.overwrite(qt)


class _Search:
    """An array, and the tables of its scheme where it is."""

    def __init__(self, x: Any, scheme: Offset, backend: Reference, weights: Any) -> None:
        self.x, self.scheme, self.backend = x.astype(np.float32), scheme, backend
        self.weights = None if weights is None else scheme.granularity.to_rows(weights)
        values = scheme.inner.value_set()
        assert values is not None
        library = library_of(x).__name__
        levels, thresholds = (moved(table, library) for table in values)
        self.tables = levels, thresholds, moved(CLIPPING_FACTORS, library)

    def at(self, offset: Any, scale: Any, parts: Any) -> tuple[Any, Any]:
        """The best scales for these offsets, and the errors."""
        scheme = self.scheme
        rows = scheme.granularity.to_rows(scheme.weight_into(self.x, parts))
        layout = layout_of(scheme, self.x.shape)
        return self.backend.choose_scale_lsq(
            rows, layout.group_size, self.weights, *self.tables, scale, str(scheme.scale_dtype)
        )
