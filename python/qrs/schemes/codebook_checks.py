"""Checks of what comes from outside for codebook schemes: fields, scales, tables and codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import plain
from ..checks import checked_integer
from ..codebooks import TABLES
from ..constants import DTYPES, SCALE_DTYPES
from ..errors import ArgTypeError, bad
from ..granularity import Granularity, PerAxis, PerGroup, PerTensor
from ..qtensor import QTensor
from . import scales, sparse
from .base import Array, Scheme, Shape
from .checks import check_padding, check_reach, check_shape, refuse_first
from .layout import layout_of, packed_bits

if TYPE_CHECKING:
    from .codebook import Codebook

Float32 = NDArray[np.float32]

_SIZES = "4, 8, 16, 32, 64, 128 or 256"


def checked_bits(bits: Any) -> int:
    """Bits of a code: 2 to 8."""
    found = int(checked_integer(bits, "bits"))
    if not 2 <= found <= 8:
        raise bad("bits", f"got {found}", found, "2, 3, 4, 5, 6, 7 or 8")
    return found


def table_of(table: Any) -> tuple[tuple[float, ...] | None, int]:
    """The levels, None if they are to be learned, and the bits of their codes."""
    if isinstance(table, str):
        if table not in TABLES:
            raise bad("table", f"got {table!r}", table, f"levels, or one of: {', '.join(TABLES)}")
        return TABLES[table], len(TABLES[table]).bit_length() - 1
    if isinstance(table, (int, np.integer)) and not isinstance(table, (bool, np.bool_)):
        check_size(int(table), f"got {table}")
        return None, int(table).bit_length() - 1
    levels = plain(table, "table", integers=True)
    if levels.ndim != 1 or levels.dtype.kind not in "fiu":
        found = f"got {levels.dtype} of shape {levels.shape}"
        raise bad("table", found, table, "a row of numbers, a name or an integer", ArgTypeError)
    check_size(len(levels), f"got {len(levels)} levels")
    with np.errstate(over="ignore"):
        values = levels.astype(np.float32)
    refuse_first(~np.isfinite(values), levels, "table", "finite float32")
    if not values.any():
        raise bad("table", "got zeros alone", table, "a level other than 0")
    return tuple(values.tolist()), len(levels).bit_length() - 1


def check_size(size: int, found: str) -> None:
    """As many levels as 2 to 8 bits tell apart."""
    if size not in (4, 8, 16, 32, 64, 128, 256):
        raise bad("table", found, size, f"{_SIZES} levels")


def check_fields(scheme: Codebook) -> None:
    """Raise where fields contradict each other."""
    stored, book = scheme.scale_dtype, scheme.book_granularity
    if not isinstance(scheme.book_dtype, str) or scheme.book_dtype not in SCALE_DTYPES:
        accepted = f"one of: {', '.join(SCALE_DTYPES)}"
        raise bad("book_dtype", f"got {scheme.book_dtype!r}", scheme.book_dtype, accepted)
    known = isinstance(stored, str) and stored in SCALE_DTYPES
    if not (stored is None or known or isinstance(stored, Scheme)):
        accepted = f"one of: {', '.join(SCALE_DTYPES)}, None or a scheme"
        raise bad("scale_dtype", f"got {stored!r}", stored, accepted)
    if isinstance(stored, Scheme) and isinstance(scheme.granularity, PerTensor):
        found = f"got {stored} for the one scale of a tensor"
        raise bad("scale_dtype", found, stored, "axis= or group_size= beside it")
    if not scheme.is_learned and book is not None:
        raise bad("book_granularity", f"got {book!r} for a fixed table", book, "None")
    if scheme.is_learned:
        _check_book(scheme, book)
    if scheme.centered and (scheme.is_learned or stored is None or isinstance(stored, Scheme)):
        raise bad("centered", "got True", True, "a fixed table and float scales beside it")
    _check_outliers(scheme)


def _check_book(scheme: Codebook, book: Any) -> None:
    if not isinstance(book, (PerTensor, PerAxis, PerGroup)):
        expected = "PerTensor(), PerAxis(axis) or PerGroup(group_size)"
        raise bad("book_granularity", f"got {book!r}", book, expected, ArgTypeError)
    if scheme.scale_dtype is None and scheme.granularity != book:
        found = f"got {scheme.granularity!r} without scales, beside books {book!r}"
        raise bad("granularity", found, scheme.granularity, "None")
    if scheme.scale_dtype is not None and book != PerTensor():
        raise bad("book_granularity", f"got {book!r} beside scales", book, "PerTensor()")


def _check_outliers(scheme: Codebook) -> None:
    fraction = scheme.outlier_fraction
    numbers = (int, float, np.integer, np.floating)
    if isinstance(fraction, bool) or not isinstance(fraction, numbers):
        raise bad("outlier_fraction", f"got {fraction!r}", fraction, "a number", ArgTypeError)
    object.__setattr__(scheme, "outlier_fraction", float(fraction))
    if not 0 <= scheme.outlier_fraction < 1:  # false for NaN
        raise bad("outlier_fraction", f"got {fraction!r}", fraction, "0 or more, below 1")
    if fraction and not (scheme.is_learned and scheme.scale_dtype is None):
        found = f"got {fraction!r} for a scheme that is not k-means"
        raise bad("outlier_fraction", found, fraction, "0")


def granularity_from(fields: Mapping[str, Any]) -> Granularity:
    """The inverse of `dataclasses.asdict`."""
    kinds: dict[frozenset[str], type[Granularity]] = {
        frozenset(): PerTensor,
        frozenset({"axis"}): PerAxis,
        frozenset({"group_size", "ragged", "flat"}): PerGroup,
    }
    kind = kinds.get(frozenset(fields))
    if kind is None:
        raise bad("book_granularity", f"got {dict(fields)!r}", dict(fields), "its fields")
    return kind(**fields)


def given_scale(scheme: Codebook, shape: Shape, scale: Any) -> Float32:
    """`scale=` for an array of `shape`, checked, rounded to what will be stored, as float32."""
    if not isinstance(scheme.scale_dtype, str) or scheme.centered:
        why = "which has none" if scheme.scale_dtype is None else "whose scales are quantized"
        why = "whose values are centered" if scheme.centered else why
        raise bad("scale", f"given for {scheme}, {why}", type(scale), "None")
    given = scales.given(scale, layout_of(scheme, shape).scale_shape, scheme.scale_dtype)
    # Learned tables reach from -1 to 1.
    check_reach(given, np.float32(max(map(abs, scheme.table or (1.0,)))))
    return given


def from_codes(
    scheme: Codebook, shape: Shape, codes: Any, scale: Any, zero_point: Any, codebook: Any
) -> QTensor:
    """The body of `Codebook.from_codes`."""
    if zero_point is not None:
        raise bad("zero_point", f"given for {scheme}, which has none", zero_point, "None")
    if scheme.outlier_fraction or scheme.centered:
        raise bad("scheme", f"got {scheme}, which stores more than that", scheme, "a plainer one")
    layout = layout_of(scheme, shape)
    array = plain(codes, "codes", integers=True)
    array = array.astype(np.uint8) if array.size == 0 else array
    if array.dtype.kind not in "iu":
        raise bad("codes", f"got dtype {array.dtype}", array.dtype, "integers", ArgTypeError)
    check_shape("codes", array, shape)
    wrong = (array < 0) | (array >= scheme.levels)
    refuse_first(wrong, array, "codes", f"[0, {scheme.levels - 1}] for {scheme}")
    stored = array.astype(np.uint8, order="C").reshape(layout.stored_shape)
    parts: dict[str, Any] = {"packed": packed_bits(stored, scheme.bits)}
    if (codebook is None) == scheme.is_learned:
        found = f"missing for {scheme}" if scheme.is_learned else f"given for {scheme}"
        raise bad("codebook", found, type(codebook), "learned levels, and only those")
    if scheme.is_learned:
        parts["codebook"] = given_book(scheme, shape, codebook)
    if scheme.inner is not None:
        parts["scale"] = given_nested(scheme, layout.groups_in_all, scale)
    elif scale is not None or scheme.scale_dtype is not None:
        given = given_scale(scheme, shape, scale)
        parts["scale"] = scales.stored(given, str(scheme.scale_dtype), layout.scale_shape)
    qt = QTensor(scheme, shape, "float32", parts)
    check_parts(scheme, qt)
    return qt


def given_nested(scheme: Codebook, groups: int, scale: Any) -> QTensor:
    """`scale=` where scales are a QTensor."""
    expected = f"a QTensor of {scheme.inner} and shape ({groups},)"
    if not isinstance(scale, QTensor):
        raise bad("scale", f"got {type(scale).__name__}", type(scale), expected, ArgTypeError)
    if (scale.scheme, scale.shape) != (scheme.inner, (groups,)):
        raise bad("scale", f"got {scale!r}", repr(scale), expected)
    return scale


def given_book(scheme: Codebook, shape: Shape, codebook: Any) -> Array:
    """`codebook=` as it is stored."""
    array = plain(codebook, "codebook")
    if array.dtype.newbyteorder("=") not in DTYPES.values():
        found = f"got dtype {array.dtype}"
        raise bad("codebook", found, array.dtype, ", ".join(DTYPES), ArgTypeError)
    check_shape("codebook", array, scheme.book_shape(shape))
    with np.errstate(over="ignore", under="ignore"):
        stored = array.astype(DTYPES[scheme.book_dtype], order="C")
    infinite = ~np.isfinite(stored.astype(np.float32))
    refuse_first(infinite, array, "codebook", f"finite {scheme.book_dtype}")
    return stored


def check_parts(scheme: Codebook, qt: QTensor) -> None:
    """Tables and scales are finite and decode to finite values, with zeros behind the codes."""
    if not qt.size:
        return
    check_padding(qt)
    book = scheme.codebook(qt)
    if scheme.is_learned:
        refuse_first(~np.isfinite(book), book, "codebook", "finite values")
    if scheme.centered:
        offset = qt.parts["offset"]
        refuse_first(~np.isfinite(offset), offset, "offset", "a finite value")
    if isinstance(qt.parts.get("scale"), QTensor):
        nested = qt.parts["scale"]
        nested.scheme.check_parts(nested)
    if scheme.scale_dtype is not None:
        check_reach(qt.scale, np.abs(book).max())
        check_zero_scales(scheme, qt)
    if scheme.outlier_fraction:
        sparse.check(qt.parts, qt.shape, scheme.outlier_fraction)


def check_zero_scales(scheme: Codebook, qt: QTensor) -> None:
    """Beside a scale of 0 every code is the one of the level that is nearest to 0.0.

    Not where scales are quantized: codes may follow what they were before, and were not 0.
    """
    zero = qt.scale == 0
    if scheme.inner is not None or not zero.any():
        return
    layout, distance = layout_of(scheme, qt.shape), np.abs(scheme.codebook(qt))
    far = scheme.granularity.to_rows(distance[scheme.codes(qt)] > distance.min())
    marked = np.repeat(zero.reshape(layout.rows, -1), layout.group_size, axis=1)[:, : layout.cols]
    if (marked & far).any():
        expected = f"other than 0 where codes differ from {int(distance.argmin())}"
        refuse_first(zero, qt.scale, "scale", expected)
