"""From an array to the stored parts of an integer scheme, and back.

Between a scheme, which says what is stored, and a backend, which computes on rows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..backends.reference import Reference, into
from ..checks import check_subnormals
from ..constants import DTYPE_NAMES
from ..devices import contiguous, library_of
from ..qtensor import QTensor
from . import scales
from .base import Array, Shape
from .checks import check_overflow, underflow_groups
from .layout import Layout, empty_like_parts, layout_of, packed_bits

if TYPE_CHECKING:
    from .int import Int

Float32 = NDArray[np.float32]
Integers = NDArray[Any]


def quantize(
    scheme: Int,
    x: Array,
    backend: Reference,
    scale: Float32 | None,
    zero_point: Integers | None,
    out: QTensor | None,
    searched: bool = False,
) -> QTensor:
    """The body of `Int.quantize`; `scale` and `zero_point` are checked already.

    `searched` says that the scale is not the user's, but a solver's.
    """
    layout = layout_of(scheme, x.shape)
    if x.size == 0:
        qt = _of_nothing(scheme, x, scale, zero_point)
        return qt if out is None else out.overwrite(qt)
    rows = scheme.granularity.to_rows(x)
    computed = scale is None or searched
    scale, zero_point = _by_group(scale, layout), _by_group(zero_point, layout)
    grid = (scheme.qmin, scheme.qmax, scheme.symmetric, scheme.scale_dtype, scale, zero_point)
    packed_out = None if out is None else out.packed
    if layout.packs_in_rows:
        if packed_out is not None:
            packed_out = packed_out.reshape(layout.rows, -1)
        packed, scale, zero_point = backend.quantize_affine_packed(
            rows, layout.group_size, scheme.bits, *grid, packed_out
        )
    else:  # one code per byte first, then packed along another axis than they were computed
        codes, scale, zero_point = backend.quantize_affine_packed(rows, layout.group_size, 8, *grid)
        codes = scheme.granularity.from_rows(codes.view(scheme.code_dtype), x.shape)
        if packed_out is not None:
            packed_out = packed_out.reshape(-1, layout.packed_shape[-1])
        packed = backend.pack_bits(codes.reshape(-1, x.shape[-1]), scheme.bits, packed_out)
    info = {"underflow_groups": 0}
    if computed:
        info = underflow_groups(
            scale, 1, 0.25, lambda: backend.group_range(rows, layout.group_size)
        )
    parts = parts_of(scheme, x.shape, packed, scale, zero_point, backend)
    qt = QTensor(scheme, x.shape, DTYPE_NAMES[x.dtype], parts, info)
    return qt if out is None else out.overwrite(qt, written=("packed",))


def dequantize(
    scheme: Int, qt: QTensor, dtype: str, backend: Reference, out: Array | None
) -> Array:
    """The body of `Int.dequantize`."""
    shape = qt.shape
    if math.prod(shape) == 0:
        return empty_like_parts(qt, dtype) if out is None else out
    if dtype == "float64":  # the kernels decode in float32; float64 holds every result
        check_subnormals("dtype", "float64", "float32")
        return into(out, dequantize(scheme, qt, "float32", backend, None).astype(np.float64))
    layout = layout_of(scheme, shape)
    scale = scales.for_kernels(scheme.scale(qt, backend), layout)
    zero_point = _by_group(scheme.zero_point(qt, backend), layout)
    packed = contiguous(qt.packed)
    if layout.packs_in_rows:
        x_hat = backend.dequantize_affine_packed(
            packed.reshape(layout.rows, -1), layout.cols, layout.group_size, scheme.bits,
            scheme.signed, scale, zero_point, dtype,
            None if out is None else out.reshape(layout.rows, layout.cols),
        ).reshape(shape)  # fmt: skip
    else:
        codes = backend.unpack_bits(
            packed.reshape(-1, packed.shape[-1]), scheme.bits, shape[-1], scheme.signed
        )
        rows = scheme.granularity.to_rows(codes.reshape(shape))
        x_hat = backend.dequantize_affine(rows, layout.group_size, scale, zero_point, dtype)
        x_hat = into(out, scheme.granularity.from_rows(x_hat, shape))
    check_overflow(x_hat, "dtype", backend, scale, scheme.qmax - scheme.qmin)
    return x_hat if out is None else out


def fake_quantize(
    scheme: Int,
    x: Array,
    backend: Reference,
    scale: Float32 | None,
    zero_point: Integers | None,
    out: Array | None,
) -> Array:
    """The body of `Int.fake_quantize`; `scale` and `zero_point` are checked already."""
    layout = layout_of(scheme, x.shape)
    if x.size == 0:
        return x.copy() if out is None else out
    x_hat = backend.fake_quantize_affine(
        scheme.granularity.to_rows(x), layout.group_size, scheme.qmin, scheme.qmax,
        scheme.symmetric, scheme.scale_dtype, _by_group(scale, layout),
        _by_group(zero_point, layout),
    )  # fmt: skip
    x_hat = scheme.granularity.from_rows(x_hat, x.shape)
    check_overflow(x_hat, "x", backend)
    return into(out, x_hat)


def clip_gradient(
    scheme: Int,
    dy: Array,
    x: Array,
    backend: Reference,
    scale: Float32,
    zero_point: Integers | None,
) -> Array:
    """`dy` where the code of `x` is one of the scheme's before it is clamped, and 0 elsewhere."""
    layout, granularity = layout_of(scheme, x.shape), scheme.granularity
    if x.size == 0:
        return dy.copy()
    clipped = backend.clip_gradient_affine(
        granularity.to_rows(dy), granularity.to_rows(x), layout.group_size,
        _by_group(scale, layout), _by_group(zero_point, layout), scheme.qmin, scheme.qmax,
    )  # fmt: skip
    return granularity.from_rows(clipped, x.shape)


def step_gradients(
    scheme: Int,
    dy: Array,
    x: Array,
    backend: Reference,
    scale: Float32,
    zero_point: Integers | None,
) -> tuple[Array, Array, Array]:
    """Gradients of `x`, and in their shape of scales and zero points that are learned."""
    layout, granularity = layout_of(scheme, x.shape), scheme.granularity
    if x.size == 0:
        return dy.copy(), np.zeros_like(scale), np.zeros_like(scale)
    dx, of_scale, of_zero = backend.step_gradients_affine(
        granularity.to_rows(dy), granularity.to_rows(x), layout.group_size,
        _by_group(scale, layout), _by_group(zero_point, layout), scheme.qmin, scheme.qmax,
    )  # fmt: skip
    dx = granularity.from_rows(dx, x.shape)
    return dx, of_scale.reshape(scale.shape), of_zero.reshape(scale.shape)


def _by_group(parameters: Any, layout: Layout) -> Any:
    """Stored parameters as (rows, groups); None where there are none."""
    return None if parameters is None else parameters.reshape(layout.rows, layout.groups)


def parts_of(
    scheme: Int,
    shape: Shape,
    packed: Array,
    scale: Float32,
    zero_point: Integers | None,
    backend: Reference | None = None,
) -> dict[str, Array | QTensor]:
    """The parts as they are stored, from what the kernels return."""
    layout = layout_of(scheme, shape)
    parts: dict[str, Array | QTensor] = {
        "packed": packed.reshape(layout.packed_shape),
        "scale": scales.stored(scale, scheme.scale_dtype, layout.scale_shape, backend),
    }
    if zero_point is not None:
        z = zero_point.reshape(layout.scale_shape).astype(scheme.code_dtype)
        parts["zero_point"] = packed_bits(z, scheme.bits, backend)
    return parts


def _of_nothing(
    scheme: Int, x: Array, scale: Float32 | None, zero_point: Integers | None
) -> QTensor:
    """An array without elements has no range: scale 1, and the zero point of the range [0, 0]."""
    layout, xp = layout_of(scheme, x.shape), library_of(x)
    if scale is None:
        scale = xp.ones(layout.scale_shape, np.float32)
        if not scheme.symmetric:
            zero_point = xp.full(layout.scale_shape, scheme.qmin, scheme.code_dtype)
    packed = xp.empty(layout.packed_shape, np.uint8)
    parts = parts_of(scheme, x.shape, packed, scale, zero_point)
    return QTensor(scheme, x.shape, DTYPE_NAMES[x.dtype], parts, {"underflow_groups": 0})
