"""Checks of what comes from outside: calibrated or foreign scales, zero points and codes.

And the words for what a kernel found wrong in an array.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import index_text, nonfinite_error, plain
from ..backends.reference import Reference
from ..constants import DTYPES
from ..errors import ArgTypeError, KernelFault, QrsError, bad
from ..qtensor import QTensor
from .affine_parts import layout_of, unpacked_bits
from .base import Array, Shape

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
    `check_nonzero` and `check_zero_scales`.
    """
    if scale is None:
        raise bad("scale", "got None", None, f"one of shape {expected}")
    if scheme.symmetric and zero_point is not None:
        raise bad("zero_point", f"given for the symmetric {scheme}", zero_point, "None")
    if not scheme.symmetric and zero_point is None:
        raise bad("zero_point", f"missing beside scale for {scheme}", None, f"shape {expected}")
    given = plain(scale, "scale")
    if given.dtype not in DTYPES.values():
        raise bad("scale", f"got dtype {given.dtype}", given.dtype, ", ".join(DTYPES), ArgTypeError)
    _check_shape("scale", given, expected)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        stored = given.astype(np.float32, order="C")  # one rounding more for float64: rule 1
        stored = stored.astype(DTYPES[scheme.scale_dtype]).astype(np.float32)
    _refuse_first(
        np.isinf(stored) & np.isfinite(given), given, "scale", f"within {scheme.scale_dtype}"
    )
    z = None if zero_point is None else given_integers(scheme, "zero_point", expected, zero_point)
    check_scale(scheme, stored, z)
    return stored, z


def given_integers(scheme: Int, arg: str, expected: Shape, values: Any) -> Integers:
    """Codes or zero points of the shape `expected`: integers in [qmin, qmax]."""
    array = plain(values, arg, integers=True)
    if array.size == 0:
        array = array.astype(scheme.code_dtype)  # an empty list has no dtype of its own
    if array.dtype.kind not in "iu":
        raise bad(arg, f"got dtype {array.dtype}", array.dtype, "integers", ArgTypeError)
    _check_shape(arg, array, expected)
    wrong = (array < scheme.qmin) | (array > scheme.qmax)
    _refuse_first(wrong, array, arg, f"[{scheme.qmin}, {scheme.qmax}] for {scheme}")
    return array.astype(scheme.code_dtype, order="C")


def check_scale(scheme: Int, scale: Float32, zero_point: Integers | None) -> None:
    """Scales are finite, positive beside a zero point, and decode no code to infinity."""
    _refuse_first(~np.isfinite(scale), scale, "scale", "finite values")
    if zero_point is not None:
        _refuse_first(scale < 0, scale, "scale", "no negative value beside a zero point")
    z = np.int32(0) if zero_point is None else zero_point.astype(np.int32)
    reach = np.maximum(np.abs(scheme.qmin - z), np.abs(scheme.qmax - z)).astype(np.float32)
    with np.errstate(over="ignore"):
        overflow = np.isinf(reach * scale)
    _refuse_first(overflow, scale, "scale", "values that decode every code to a finite number")


def check_nonzero(scale: Float32) -> None:
    """Nothing can be divided by a scale of 0."""
    _refuse_first(scale == 0, scale, "scale", "values other than 0")


def check_zero_scales(scheme: Int, qt: QTensor) -> None:
    """A scale of 0 is legal where every code says 0 anyway: q = zero_point."""
    zero = qt.scale == 0
    if not zero.any():
        return
    # With the scale 1 where it was 0, and 0 elsewhere, exactly the codes in question decode.
    ones = QTensor(scheme, qt.shape, qt.dtype, {**qt.parts, "scale": np.asarray(zero, np.float32)})
    if ones.dequantize().any():
        _refuse_first(zero, qt.scale, "scale", "other than 0 where codes differ from zero_point")


def check_codes(scheme: Int, qt: QTensor) -> None:
    """Stored codes are those that the scheme writes, and the bits behind a row are zeros."""
    if not qt.size:
        return
    layout = layout_of(scheme, qt.shape)
    rows = qt.packed.reshape(-1, layout.packed_shape[-1])
    cols = layout.stored_shape[-1]
    used = cols * scheme.bits % 8
    if used and (rows[:, -1] >> used).any():
        at = int(np.argmax(rows[:, -1] >> used != 0))
        found = f"bits behind the last code of row {at}"
        raise bad("packed", found, int(rows[at, -1]), "zeros")
    if not scheme.symmetric or scheme.full_range:
        return  # every pattern of bits is a code
    step = max(1, BLOCK // max(cols, 1))
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        codes = unpacked_bits(block, scheme.bits, scheme.signed, (len(block), cols))
        if codes.size and codes.min() < scheme.qmin:
            row = start + int(np.argmax((codes < scheme.qmin).any(axis=1)))
            found = f"code {scheme.qmin - 1} in row {row}"
            raise bad("packed", found, scheme.qmin - 1, f"[{scheme.qmin}, {scheme.qmax}]")


def explain(scheme: Int, fault: KernelFault, x: Array) -> QrsError:
    """The error for the user behind a kernel's fault, found by looking at the array itself."""
    if fault.reason == "nonfinite":
        return nonfinite_error(x)
    layout = layout_of(scheme, x.shape)
    row, group = divmod(fault.group, layout.groups)
    columns = slice(group * layout.group_size, (group + 1) * layout.group_size)
    values = scheme.granularity.to_rows(x)[row : row + 1, columns]
    lo, hi = Reference().group_range(values, layout.group_size)
    where = "the tensor"
    if math.prod(layout.scale_shape) > 1:
        where = f"group {index_text(np.unravel_index(fault.group, layout.scale_shape))}"
    span = f"its values span [{lo.item():.6g}, {hi.item():.6g}]"
    if fault.reason == "scale_overflow":
        grid = (scheme.qmin, scheme.qmax, scheme.symmetric, "float32")
        scale, _ = Reference().choose_qparams_affine(lo, hi, *grid)
        found = f"{scheme.scale_dtype} overflows in {where}: {span}, which needs a scale of"
        found = f"{found} {scale.item():.6g}"
        return bad("scale_dtype", found, scheme.scale_dtype, "a wider scale_dtype")
    found = f"the extreme codes of {where} would decode to infinity: {span}"
    return bad("x", found, max(hi, -lo).item(), "values further from the end of float32")


def _check_shape(arg: str, array: Array, expected: Shape) -> None:
    if array.shape != expected:
        raise bad(arg, f"got shape {array.shape}", array.shape, expected)


def _refuse_first(wrong: Any, values: Array, arg: str, expected: str) -> None:
    """Raise for the first index where `wrong` is true."""
    if not np.any(wrong):
        return
    at = np.unravel_index(int(np.argmax(wrong)), values.shape)
    found = values[at].item() if values.dtype.kind in "iu" else float(values[at])
    raise bad(arg, f"{found} at {index_text(at)}", found, expected)
