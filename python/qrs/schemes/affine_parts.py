"""From an array to the stored parts of an integer scheme, and back.

Between a scheme, which says what is stored, and a backend, which computes on rows. The checks of
parameters that come from outside (calibrated or foreign scales and codes) live here too.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import backends
from ..arrays import index_text
from ..constants import DTYPES
from ..errors import ArgTypeError, ArgValueError
from ..qtensor import QTensor
from .base import Array, Shape

if TYPE_CHECKING:
    from ..backends.reference import Reference
    from .int import Int

Float32 = NDArray[np.float32]
Integers = NDArray[np.integer[Any]]


def packed_shape(shape: Shape, bits: int) -> Shape:
    """The bytes of codes of `shape`: each row of the last axis starts on a byte."""
    *rows, cols = shape or (1,)
    return (*rows, -(-cols * bits // 8))


def packed_bits(codes: Array, bits: int) -> NDArray[np.uint8]:
    """Codes of any shape, packed along the last axis; a 0-d array becomes one byte."""
    if codes.size == 0:
        return np.empty(packed_shape(codes.shape, bits), np.uint8)
    rows = np.ascontiguousarray(codes).reshape(-1, (codes.shape or (1,))[-1])
    packed = backends.of(codes).pack_bits(rows, bits)
    return packed.reshape(packed_shape(codes.shape, bits))


def unpacked(packed: NDArray[np.uint8], bits: int, cols: int, signed: bool, shape: Shape) -> Array:
    """The inverse of `packed_bits`: int8 or uint8 codes of `shape`, whose last axis is `cols`."""
    if math.prod(shape) == 0:
        return np.empty(shape, np.int8 if signed else np.uint8)
    rows = np.ascontiguousarray(packed).reshape(-1, packed.shape[-1])
    return backends.of(packed).unpack_bits(rows, bits, cols, signed).reshape(shape)


def quantize(
    scheme: Int, x: Array, backend: Reference, scale: Any, zero_point: Any, out: QTensor | None
) -> QTensor:
    """The body of `Int.quantize`."""
    granularity, shape = scheme.granularity, x.shape
    granularity.check(shape)
    if out is not None:
        out.check_as_out(scheme, x)
    if scale is not None or zero_point is not None:
        scale, zero_point = _given_qparams(scheme, shape, scale, zero_point)
    if x.size == 0:
        return _of_nothing(scheme, x, scale, zero_point)
    layout = granularity.rows(shape)
    rows = granularity.to_rows(x)
    per_row = (layout.rows, -(-layout.cols // layout.group_size))
    if scale is not None:
        scale = scale.reshape(per_row)
        zero_point = None if zero_point is None else zero_point.reshape(per_row)
    computed = scale is None
    params = (scheme.qmin, scheme.qmax, scheme.symmetric, scheme.scale_dtype, scale, zero_point)
    out_packed = None if out is None else out.packed
    if _packs_in_rows(scheme, shape):
        if out_packed is not None:
            out_packed = out_packed.reshape(layout.rows, -1)
        packed, scale, zero_point = backend.quantize_affine_packed(
            rows, layout.group_size, scheme.bits, *params, out_packed
        )
    else:
        codes, scale, zero_point = backend.quantize_affine_packed(
            rows, layout.group_size, 8, *params
        )
        codes = granularity.from_rows(codes.view(scheme.code_dtype), shape)
        if out_packed is not None:
            out_packed = out_packed.reshape(-1, out_packed.shape[-1])
        packed = backend.pack_bits(codes.reshape(-1, shape[-1]), scheme.bits, out_packed)
    info = {"underflow_groups": 0}
    if computed:
        info["underflow_groups"] = _underflow_groups(rows, layout.group_size, scale, backend)
    parts = _parts(scheme, shape, packed, scale, zero_point)
    qt = QTensor(scheme, shape, x.dtype.name, parts, info)
    return qt if out is None else out.overwrite(qt)


def dequantize(
    scheme: Int, qt: QTensor, dtype: str, backend: Reference, out: Array | None
) -> Array:
    """The body of `Int.dequantize`."""
    granularity, shape = scheme.granularity, qt.shape
    if math.prod(shape) == 0:
        return np.empty(shape, DTYPES[dtype]) if out is None else out
    if dtype == "float64":  # the kernels decode in float32; float64 holds every result
        x_hat = dequantize(scheme, qt, "float32", backend, None)
        return _copied(x_hat.astype(np.float64), out)
    layout = granularity.rows(shape)
    per_row = (layout.rows, -(-layout.cols // layout.group_size))
    scale = qt.scale.reshape(per_row)
    zero_point = qt.zero_point
    if zero_point is not None:
        zero_point = zero_point.reshape(per_row)
    if _packs_in_rows(scheme, shape):
        packed = np.ascontiguousarray(qt.packed).reshape(layout.rows, -1)
        out_rows = None if out is None else out.reshape(layout.rows, layout.cols)
        x_hat = backend.dequantize_affine_packed(
            packed, layout.cols, layout.group_size, scheme.bits, scheme.signed,
            scale, zero_point, dtype, out_rows,
        ).reshape(shape)  # fmt: skip
    else:
        packed = np.ascontiguousarray(qt.packed).reshape(-1, qt.packed.shape[-1])
        codes = backend.unpack_bits(packed, scheme.bits, shape[-1], scheme.signed)
        rows = backend.dequantize_affine(
            granularity.to_rows(codes.reshape(shape)), layout.group_size, scale, zero_point, dtype
        )
        x_hat = _copied(granularity.from_rows(rows, shape), out)
    _check_overflow(scheme, scale, x_hat, dtype)
    return x_hat if out is None else out


def from_codes(scheme: Int, shape: Shape, codes: Any, scale: Any, zero_point: Any) -> QTensor:
    """The body of `Int.from_codes`: nothing is trusted."""
    scheme.granularity.check(shape)
    codes = _integers(codes, "codes", scheme, shape)
    if scale is None:
        raise ArgValueError("scale: got None, expected the stored scale", arg="scale")
    scale, zero_point = _given_qparams(scheme, shape, scale, zero_point, zero_scales=True)
    _check_zero_scales(scheme, codes, scale, zero_point)
    packed = packed_bits(codes, scheme.bits)
    return QTensor(scheme, shape, "float32", _parts(scheme, shape, packed, scale, zero_point))


def check_parts(scheme: Int, qt: QTensor) -> None:
    """Raise where stored scales are not legal."""
    _check_scale(scheme, qt.scale, qt.zero_point)
    if qt.scale.size and not qt.scale.all():
        _check_zero_scales(scheme, qt.codes, qt.scale, qt.zero_point)


def _packs_in_rows(scheme: Int, shape: Shape) -> bool:
    """Whether the rows of the kernels, packed, are the bytes that are stored.

    They are if no axis has to move and either a kernel row is a row of the last axis, or those
    rows end on whole bytes, so that packing several of them in one go leaves no gaps.
    """
    layout = scheme.granularity.rows(shape)
    in_order = layout.rows == 1 or scheme.granularity.keeps_order(shape)
    return in_order and (layout.cols == shape[-1] or shape[-1] * scheme.bits % 8 == 0)


def _parts(
    scheme: Int, shape: Shape, packed: Array, scale: Float32, zero_point: Integers | None
) -> dict[str, Array | QTensor]:
    scale_shape = scheme.granularity.scale_shape(shape)
    scale = scale.reshape(scale_shape)
    if scheme.scale_dtype != "float32":
        scale = scale.astype(DTYPES[scheme.scale_dtype])
    parts: dict[str, Array | QTensor] = {
        "packed": packed.reshape(packed_shape(shape, scheme.bits)),
        "scale": scale,
    }
    if zero_point is not None:
        z = zero_point.reshape(scale_shape).astype(scheme.code_dtype)
        parts["zero_point"] = packed_bits(z, scheme.bits)
    return parts


def _of_nothing(
    scheme: Int, x: Array, scale: Float32 | None, zero_point: Integers | None
) -> QTensor:
    """An array without elements has no range: scale 1, and the zero point of the range [0, 0]."""
    scale_shape = scheme.granularity.scale_shape(x.shape)
    if scale is None:
        scale = np.ones(scale_shape, np.float32)
        if not scheme.symmetric:
            zero_point = np.full(scale_shape, scheme.qmin, scheme.code_dtype)
    packed = np.empty(packed_shape(x.shape, scheme.bits), np.uint8)
    parts = _parts(scheme, x.shape, packed, scale, zero_point)
    return QTensor(scheme, x.shape, x.dtype.name, parts, {"underflow_groups": 0})


def _underflow_groups(rows: Array, group_size: int, scale: Float32, backend: Reference) -> int:
    """Groups that decode to zeros although they are not zeros: their scale came out as 0.

    A scale of 0 becomes 1 (contract, rule 4), so only scales of exactly 1 need a second look.
    """
    if not (scale == 1).any():
        return 0
    lo, hi = backend.group_range(rows, group_size)
    tiny = (lo > -0.25) & (hi < 0.25) & ((lo < 0) | (hi > 0))
    return int(np.count_nonzero(tiny & (scale == 1)))


def _copied(x_hat: Array, out: Array | None) -> Array:
    if out is None:
        return x_hat
    out[...] = x_hat
    return out


def _check_overflow(scheme: Int, scale: Float32, x_hat: Array, dtype: str) -> None:
    if dtype == "float32":
        return
    greatest = np.abs(scale).max() * np.float32(scheme.qmax - scheme.qmin)
    if greatest < 65504 or not np.isinf(x_hat).any():
        return
    at = np.unravel_index(int(np.argmax(np.isinf(x_hat))), x_hat.shape)
    raise ArgValueError(
        f"dtype: the decoded value at {index_text(at)} overflows {dtype}, expected float32",
        arg="dtype",
        value=dtype,
        expected="float32",
    )


def _given_qparams(
    scheme: Int, shape: Shape, scale: Any, zero_point: Any, zero_scales: bool = False
) -> tuple[Float32, Integers | None]:
    """`scale=` and `zero_point=` from outside, checked; the scale rounded to its stored dtype."""
    expected = scheme.granularity.scale_shape(shape)
    if scale is None:
        raise ArgValueError(
            "zero_point: given without scale, expected both", arg="zero_point", value=zero_point
        )
    if scheme.symmetric and zero_point is not None:
        raise ArgValueError(
            f"zero_point: given for the symmetric scheme {scheme}, expected None",
            arg="zero_point",
            value=zero_point,
            expected="None",
        )
    if not scheme.symmetric and zero_point is None:
        raise ArgValueError(
            f"zero_point: got None with a scale, expected one per scale for {scheme}",
            arg="zero_point",
            expected=f"shape {expected}",
        )
    given = np.asarray(scale)
    if given.dtype not in DTYPES.values():
        raise ArgTypeError(
            f"scale: got dtype {given.dtype}, expected one of: {', '.join(DTYPES)}",
            arg="scale",
            value=given.dtype,
            expected=", ".join(DTYPES),
        )
    _check_shape(given, "scale", expected)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        stored = given.astype(DTYPES[scheme.scale_dtype]).astype(np.float32)
    if (np.isinf(stored) & np.isfinite(given)).any():
        at = np.unravel_index(int(np.argmax(np.isinf(stored))), stored.shape)
        raise ArgValueError(
            f"scale: {given[at]} at {index_text(at)} overflows scale_dtype {scheme.scale_dtype}",
            arg="scale",
            value=given[at],
            expected=scheme.scale_dtype,
        )
    z = None if zero_point is None else _integers(zero_point, "zero_point", scheme, expected)
    _check_scale(scheme, stored, z)
    if not zero_scales and not stored.all():
        at = np.unravel_index(int(np.argmin(stored != 0)), stored.shape)
        raise _scale_error(f"0 at {index_text(at)}", 0.0, "scales other than 0")
    return stored, z


def _check_scale(scheme: Int, scale: Float32, zero_point: Integers | None) -> None:
    bad = ~np.isfinite(scale)
    if bad.any():
        at = np.unravel_index(int(np.argmax(bad)), scale.shape)
        raise _scale_error(f"{scale[at]} at {index_text(at)}", scale[at], "finite values")
    if zero_point is not None and (scale < 0).any():
        at = np.unravel_index(int(np.argmax(scale < 0)), scale.shape)
        raise _scale_error(
            f"{scale[at]} at {index_text(at)} beside a zero point", scale[at], "positive values"
        )
    z = np.int32(0) if zero_point is None else zero_point.astype(np.int32)
    reach = np.maximum(np.abs(scheme.qmin - z), np.abs(scheme.qmax - z)).astype(np.float32)
    with np.errstate(over="ignore"):
        bad = np.isinf(reach * scale)
    if bad.any():
        at = np.unravel_index(int(np.argmax(bad)), scale.shape)
        raise _scale_error(
            f"{scale[at]} at {index_text(at)} decodes the extreme codes to infinity",
            scale[at],
            "smaller values",
        )


def _scale_error(found: str, value: Any, expected: str) -> ArgValueError:
    return ArgValueError(
        f"scale: got {found}, expected {expected}", arg="scale", value=value, expected=expected
    )


def _check_zero_scales(
    scheme: Int, codes: Array, scale: Float32, zero_point: Integers | None
) -> None:
    """A scale of 0 is legal where every code says 0 anyway."""
    if scale.all() or codes.size == 0:
        return
    layout = scheme.granularity.rows(codes.shape)
    per_row = (layout.rows, -(-layout.cols // layout.group_size))
    rows = scheme.granularity.to_rows(codes).astype(np.int32)
    where = np.repeat(scale.reshape(per_row) == 0, layout.group_size, axis=1)[:, : layout.cols]
    if zero_point is not None:
        z = zero_point.reshape(per_row).astype(np.int32)
        rows = rows - np.repeat(z, layout.group_size, axis=1)[:, : layout.cols]
    if (where & (rows != 0)).any():
        at = np.unravel_index(int(np.argmin(scale != 0)), scale.shape)
        raise _scale_error(
            f"0 at {index_text(at)} where codes differ from the zero point",
            0.0,
            "scales other than 0",
        )


def _check_shape(array: Array, arg: str, expected: Shape) -> None:
    if array.shape != expected:
        raise ArgValueError(
            f"{arg}: got shape {array.shape}, expected {expected}",
            arg=arg,
            value=array.shape,
            expected=expected,
        )


def _integers(values: Any, arg: str, scheme: Int, expected: Shape) -> Integers:
    """Codes or zero points from outside: integers in [qmin, qmax] of the expected shape."""
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise ArgTypeError(
            f"{arg}: got dtype {array.dtype}, expected integers",
            arg=arg,
            value=array.dtype,
            expected="integers",
        )
    _check_shape(array, arg, expected)
    bad = (array < scheme.qmin) | (array > scheme.qmax)
    if bad.any():
        at = np.unravel_index(int(np.argmax(bad)), array.shape)
        span = f"[{scheme.qmin}, {scheme.qmax}]"
        raise ArgValueError(
            f"{arg}: {array[at]} at {index_text(at)} is out of the range {span} of {scheme}",
            arg=arg,
            value=int(array[at]),
            expected=span,
        )
    return array.astype(scheme.code_dtype)
