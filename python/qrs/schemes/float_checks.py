"""Checks of what comes from outside for float schemes: foreign scales and codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import backends
from ..arrays import plain
from ..errors import ArgTypeError, bad
from ..qtensor import QTensor
from . import scales
from .base import Array, Shape
from .checks import check_padding, check_reach, check_shape, check_zero_scales, refuse_first
from .float_parts import codes_of
from .layout import layout_of, packed_bits

if TYPE_CHECKING:
    from .float import Float

Float32 = NDArray[np.float32]


def given_scale(scheme: Float, shape: Shape, scale: Any) -> Float32:
    """`scale=` for an array of `shape`, checked, rounded to what will be stored, as float32."""
    if not isinstance(scheme.scale_dtype, str):
        why = "which has none" if scheme.scale_dtype is None else "whose scales are quantized"
        raise bad("scale", f"given for {scheme}, {why}", type(scale), "None")
    given = scales.given(scale, layout_of(scheme, shape).scale_shape, scheme.scale_dtype)
    check_reach(given, np.float32(scheme.float_format.largest))
    return given


def from_codes(scheme: Float, shape: Shape, codes: Any, scale: Any, zero_point: Any) -> QTensor:
    """The body of `Float.from_codes`."""
    if zero_point is not None:
        raise bad("zero_point", f"given for {scheme}, which has none", zero_point, "None")
    layout = layout_of(scheme, shape)
    bits = given_codes(scheme, shape, codes)
    packed = packed_bits(bits.reshape(layout.stored_shape), scheme.bits)
    parts: dict[str, Any] = {"packed": packed}
    if scheme.inner is not None:
        expected = f"a QTensor of {scheme.inner} and shape {layout.scale_shape}"
        if not isinstance(scale, QTensor):
            found = f"got {type(scale).__name__}"
            raise bad("scale", found, type(scale), expected, ArgTypeError)
        if (scale.scheme, scale.shape) != (scheme.inner, layout.scale_shape):
            raise bad("scale", f"got {scale!r}", repr(scale), expected)
        parts["scale"] = scale
    elif scale is not None or scheme.scale_dtype is not None:
        given = given_scale(scheme, shape, scale)
        parts["scale"] = scales.stored(given, str(scheme.scale_dtype), layout.scale_shape)
    qt = QTensor(scheme, shape, "float32", parts)
    check_parts(scheme, qt)
    return qt


def given_codes(scheme: Float, shape: Shape, codes: Any) -> Array:
    """`codes=` as unsigned integers: an array of the format's dtype, or the integers."""
    f = scheme.float_format
    array = codes if isinstance(codes, np.ndarray) else plain(codes, "codes", integers=True)
    check_shape("codes", array, shape)
    if array.dtype == f.dtype:
        return np.ascontiguousarray(array).view(f.code_dtype)
    if array.size == 0:
        return array.astype(f.code_dtype)
    if array.dtype.kind not in "iu":
        expected = f"{f.dtype.name}, or integers: its bits"
        raise bad("codes", f"got dtype {array.dtype}", array.dtype, expected, ArgTypeError)
    end = 1 << f.bits
    refuse_first((array < 0) | (array >= end), array, "codes", f"[0, {end - 1}] for {scheme}")
    return array.astype(f.code_dtype, order="C")


def check_parts(scheme: Float, qt: QTensor) -> None:
    """Codes are finite numbers with zeros behind them, and scales decode them to finite ones."""
    if not qt.size:
        return
    check_padding(qt)
    f = scheme.float_format
    codes = codes_of(scheme, qt, backends.of(qt.packed))
    wrong = (codes & (f.sign_bit - 1)) > f.max_code
    refuse_first(wrong, codes, "packed", f"codes of finite numbers: at most {f.max_code}")
    if scheme.scale_dtype is None:
        return
    stored = qt.parts["scale"]
    if isinstance(stored, QTensor):
        stored.scheme.check_parts(stored)
    elif scheme.scale_dtype == "e8m0":
        refuse_first(stored == scales.E8M0_NAN, stored, "scale", "exponents: at most 254")
    check_reach(qt.scale, np.float32(f.largest))
    check_zero_scales(qt)
