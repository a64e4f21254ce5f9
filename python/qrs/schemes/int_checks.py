"""Checks of what comes from outside: calibrated or foreign scales, zero points and codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import plain
from ..devices import on_host
from ..errors import ArgTypeError, bad
from ..qtensor import QTensor
from . import scales
from .base import Shape
from .checks import check_padding, check_reach, check_shape, refuse_first
from .layout import layout_of, unpacked_bits

if TYPE_CHECKING:
    from .int import Int

Float32 = NDArray[np.float32]
Integers = NDArray[Any]

BLOCK = 1 << 22
"""Codes that are unpacked at once to look at them."""


def given_qparams(
    scheme: Int, expected: Shape, scale: Any, zero_point: Any
) -> tuple[Float32, Integers | None]:
    """`scale=` and `zero_point=` of the shape `expected`, checked.

    The scale comes back rounded to its stored dtype, as float32. Zeros pass: see
    `check_nonzero` and `check_zero_scales` in `checks`.
    """
    if scheme.symmetric and zero_point is not None:
        raise bad("zero_point", f"given for the symmetric {scheme}", zero_point, "None")
    if scale is not None and not scheme.symmetric and zero_point is None:
        raise bad("zero_point", f"missing beside scale for {scheme}", None, f"shape {expected}")
    stored = scales.given(scale, expected, scheme.scale_dtype)
    z = None if zero_point is None else given_integers(scheme, "zero_point", expected, zero_point)
    check_scale(scheme, stored, z)
    return stored, z


def given_integers(scheme: Int, arg: str, expected: Shape, values: Any) -> Integers:
    """Codes or zero points of the shape `expected`: integers in [qmin, qmax]."""
    array = on_host(plain(values, arg, integers=True))
    if array.size == 0:
        array = array.astype(scheme.code_dtype)  # an empty list has no dtype of its own
    if array.dtype.kind not in "iu":
        raise bad(arg, f"got dtype {array.dtype}", array.dtype, "integers", ArgTypeError)
    check_shape(arg, array, expected)
    wrong = (array < scheme.qmin) | (array > scheme.qmax)
    refuse_first(wrong, array, arg, f"[{scheme.qmin}, {scheme.qmax}] for {scheme}")
    return array.astype(scheme.code_dtype, order="C")


def check_scale(scheme: Int, scale: Float32, zero_point: Integers | None) -> None:
    """Scales are finite, positive beside a zero point, and decode no code to infinity."""
    if zero_point is not None:
        refuse_first(scale < 0, scale, "scale", "no negative value beside a zero point")
    z = np.int32(0) if zero_point is None else zero_point.astype(np.int32)
    reach = np.maximum(np.abs(scheme.qmin - z), np.abs(scheme.qmax - z))
    check_reach(scale, reach.astype(np.float32))


def check_codes(scheme: Int, qt: QTensor) -> None:
    """Stored codes are those that the scheme writes, and the bits behind a row are zeros."""
    if not qt.size:
        return
    check_padding(qt)
    if not scheme.symmetric or scheme.full_range:
        return  # every pattern of bits is a code
    layout = layout_of(scheme, qt.shape)
    rows = qt.packed.reshape(-1, layout.packed_shape[-1])
    cols = layout.stored_shape[-1]
    step = max(1, BLOCK // max(cols, 1))
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        codes = unpacked_bits(block, scheme.bits, scheme.signed, (len(block), cols))
        if codes.size and codes.min() < scheme.qmin:
            row = start + int(np.argmax((codes < scheme.qmin).any(axis=1)))
            found = f"code {scheme.qmin - 1} in row {row}"
            raise bad("packed", found, scheme.qmin - 1, f"[{scheme.qmin}, {scheme.qmax}]")
