"""Lower tr(E H E^T) further, from codes that are there: coordinate descent and better scales.

Both are monotone: an input takes another code, and a group another scale, only where the
objective falls. Behdin et al., "QuantEase", 2023, for the first; scales in closed form, a group
after the other, for the second.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backends.reference import Reference
from ..qtensor import QTensor
from ..schemes import scales
from .code_values import CodeValues, in_order, weight_rows
from .hessian import Float64


def polished(
    x: Any, qt: QTensor, h: Float64, order: NDArray[np.intp], rounds: int, backend: Reference
) -> QTensor:
    """`qt`, a quantized weight `x` (out, in, ...), after some rounds, or until nothing changes."""
    w, original = in_order(weight_rows(x, "polish"), order), np.argsort(order)
    ordered = in_order(in_order(h, order), order, axis=0)
    for done in range(1, rounds + 1):
        values = CodeValues.of(qt, backend)
        inputs = values.of_inputs(order)
        before = in_order(values.ranks(qt), order)
        codes = backend.descend(w, ordered, inputs.decoded(before), *inputs.arguments)
        refitted = _refitted(w, ordered, inputs, codes, qt, backend)
        if refitted is None and np.array_equal(codes, before):
            break
        info = {"polish_rounds": done}
        qt = values.stored(refitted or qt, in_order(codes, original), backend, info)
    return qt


def _refitted(
    w: NDArray[np.float32],
    h: Float64,
    values: CodeValues,
    codes: NDArray[np.uint8],
    qt: QTensor,
    backend: Reference,
) -> QTensor | None:
    """`qt` with better scales for these codes; None where there are none, or they are quantized.

    Of the error E and the levels C of a group, all others fixed, the best change of its scale is
    <E H, C> / <C H, C>; it is rounded to how scales are stored, and taken where it helps.
    """
    scheme = qt.scheme
    stored = scheme.scale_dtype
    if not isinstance(stored, str) or qt.parts["scale"].size != values.scale.size:
        return None  # quantized, or shared by several rows
    units, error = values.units(codes), w.astype(np.float64) - values.decoded(codes)
    scale = values.scale.copy()
    for group in range(scale.shape[1]):
        inputs = np.flatnonzero(values.group_of[0] == group)
        c = np.ascontiguousarray(units[:, inputs], np.float64)
        pull = backend.matmul_float64(error, np.ascontiguousarray(h[:, inputs]))
        own = backend.matmul_float64(c, np.ascontiguousarray(h[np.ix_(inputs, inputs)]))
        slope, curve = np.sum(pull * c, axis=1), np.sum(own * c, axis=1)
        step = np.divide(slope, curve, out=np.zeros_like(slope), where=curve > 0)
        with np.errstate(over="ignore", under="ignore"):
            wanted = (scale[:, group] + step).astype(np.float32)
        found = _as_stored(wanted, stored, backend)
        change = found.astype(np.float64) - scale[:, group]
        better = (
            (change * (2 * slope - change * curve) > 0)
            & np.isfinite(found)
            & (found * scale[:, group] > 0)
        )
        scale[better, group] = found[better]
        error[:, inputs] = w[:, inputs] - (units[:, inputs] * scale[:, [group]]).astype(np.float64)
    if np.array_equal(scale, values.scale):
        return None
    shape = qt.parts["scale"].shape
    parts = {**qt.parts, "scale": scales.stored(scale, stored, shape, backend)}
    return QTensor(scheme, qt.shape, qt.dtype, parts, qt.info)


def _as_stored(scale: NDArray[np.float32], dtype: str, backend: Reference) -> NDArray[np.float32]:
    """Scales rounded to `dtype`, as float32."""
    part = scales.stored(scale[:, None], dtype, (len(scale), 1), backend)
    rounded: NDArray[np.float32] = scales.decoded(part, dtype, backend)[:, 0]
    return rounded
