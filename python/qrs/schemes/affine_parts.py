"""From an array to the stored parts of an integer scheme, and back.

Between a scheme, which says what is stored, and a backend, which computes on rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import backends
from ..arrays import index_text
from ..backends.reference import Reference, into
from ..checks import check_subnormals
from ..constants import DTYPE_NAMES, DTYPES
from ..errors import ArgValueError
from ..qtensor import QTensor
from .base import Array, Shape

if TYPE_CHECKING:
    from .int import Int

Float32 = NDArray[np.float32]
Integers = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Layout:
    """How an array of one shape lies in the kernels and in the parts of a scheme."""

    rows: int
    cols: int
    group_size: int
    groups: int
    stored_shape: Shape
    scale_shape: Shape
    packed_shape: Shape
    packs_in_rows: bool
    """Whether the rows of the kernels, packed, are the bytes that are stored."""


@lru_cache(maxsize=1024)
def layout_of(scheme: Int, shape: Shape) -> Layout:
    """The layout of `shape`; raises `ArgValueError` where the granularity does not fit it."""
    granularity = scheme.granularity
    granularity.check(shape)
    view = granularity.rows(shape)
    # Kernel rows are stored rows if no axis has to move and either each is a row of the last
    # axis, or several that end on whole bytes, so that packing them in one go leaves no gaps.
    in_order = view.rows == 1 or granularity.keeps_order(shape)
    stored_shape = granularity.stored_shape(shape)
    last = stored_shape[-1]
    whole_bytes = view.cols > last and last * scheme.bits % 8 == 0
    packs_in_rows = in_order and (view.cols == last or whole_bytes)
    return Layout(
        view.rows,
        view.cols,
        view.group_size,
        view.groups,
        stored_shape,
        granularity.scale_shape(shape),
        packed_shape(stored_shape, scheme.bits),
        packs_in_rows,
    )


def packed_shape(shape: Shape, bits: int) -> Shape:
    """The bytes of codes of `shape`: each row of the last axis starts on a byte.

    >>> packed_shape((3, 5), 4), packed_shape((), 4)
    ((3, 3), (1,))
    """
    *rows, cols = shape or (1,)
    return (*rows, -(-cols * bits // 8))


def packed_bits(codes: Array, bits: int, backend: Reference | None = None) -> NDArray[np.uint8]:
    """Codes of any shape, packed along the last axis; a 0-d array becomes one byte."""
    shape = packed_shape(codes.shape, bits)
    if codes.size == 0:
        return np.empty(shape, np.uint8)
    if bits == 8:
        return np.ascontiguousarray(codes).view(np.uint8).reshape(shape)
    rows = np.ascontiguousarray(codes).reshape(-1, (codes.shape or (1,))[-1])
    return (backend or backends.of(codes)).pack_bits(rows, bits).reshape(shape)


def unpacked_bits(
    packed: NDArray[np.uint8],
    bits: int,
    signed: bool,
    shape: Shape,
    backend: Reference | None = None,
) -> Array:
    """The inverse of `packed_bits`: int8 or uint8 codes of `shape`."""
    if math.prod(shape) == 0:
        return np.empty(shape, np.int8 if signed else np.uint8)
    rows = np.ascontiguousarray(packed).reshape(-1, packed.shape[-1])
    backend = backend or backends.of(packed)
    codes = backend.unpack_bits(rows, bits, (shape or (1,))[-1], signed)
    return codes.reshape(shape)


def quantize(
    scheme: Int,
    x: Array,
    backend: Reference,
    scale: Float32 | None,
    zero_point: Integers | None,
    out: QTensor | None,
) -> QTensor:
    """The body of `Int.quantize`; `scale` and `zero_point` are checked already."""
    layout = layout_of(scheme, x.shape)
    if x.size == 0:
        qt = _of_nothing(scheme, x, scale, zero_point)
        return qt if out is None else out.overwrite(qt)
    rows = scheme.granularity.to_rows(x)
    computed = scale is None
    if scale is not None:
        scale = scale.reshape(layout.rows, layout.groups)
    if zero_point is not None:
        zero_point = zero_point.reshape(layout.rows, layout.groups)
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
    underflows = _underflow_groups(rows, layout.group_size, scale, backend) if computed else 0
    parts = parts_of(scheme, x.shape, packed, scale, zero_point, backend)
    qt = QTensor(scheme, x.shape, DTYPE_NAMES[x.dtype], parts, {"underflow_groups": underflows})
    return qt if out is None else out.overwrite(qt, written=("packed",))


def dequantize(
    scheme: Int, qt: QTensor, dtype: str, backend: Reference, out: Array | None
) -> Array:
    """The body of `Int.dequantize`."""
    shape = qt.shape
    if math.prod(shape) == 0:
        return np.empty(shape, DTYPES[dtype]) if out is None else out
    if dtype == "float64":  # the kernels decode in float32; float64 holds every result
        check_subnormals("dtype", "float64", "float32")
        return into(out, dequantize(scheme, qt, "float32", backend, None).astype(np.float64))
    layout = layout_of(scheme, shape)
    scale = np.require(qt.scale, requirements=["C", "A"]).reshape(layout.rows, layout.groups)
    zero_point = scheme.zero_point(qt, backend)
    if zero_point is not None:
        zero_point = zero_point.reshape(layout.rows, layout.groups)
    packed = np.ascontiguousarray(qt.packed)
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
    if dtype != "float32" and np.abs(scale).max() * np.float64(scheme.qmax - scheme.qmin) >= 65504:
        _check_overflow(x_hat, "dtype")
    return x_hat if out is None else out


def fake_quantize(scheme: Int, x: Array, backend: Reference, out: Array | None) -> Array:
    """The body of `Int.fake_quantize`."""
    layout = layout_of(scheme, x.shape)
    if x.size == 0:
        return x.copy() if out is None else out
    x_hat = backend.fake_quantize_affine(
        scheme.granularity.to_rows(x), layout.group_size, scheme.qmin, scheme.qmax,
        scheme.symmetric, scheme.scale_dtype,
    )  # fmt: skip
    x_hat = scheme.granularity.from_rows(x_hat, x.shape)
    _check_overflow(x_hat, "x")
    return into(out, x_hat)


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
    scale = scale.reshape(layout.scale_shape)
    if scheme.scale_dtype != "float32":
        scale = scale.astype(DTYPES[scheme.scale_dtype])
    parts: dict[str, Array | QTensor] = {
        "packed": packed.reshape(layout.packed_shape),
        "scale": scale,
    }
    if zero_point is not None:
        z = zero_point.reshape(layout.scale_shape).astype(scheme.code_dtype)
        parts["zero_point"] = packed_bits(z, scheme.bits, backend)
    return parts


def _of_nothing(
    scheme: Int, x: Array, scale: Float32 | None, zero_point: Integers | None
) -> QTensor:
    """An array without elements has no range: scale 1, and the zero point of the range [0, 0]."""
    layout = layout_of(scheme, x.shape)
    if scale is None:
        scale = np.ones(layout.scale_shape, np.float32)
        if not scheme.symmetric:
            zero_point = np.full(layout.scale_shape, scheme.qmin, scheme.code_dtype)
    packed = np.empty(layout.packed_shape, np.uint8)
    parts = parts_of(scheme, x.shape, packed, scale, zero_point)
    return QTensor(scheme, x.shape, DTYPE_NAMES[x.dtype], parts, {"underflow_groups": 0})


def _underflow_groups(rows: Array, group_size: int, scale: Float32, backend: Reference) -> int:
    """Groups that decode to zeros although they are not zeros: their scale came out as 0.

    A scale of 0 becomes 1 (contract, rule 4), so only scales of exactly 1 need a second look.
    """
    if not (scale == 1).any():
        return 0
    lo, hi = backend.group_range(rows, group_size)
    # Bits tell subnormals from zero in a thread whose CPU state takes them for zero, too.
    nonzero = (lo.view(np.uint32) | hi.view(np.uint32)) != 0
    tiny = (lo > -0.25) & (hi < 0.25) & nonzero
    return int(np.count_nonzero(tiny & (scale == 1)))


def _check_overflow(x_hat: Array, arg: str) -> None:
    """Raise where a finite float32 was rounded to an infinity of a narrower dtype."""
    if x_hat.dtype == np.float32:
        return
    magnitude = x_hat.view(np.uint16) & 0x7FFF  # integers: numpy is slow on narrow floats
    infinite = magnitude == np.array(np.inf, x_hat.dtype).view(np.uint16)
    if not infinite.any():
        return
    at, dtype = np.unravel_index(int(np.argmax(infinite)), x_hat.shape), x_hat.dtype.name
    raise ArgValueError(
        f"{arg}: the decoded value at {index_text(at)} overflows {dtype}, expected float32",
        arg=arg,
        value=dtype,
        expected="float32",
    )
