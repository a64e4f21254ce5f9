"""Lower tr(E H E^T) further, from codes that are there: coordinate descent and better scales.

Both are monotone, up to the rounding of float64: an input takes another code, and a group another
scale, only where the objective of what they decode to, in float32, falls. Behdin et al.,
"QuantEase", 2023, for the first; scales in closed form, a group after the other, for the second.
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

ROUNDING = 1e-12
"""Gains below this, of the sum of their parts' magnitudes, may be none."""


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
    <E H, C> / <C H, C>; it is rounded to how scales are stored, and taken where what is decoded
    with it, changed by D, leaves less: 2 <E H, D> - <D H, D> > 0.
    """
    scheme = qt.scheme
    stored = scheme.scale_dtype
    if not isinstance(stored, str) or qt.parts["scale"].size != values.scale.size:
        return None  # quantized, or shared by several rows
    units, error = values.units(codes), w.astype(np.float64) - values.decoded(codes)
    scale = values.scale.copy()
    for group in range(scale.shape[1]):
        inputs = np.flatnonzero(values.group_of[0] == group)
        c, before = np.ascontiguousarray(units[:, inputs]), scale[:, [group]]
        pull = backend.matmul_float64(error, np.ascontiguousarray(h[:, inputs]))
        own = np.ascontiguousarray(h[np.ix_(inputs, inputs)])
        found = _as_stored(_best_scale(c, before, pull, own, backend), stored, backend)
        found = np.where(np.isfinite(found) & (np.sign(found) == np.sign(before)), found, before)
        change = (c * found).astype(np.float64) - c * before
        gains = change * (2 * pull - backend.matmul_float64(change, own))
        # Of two scales that differ by rounding alone neither is better.
        better = gains.sum(axis=1) > ROUNDING * np.abs(gains).sum(axis=1)
        scale[better, group] = found[better, 0]
        error[better[:, None] & (values.group_of == group)] -= change[better].reshape(-1)
    if np.array_equal(scale, values.scale):
        return None
    shape = qt.parts["scale"].shape
    parts = {**qt.parts, "scale": scales.stored(scale, stored, shape, backend)}
    return QTensor(scheme, qt.shape, qt.dtype, parts, qt.info)


def _best_scale(
    c: NDArray[np.float32],
    scale: NDArray[np.float32],
    pull: Float64,
    h: Float64,
    backend: Reference,
) -> NDArray[np.float32]:
    """Scales (n, 1) of least error for levels `c` (n, inputs) of a group, as float32."""
    wide = c.astype(np.float64)
    slope = np.sum(pull * wide, axis=1, keepdims=True)
    curve = np.sum(backend.matmul_float64(wide, h) * wide, axis=1, keepdims=True)
    step = np.divide(slope, curve, out=np.zeros_like(slope), where=curve > 0)
    with np.errstate(over="ignore", under="ignore"):
        found: NDArray[np.float32] = (scale + step).astype(np.float32)
    return found


def _as_stored(scale: NDArray[np.float32], dtype: str, backend: Reference) -> NDArray[np.float32]:
    """Scales (n, 1) rounded to `dtype`, as float32."""
    part = scales.stored(scale, dtype, scale.shape, backend)
    rounded: NDArray[np.float32] = scales.decoded(part, dtype, backend)
    return rounded
