"""Arrays of floats to another number format and back: encode and decode."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .. import backends
from ..arrays import (
    Held,
    as_input,
    as_kernel_float,
    check_out,
    first_index,
    float_dtype_name,
    in_c_order,
    plain,
    refuse_on_gpu,
    reports_memory,
)
from ..backends.reference import Reference, into
from ..checks import check_subnormals
from ..constants import DTYPES
from ..devices import dtype_beside, library_of, on_host
from ..errors import ArgTypeError, KernelFault, QrsError, bad
from ..float_formats import ALIASES, FORMATS

Array = NDArray[Any]

INT8: Final = "int8"
NAMES: Final = (*FORMATS, INT8)
"""The number formats by the names that are used for them here."""

FORMAT_DTYPES: Final = {**{name: f.dtype for name, f in FORMATS.items()}, INT8: np.dtype(np.int8)}
"""What arrays of each format have as dtype."""

_NAME_OF_DTYPE: Final = {dtype: name for name, dtype in FORMAT_DTYPES.items()}


@reports_memory
def encode(
    x: Any,
    format: str,
    *,
    saturate: bool = True,
    out: Array | None = None,
    backend: str | None = None,
) -> Array:
    """The nearest numbers of a format, ties to even: an array of the shape of `x`.

    Parameters
    ----------
    x : array of any shape, or a number: float32, float16, bfloat16, or float64 (lists too), which
        narrows to float32 first: two roundings, as everywhere in qrs. It is not changed.
    format : "f32", "f16", "bf16", "e5m2", "e4m3", "e2m1", "int8", or another name of these such
        as "bfloat16" or "float8_e4m3fn".
    saturate : what is too large becomes the largest number. Otherwise it becomes infinity, or NaN
        in e4m3, and is an error in int8. e2m1 always saturates.
    out : a writable array in C order, of that shape and the dtype of the result, to fill and
        return; after an error its contents are unspecified.
    backend : as in `qrs.quantize`.

    The dtype of the result: numpy's float32, float16 and int8, and bfloat16, float8_e5m2,
    float8_e4m3fn and float4_e2m1fn of ml_dtypes; on a GPU, where CuPy lacks the last three, their
    bits as uint8. NaN is kept, as the canonical quiet one with its
    sign. Infinities are kept where the format has them; in e4m3 they are NaN or, with `saturate`,
    +-448, in e2m1 +-6, in int8 the ends of [-128, 127]. Subnormals are kept.

    Raises `ArgTypeError` and `ArgValueError` that name the argument: an unknown format; float64
    that overflows float32; NaN in e2m1 and int8, with the first index. Class A: the same bits on
    every backend. Source: IEEE 754-2019; OCP 8-bit Floating Point Specification; OCP MX 1.0.

    0.1 in bfloat16 is 1.6015625 / 16; 2.5 lies halfway between 2 and 3, and between the even
    mantissa of 2 and the odd one of 3 in e2m1:

    >>> encode([0.1, 1e39 / 10], "bf16").tolist()
    [0.10009765625, 9.969209968386869e+37]
    >>> encode([2.5, -100.0], "e2m1").tolist(), encode([2.5, 3.5, 200.0], "int8").tolist()
    ([2.0, -6.0], [2, 4, 127])
    >>> float(encode(1e9, "e4m3")), float(encode(1e9, "e4m3", saturate=False))
    (448.0, nan)
    """
    name = format_name(format)
    if not isinstance(saturate, (bool, np.bool_)):
        raise bad("saturate", f"got {saturate!r}", saturate, "True or False", ArgTypeError)
    chosen = backends.resolve(backend, x)
    given = plain(as_number(x))
    array = as_input(given, min_ndim=0)
    stored = dtype_beside(array, FORMAT_DTYPES[name])
    if out is not None:
        check_out(out, array.shape, stored, [given])
    with Held(array, out):
        values = as_kernel_float(array)
        rows = None if out is None else _row(out)
        if name == INT8:
            codes = _encode_int8(values, bool(saturate), chosen, rows)
        else:
            codes = _encode_float(values, name, bool(saturate), chosen, rows)
    return codes.view(stored).reshape(array.shape) if out is None else out


@reports_memory
def decode(
    codes: Any,
    format: str | None = None,
    *,
    dtype: Any = "float32",
    out: Array | None = None,
    backend: str | None = None,
) -> Array:
    """The values of numbers as `encode` makes them: an array of the shape of `codes`.

    Parameters
    ----------
    codes : array of any shape, of the dtype of a format; or, with `format`, its bits as unsigned
        integers: uint8 (for e2m1 up to 15, for int8 two's complement), uint16, uint32, or Python
        integers, alone or in lists.
    format : as in `encode`; by default the dtype of `codes` says it.
    dtype : "float32", "float16", "bfloat16" or "float64", as a name or a numpy dtype. Every value
        is exact in the first and the last; the others round, and what is too large for them
        becomes infinity.
    out, backend : as in `encode`.

    Infinities are kept, and NaN as the canonical quiet one with its sign. Raises `ArgTypeError`
    and `ArgValueError` that name the argument. Class A.

    0x1d is 0 0011 101 in e4m3: 2^(3 - 7) * (1 + 5/8).

    >>> decode(0x1d, "e4m3"), decode(np.array([0x3dcd], np.uint16), "bf16").tolist()
    (array(0.1015625, dtype=float32), [0.10009765625])
    """
    wanted = float_dtype_name(dtype)
    chosen = backends.resolve(backend, codes)
    given = plain(codes, "codes", integers=True)
    if wanted == "float64":
        refuse_on_gpu(given, "dtype")
    name, bits = _as_codes(given, codes, None if format is None else format_name(format))
    if out is not None:
        check_out(out, given.shape, wanted, [given])
    with Held(bits, out):
        rows = None if out is None else _row(out)
        if name == INT8:
            values = into(rows, _row(bits).astype(DTYPES[wanted]))
        elif wanted == "float64":  # the kernels decode to float32, which holds every value
            check_subnormals("dtype", "float64", "float32")
            narrow = chosen.decode_float(_row(bits), name, "float32")
            values = into(rows, narrow.astype(np.float64))
        else:
            values = chosen.decode_float(_row(bits), name, wanted, rows)
    return values.reshape(given.shape) if out is None else out


def format_name(format: Any) -> str:
    """The name in `NAMES` of a format that may go by another one.

    >>> format_name("bfloat16"), format_name("float8_e4m3fn"), format_name("int8")
    ('bf16', 'e4m3', 'int8')
    """
    if not isinstance(format, str):
        raise bad("format", f"got {format!r}", format, "a string", ArgTypeError)
    name = INT8 if format == INT8 else ALIASES.get(format)
    if name is None:
        others = ", ".join(alias for alias in ALIASES if alias not in FORMATS)
        expected = f"one of: {', '.join(NAMES)} (or {others})"
        raise bad("format", f"got {format!r}", format, expected)
    return name


def code_count(name: str) -> int:
    """How many codes a format has.

    >>> code_count("e2m1"), code_count("int8")
    (16, 256)
    """
    return 256 if name == INT8 else 1 << FORMATS[name].bits


def _encode_float(
    x: Array, name: str, saturate: bool, backend: Reference, out: Array | None
) -> Array:
    bits = None if out is None else out.view(FORMATS[name].code_dtype)
    try:
        return backend.encode_float(_row(x), name, saturate, bits)
    except KernelFault:
        with np.errstate(invalid="ignore"):  # signalling NaN
            nan = np.isnan(on_host(x))
        raise _refused(on_host(x), nan, name) from None


def _encode_int8(x: Array, saturate: bool, backend: Reference, out: Array | None) -> Array:
    xp = library_of(x)
    with np.errstate(invalid="ignore"):  # signalling NaN
        values = x.astype(np.float32, copy=False)
        # The ties at both ends go to the even neighbours: -128, which is a code, and 128.
        fits = (values >= -128.5) & (values < 127.5)
        wrong = xp.isnan(values) if saturate else ~fits
    if wrong.any():
        raise _refused(on_host(x), on_host(wrong), INT8)
    rows = _row(xp.clip(values, -128, 127))
    cols = rows.shape[1]
    one = xp.ones((1, min(cols, 1)), np.float32)
    return backend.quantize_affine(rows, max(cols, 1), one, None, -128, 127, out)


def _refused(x: Array, wrong: Array, name: str) -> QrsError:
    """The error for values that a format cannot hold: how many, and where the first one is."""
    at, where = first_index(wrong)
    first, count = float(x[at]), int(np.count_nonzero(wrong))
    values = "value" if count == 1 else "values"
    found = f"{count} {values} that {name} cannot hold, first {first}{where}"
    return bad("x", found, first, "no NaN" if np.isnan(first) else "-128 to 127")


def _as_codes(array: Array, codes: Any, name: str | None) -> tuple[str, Array]:
    """The format of an array and its bits: unsigned integers in C order, or int8."""
    dtype = array.dtype.newbyteorder("=")
    by_dtype = _NAME_OF_DTYPE.get(dtype)
    if by_dtype is not None:
        if name not in (None, by_dtype):
            raise bad("format", f"got {name!r} for codes of {dtype}", name, repr(by_dtype))
        return by_dtype, _bits(array, dtype, by_dtype)
    if name is None:
        dtypes = ", ".join(each.name for each in FORMAT_DTYPES.values())
        expected = f"one of: {dtypes}; or unsigned integers, and format="
        raise bad("codes", f"got dtype {dtype}", dtype, expected, ArgTypeError)
    count = code_count(name)
    code_dtype = np.dtype(np.uint8) if name == INT8 else FORMATS[name].code_dtype
    if dtype != code_dtype and not (isinstance(codes, (int, list, tuple)) and dtype.kind in "iu"):
        raise bad("codes", f"got dtype {dtype}", dtype, f"{code_dtype} for {name}", ArgTypeError)
    wrong = (array < 0) | (array >= count)
    if wrong.any():
        at, where = first_index(wrong)
        found = f"got {int(array[at])}{where}"
        raise bad("codes", found, int(array[at]), f"0 to {count - 1} for {name}")
    return name, _bits(array, code_dtype, name)


def _bits(array: Array, dtype: np.dtype[Any], name: str) -> Array:
    native = in_c_order(array.astype(dtype, copy=False), "codes")
    return native.view(np.int8 if name == INT8 else FORMATS[name].code_dtype)


def as_number(x: Any) -> Any:
    """A Python integer as a float; anything else as it is. Lists of them are `plain`'s business."""
    if type(x) is not int:
        return x
    try:
        return float(x)
    except OverflowError:
        found = f"an integer of {x.bit_length()} bits overflows float32"
        raise bad("x", found, x, "at most 3.4028235e+38") from None


def _row(array: Array) -> Array:
    """(1, n), as kernels take it; a view."""
    return array.reshape(1, -1)
