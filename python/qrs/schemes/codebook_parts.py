"""From an array to the stored parts of a codebook scheme, and back.

Between a scheme, which says what is stored, and a backend, which computes on rows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import codebooks
from ..backends.reference import Reference, into
from ..checks import check_subnormals
from ..constants import DTYPE_NAMES, DTYPES
from ..devices import contiguous, is_cupy, library_of
from ..qtensor import QTensor
from . import codebook_learning, scales, sparse
from .base import Array
from .checks import check_overflow, underflow_groups
from .layout import Layout, empty_like_parts, layout_of, unpacked_bits

if TYPE_CHECKING:
    from .codebook import Codebook

Float32 = NDArray[np.float32]


class Book(NamedTuple):
    """The tables of a tensor as kernels take them, where the tensor is."""

    levels: Any
    """(B, k), by code."""
    thresholds: Any
    codes: Any
    ends: tuple[float, float]
    """The least and the greatest level; of no meaning where tables are learned."""


def fixed_book(table: tuple[float, ...], x: Any) -> Book:
    """The one of a table."""
    ascending, thresholds, codes = codebooks.ranked(table)
    levels = np.array([table], np.float32)
    found = [scales.moved_like(part, x) for part in (levels, thresholds[None], codes)]
    return Book(found[0], found[1], found[2], (float(ascending[0]), float(ascending[-1])))


def learned_book(levels: Any) -> Book:
    """That of tables that were learned, ascending."""
    return Book(levels, codebooks.thresholds(levels), None, (0.0, 0.0))


def quantize(
    scheme: Codebook,
    x: Array,
    backend: Reference,
    scale: Any,
    weights: Float32 | None,
    out: QTensor | None,
) -> QTensor:
    """The body of `Codebook.quantize`; `scale`, float32, is checked already."""
    layout, dtype = layout_of(scheme, x.shape), DTYPE_NAMES[x.dtype]
    if x.size == 0:
        qt = _of_nothing(scheme, x, layout, backend)
        return qt if out is None else out.overwrite(qt)
    parts: dict[str, Any] = {}
    noted: dict[str, int] = {}
    rows = scheme.granularity.to_rows(x)
    if scheme.is_learned:
        codebook_learning.check(scheme, x)
        backend.group_range(rows, layout.group_size)  # a fault where a value is not finite
    outliers = sparse.Outliers.of(x, scheme.outlier_fraction) if scheme.outlier_fraction else None
    if scheme.centered:
        offset, rows = backend.center_scales(rows)
        parts["offset"] = offset.reshape(())
    if scheme.is_learned:
        weights = weights if outliers is None else outliers.left_out(weights)
        weights = None if weights is None else scheme.granularity.to_rows(weights)
        levels, scale, noted = codebook_learning.learned(
            scheme, rows, layout, weights, scale, backend
        )
        book, shape = learned_book(levels), scheme.book_shape(x.shape)
        parts["codebook"] = scales.stored(levels, scheme.book_dtype, shape, backend)
    else:
        book = fixed_book(scheme.table or (), x)
    packed, scale, info = encoded(scheme, rows, x.shape, scale, book, backend, out)
    parts["packed"] = packed.reshape(layout.packed_shape)
    if scale is not None:
        parts["scale"] = scale
    if outliers is not None:
        x_hat = _decoded(scheme, QTensor(scheme, x.shape, dtype, parts), backend)
        parts |= outliers.parts(x_hat, scheme.book_dtype, backend)
    in_order = dict.fromkeys(path.partition(".")[0] for path in scheme.part_specs(x.shape))
    qt = QTensor(scheme, x.shape, dtype, {name: parts[name] for name in in_order}, noted | info)
    return qt if out is None else out.overwrite(qt, written=("packed",))


def encoded(
    scheme: Codebook,
    rows: Array,
    shape: tuple[int, ...],
    scale: Any,
    book: Book,
    backend: Reference,
    out: QTensor | None,
) -> tuple[Array, Any, dict[str, int]]:
    """Packed codes, the scales as they are stored, and what to note in `QTensor.info`.

    Scales that are given are rounded to how they are stored before there are codes. Where they are
    chosen here and quantized, codes follow what they were before: bitsandbytes' rule.
    """
    layout, given, part = layout_of(scheme, shape), scale is not None, None
    if scale is not None:
        scale = scale.reshape(layout.rows, layout.groups)
        if scheme.inner is not None:
            part, scale = scales.quantized(scale, scheme.inner, backend)
    packed, scale = packed_codes(scheme, rows, shape, scale, book, backend, out)
    if scale is None:
        return packed, None, {}
    if scheme.inner is None:
        part = scales.stored(scale, str(scheme.scale_dtype), layout.scale_shape, backend)
    elif not given:
        part, scale = scales.quantized(scale, scheme.inner, backend)
    ranges = lambda: backend.group_range(rows, layout.group_size)  # noqa: E731
    return packed, part, underflow_groups(scale, 0, np.inf, ranges)


def packed_codes(
    scheme: Codebook,
    rows: Array,
    shape: tuple[int, ...],
    scale: Any,
    book: Book,
    backend: Reference,
    out: QTensor | None,
) -> tuple[Array, Any]:
    """The packed codes of an array, in rows, and scales, chosen here where they are missing."""
    layout, packed_out = layout_of(scheme, shape), None if out is None else out.packed
    stored = scheme.scale_dtype if isinstance(scheme.scale_dtype, str) else None
    stored = "float32" if scheme.inner is not None else stored
    if layout.packs_in_rows:
        if packed_out is not None:
            packed_out = packed_out.reshape(layout.rows, -1)
        return backend.quantize_codebook_packed(
            rows, layout.group_size, scheme.bits, book.ends, stored, scale,
            book.thresholds, book.codes, packed_out,
        )  # fmt: skip
    # One code per element first, then packed along another axis than they were computed.
    if scale is None and stored is not None:
        lo, hi = backend.group_range(rows, layout.group_size)
        scale = backend.choose_scale_codebook(lo, hi, *book.ends, stored)
    codes = backend.quantize_codebook(rows, layout.group_size, scale, book.thresholds, book.codes)
    codes = scheme.granularity.from_rows(codes, shape).reshape(-1, layout.stored_shape[-1])
    if packed_out is not None:
        packed_out = packed_out.reshape(-1, layout.packed_shape[-1])
    return backend.pack_bits(codes, scheme.bits, packed_out), scale


def dequantize(
    scheme: Codebook, qt: QTensor, dtype: str, backend: Reference, out: Array | None
) -> Array:
    """The body of `Codebook.dequantize`."""
    if math.prod(qt.shape) == 0:
        return empty_like_parts(qt, dtype) if out is None else out
    if dtype == "float64":  # the kernels decode in float32; float64 holds every result
        check_subnormals("dtype", "float64", "float32")
        return into(out, dequantize(scheme, qt, "float32", backend, None).astype(np.float64))
    if scheme.outlier_fraction:
        x_hat = _decoded(scheme, qt, backend)
        sparse.add_to(x_hat, qt.parts, scheme.book_dtype, backend)
        x_hat = into(out, scales.stored(x_hat, dtype, qt.shape, backend))
        check_overflow(x_hat, "dtype", backend)
        return x_hat
    x_hat = _decoded(scheme, qt, backend, dtype, out)
    if dtype != "float32":
        check_overflow(x_hat, "dtype", backend, *_reach(scheme, qt, backend))
    return x_hat if out is None else out


def _reach(scheme: Codebook, qt: QTensor, backend: Reference) -> tuple[Any, float]:
    """Scales and the largest level, which tell that nothing overflows; None where they do not."""
    if scheme.centered or is_cupy(qt.packed):
        return None, 0.0
    scale = scheme.scale(qt, backend)
    largest = float(np.abs(codebook(scheme, qt, backend)).max())
    return np.ones(1, np.float32) if scale is None else scale, largest


def _decoded(
    scheme: Codebook,
    qt: QTensor,
    backend: Reference,
    dtype: str = "float32",
    out: Array | None = None,
) -> Array:
    """What the codes decode to, in the shape of the tensor, without outliers."""
    shape, layout = qt.shape, layout_of(scheme, qt.shape)
    scale, offset = scheme.scale(qt, backend), qt.parts.get("offset")
    scale = None if scale is None else scales.for_kernels(scale, layout)
    offset = None if offset is None else offset.reshape(1, 1)
    levels = codebook(scheme, qt, backend).reshape(-1, scheme.levels)
    packed = contiguous(qt.packed)
    if layout.packs_in_rows:
        return backend.dequantize_codebook_packed(
            packed.reshape(layout.rows, -1), layout.cols, layout.group_size, scheme.bits, scale,
            offset, levels, dtype, None if out is None else out.reshape(layout.rows, layout.cols),
        ).reshape(shape)  # fmt: skip
    stored = unpacked_bits(packed, scheme.bits, False, layout.stored_shape, backend)
    rows = scheme.granularity.to_rows(stored.reshape(shape))
    x_hat = backend.dequantize_codebook(rows, layout.group_size, scale, offset, levels, dtype)
    return into(out, scheme.granularity.from_rows(x_hat, shape))


def codebook(scheme: Codebook, qt: QTensor, backend: Reference) -> Array:
    """The levels by code as float32: (k,), or as many rows of them as there are tables."""
    if scheme.table is not None:
        levels: Array = scales.moved_like(np.array(scheme.table, np.float32), qt.packed)
        return levels
    stored = contiguous(qt.parts["codebook"])
    decoded: Array = scales.decoded(stored, scheme.book_dtype, backend)
    return decoded


def select(scheme: Codebook, qt: QTensor, index: Any) -> QTensor:
    """The body of `Codebook.select`. Scales that were quantized become float32: the same values."""
    ndim = len(qt.shape)
    parts: dict[str, Any] = {**qt.parts, "packed": qt.packed[index]}
    if scheme.book_granularity is not None:
        parts["codebook"] = scheme.book_granularity.select(parts["codebook"], index, ndim)
    if scheme.scale_dtype is not None:
        scale = parts["scale"] if scheme.inner is None else scheme.scale(qt)
        parts["scale"] = scheme.granularity.select(scale, index, ndim)
    if scheme.outlier_fraction:
        parts |= sparse.select(qt.parts, qt.shape, index)
    chosen = scheme.with_scale_dtype("float32") if scheme.inner is not None else scheme
    return QTensor(chosen, (len(parts["packed"]), *qt.shape[1:]), qt.dtype, parts)


def _of_nothing(scheme: Codebook, x: Array, layout: Layout, backend: Reference) -> QTensor:
    """An array without elements: scales, differences and tables are zeros, if there are any."""
    xp = library_of(x)
    parts: dict[str, Any] = {}
    for path, (dtype, shape) in scheme.part_specs(x.shape).items():
        if "." not in path:
            parts[path] = xp.zeros(shape, DTYPES.get(dtype, dtype))
    if scheme.inner is not None:
        none = xp.zeros(layout.groups_in_all, np.float32)
        parts["scale"] = scheme.inner.quantize(none, backend)
    return QTensor(scheme, x.shape, DTYPE_NAMES[x.dtype], parts, {"underflow_groups": 0})
