"""Checks of what comes from outside: calibrated or foreign scales, zero points and codes.

And the words for what a kernel found wrong in an array.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import index_text, nonfinite_error, plain
from ..constants import DTYPES
from ..errors import ArgTypeError, ArgValueError, KernelFault
from ..qtensor import QTensor
from .base import Array, Shape

if TYPE_CHECKING:
    from .int import Int

Float32 = NDArray[np.float32]
Integers = NDArray[Any]


def given_qparams(
    scheme: Int, expected: Shape, scale: Any, zero_point: Any
) -> tuple[Float32, Integers | None]:
    """`scale=` and `zero_point=` of the shape `expected`, checked.

    The scale comes back rounded to its stored dtype, as float32. Zeros pass: see
    `check_nonzero` and `check_zero_scales`.
    """
    if scale is None:
        raise _error("scale", "got None", None, f"one of shape {expected}")
    if scheme.symmetric and zero_point is not None:
        raise _error("zero_point", f"given for the symmetric {scheme}", zero_point, "None")
    if not scheme.symmetric and zero_point is None:
        raise _error("zero_point", f"missing beside scale for {scheme}", None, f"shape {expected}")
    given = plain(scale, "scale")
    if given.dtype not in DTYPES.values():
        raise _error("scale", f"got dtype {given.dtype}", given.dtype, ", ".join(DTYPES), True)
    _check_shape("scale", given, expected)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        stored = given.astype(DTYPES[scheme.scale_dtype], order="C").astype(np.float32)
    _refuse_first(
        np.isinf(stored) & np.isfinite(given), given, "scale", f"within {scheme.scale_dtype}"
    )
    z = None if zero_point is None else given_integers(scheme, "zero_point", expected, zero_point)
    check_scale(scheme, stored, z)
    return stored, z


def given_integers(scheme: Int, arg: str, expected: Shape, values: Any) -> Integers:
    """Codes or zero points of the shape `expected`: integers in [qmin, qmax]."""
    array = plain(values, arg, integers=True)
    if array.dtype.kind not in "iu":
        raise _error(arg, f"got dtype {array.dtype}", array.dtype, "integers", True)
    _check_shape(arg, array, expected)
    bad = (array < scheme.qmin) | (array > scheme.qmax)
    _refuse_first(bad, array, arg, f"[{scheme.qmin}, {scheme.qmax}] for {scheme}")
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


def explain(scheme: Int, fault: KernelFault, x: Array) -> ArgValueError:
    """The error for the user behind a kernel's fault, found by looking at the array itself."""
    if fault.reason == "nonfinite":
        return nonfinite_error(x)
    layout = scheme.granularity.rows(x.shape)
    groups = -(-layout.cols // layout.group_size)
    row, group = divmod(fault.group, groups)
    start = group * layout.group_size
    values = scheme.granularity.to_rows(x)[row, start : start + layout.group_size]
    lo, hi = min(0.0, float(values.min())), max(0.0, float(values.max()))
    scale_shape = scheme.granularity.scale_shape(x.shape)
    where = "the tensor"
    if math.prod(scale_shape) > 1:
        where = f"group {index_text(np.unravel_index(fault.group, scale_shape))}"
    span = f"its values span [{lo:.6g}, {hi:.6g}]"
    if fault.reason == "scale_overflow":
        n = scheme.qmax if scheme.symmetric else scheme.qmax - scheme.qmin
        need = (max(hi, -lo) if scheme.symmetric else hi - lo) / n
        return ArgValueError(
            f"scale_dtype: {scheme.scale_dtype} overflows in {where}: {span}, "
            f"which needs a scale of {need:.6g}; expected a wider scale_dtype",
            arg="scale_dtype",
            value=scheme.scale_dtype,
            expected="a wider scale_dtype",
        )
    return ArgValueError(
        f"x: the extreme codes of {where} would decode to infinity: {span}; "
        "expected values further from the end of float32",
        arg="x",
        value=max(hi, -lo),
        expected="values further from the end of float32",
    )


def _check_shape(arg: str, array: Array, expected: Shape) -> None:
    if array.shape != expected:
        raise _error(arg, f"got shape {array.shape}", array.shape, str(expected))


def _refuse_first(bad: Any, values: Array, arg: str, expected: str) -> None:
    """Raise for the first index where `bad` is true."""
    if not np.any(bad):
        return
    at = np.unravel_index(int(np.argmax(bad)), values.shape)
    found = values[at].item() if values.dtype.kind in "iu" else float(values[at])
    raise _error(arg, f"{found} at {index_text(at)}", found, expected)


def _error(
    arg: str, found: str, value: Any, expected: str, of_type: bool = False
) -> ArgTypeError | ArgValueError:
    kind = ArgTypeError if of_type else ArgValueError
    return kind(f"{arg}: {found}, expected {expected}", arg=arg, value=value, expected=expected)
