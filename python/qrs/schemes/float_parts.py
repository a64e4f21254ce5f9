"""From an array to the stored parts of a float scheme, and back.

Between a scheme, which says what is stored, and a backend, which computes on rows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arrays import index_text
from ..backends.reference import Reference, into
from ..checks import check_subnormals
from ..constants import DTYPE_NAMES
from ..devices import contiguous, library_of, on_host
from ..errors import bad
from ..qtensor import QTensor
from . import scales
from .base import Array
from .checks import check_overflow, underflow_groups
from .layout import Layout, empty_like_parts, layout_of, unpacked_bits

if TYPE_CHECKING:
    from .float import Float


def quantize(
    scheme: Float, x: Array, backend: Reference, scale: Any, out: QTensor | None
) -> QTensor:
    """The body of `Float.quantize`; `scale` is checked already."""
    layout = layout_of(scheme, x.shape)
    dtype = DTYPE_NAMES[x.dtype]
    if x.size == 0:
        packed = library_of(x).empty(layout.packed_shape, np.uint8)
        parts = {"packed": packed, **_scale_of_nothing(scheme, x, layout, scale, backend)}
        qt = QTensor(scheme, x.shape, dtype, parts)
        return qt if out is None else out.overwrite(qt)
    rows = scheme.granularity.to_rows(x)
    if not scheme.saturate:
        check_fits(scheme, rows, x.shape, backend)
    computed = scale is None and scheme.scale_dtype is not None
    scale_part, known, unit = None, None, np.float32(2.0**-127 if scheme.is_mx else 1)
    if scale is not None:
        scale = scale.reshape(layout.rows, layout.groups)
    elif scheme.inner is not None:
        known = backend.group_range(rows, layout.group_size)
        scale_part, scale, unit = nested_scale(scheme, *known, layout, backend)
    packed, scale = encoded(scheme, rows, x.shape, layout, scale, backend, out)
    parts = {"packed": packed.reshape(layout.packed_shape)}
    if scale_part is not None:
        parts["scale"] = scale_part
    elif isinstance(scheme.scale_dtype, str):
        shape = layout.scale_shape
        parts["scale"] = scales.stored(scale, scheme.scale_dtype, shape, backend)
    info: dict[str, int] = {}
    if computed:
        below = unit * np.float32(scheme.float_format.smallest_subnormal / 2)
        info = underflow_groups(
            scale, unit, below, lambda: known or backend.group_range(rows, layout.group_size)
        )
    qt = QTensor(scheme, x.shape, dtype, parts, info)
    return qt if out is None else out.overwrite(qt, written=("packed",))


def encoded(
    scheme: Float,
    rows: Array,
    shape: tuple[int, ...],
    layout: Layout,
    scale: Any,
    backend: Reference,
    out: QTensor | None,
) -> tuple[Array, Any]:
    """The packed codes of an array, in rows, and its scales."""
    packed_out = None if out is None else out.packed
    scale_dtype = scheme.scale_dtype if isinstance(scheme.scale_dtype, str) else None
    if layout.packs_in_rows:
        if packed_out is not None:
            packed_out = packed_out.reshape(layout.rows, -1)
        return backend.quantize_float_packed(
            rows, layout.group_size, scheme.format, scale_dtype, scale, packed_out
        )
    # One code per element first, then packed along another axis than they were computed.
    if scale is None and scale_dtype is not None:
        lo, hi = backend.group_range(rows, layout.group_size)
        scale = backend.choose_scale_float(lo, hi, scheme.format, scale_dtype)
    codes = backend.quantize_float(rows, layout.group_size, scheme.format, scale)
    codes = scheme.granularity.from_rows(codes, shape).reshape(-1, shape[-1])
    if packed_out is not None:
        packed_out = packed_out.reshape(-1, layout.packed_shape[-1])
    if scheme.bits == 4:
        return backend.pack_bits(codes, 4, packed_out), scale
    return into(packed_out, codes.view(np.uint8)), scale


def nested_scale(
    scheme: Float, lo: Array, hi: Array, layout: Layout, backend: Reference
) -> tuple[QTensor, Any, Any]:
    """Scales that are floats with one scale: the part, the scales, and that one scale."""
    inner = scheme.inner
    assert inner is not None
    codes, top = backend.choose_scale_float_nested(lo, hi, scheme.format, inner.format)
    flat = codes.reshape(1, -1)
    scale = backend.dequantize_float(flat, flat.size, inner.format, top, "float32")
    parts = {"packed": codes.view(np.uint8).reshape(layout.scale_shape), "scale": top.reshape(())}
    part = QTensor(inner, layout.scale_shape, "float32", parts)
    return part, scale.reshape(layout.rows, layout.groups), top


def dequantize(
    scheme: Float, qt: QTensor, dtype: str, backend: Reference, out: Array | None
) -> Array:
    """The body of `Float.dequantize`."""
    shape = qt.shape
    if math.prod(shape) == 0:
        return empty_like_parts(qt, dtype) if out is None else out
    if dtype == "float64":  # the kernels decode in float32; float64 holds every result
        check_subnormals("dtype", "float64", "float32")
        return into(out, dequantize(scheme, qt, "float32", backend, None).astype(np.float64))
    layout, f = layout_of(scheme, shape), scheme.float_format
    scale = scheme.scale(qt, backend)
    scale = None if scale is None else scales.for_kernels(scale, layout)
    packed = contiguous(qt.packed)
    if layout.packs_in_rows:
        x_hat = backend.dequantize_float_packed(
            packed.reshape(layout.rows, -1), layout.cols, layout.group_size, scheme.format, scale,
            dtype, None if out is None else out.reshape(layout.rows, layout.cols),
        ).reshape(shape)  # fmt: skip
    else:
        rows = scheme.granularity.to_rows(codes_of(scheme, qt, backend))
        x_hat = backend.dequantize_float(rows, layout.group_size, scheme.format, scale, dtype)
        x_hat = into(out, scheme.granularity.from_rows(x_hat, shape))
    check_overflow(x_hat, "dtype", backend, np.float32(1) if scale is None else scale, f.largest)
    return x_hat if out is None else out


def codes_of(scheme: Float, qt: QTensor, backend: Reference) -> Array:
    """The codes as unsigned integers, one for each element, in the shape of the tensor."""
    if scheme.bits == 4:
        stored = layout_of(scheme, qt.shape).stored_shape
        return unpacked_bits(qt.packed, 4, False, stored, backend).reshape(qt.shape)
    return contiguous(qt.packed).view(scheme.float_format.code_dtype).reshape(qt.shape)


def check_fits(scheme: Float, rows: Array, shape: tuple[int, ...], backend: Reference) -> None:
    """Without `saturate`, a value that would become infinite is an error."""
    f = scheme.float_format
    lo, hi = backend.group_range(rows, rows.shape[1])
    # From half a step beyond the largest number on, values round to what would be the next one;
    # at just that half they do where the largest number is odd (ties to even).
    end = f.largest + f.epsilon * 2.0**f.max_exponent / 2
    greatest = np.maximum(on_host(hi), -on_host(lo)).astype(np.float64)
    odd = bool(f.max_code & 1)
    beyond = greatest >= end if odd else greatest > end
    if not beyond.any():
        return
    x = np.abs(on_host(rows).astype(np.float64)).reshape(shape)
    at = np.unravel_index(int(np.argmax(x >= end if odd else x > end)), shape)
    value = float(on_host(rows).reshape(shape)[at])
    found = f"{value} at {index_text(at)} overflows {f.name}"
    raise bad("x", found, value, f"at most {f.largest:.8g}, a scale, or saturate=True")


def _scale_of_nothing(
    scheme: Float, x: Array, layout: Layout, scale: Any, backend: Reference
) -> dict[str, Any]:
    """An array without elements has no range: scales of 1."""
    if scheme.scale_dtype is None:
        return {}
    ones = library_of(x).ones(layout.scale_shape, np.float32) if scale is None else scale
    if isinstance(scheme.scale_dtype, str):
        return {"scale": scales.stored(ones, scheme.scale_dtype, layout.scale_shape, backend)}
    return {"scale": scheme.scale_dtype.quantize(ones, backend)}
