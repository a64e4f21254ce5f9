"""What users may pass as an array, and the checks on it.

- numpy arrays of float32, float16 or bfloat16 (ml_dtypes), any strides, byte order or alignment:
  as they are; copied only where they are not in C order, aligned and native.
- float64, lists and tuples of numbers: narrowed to float32; a value that overflows is an error.
- numpy subclasses (np.matrix, np.memmap), memoryviews, objects with `__array__` such as a torch
  CPU tensor: as the plain array they convert to.
- masked arrays: an error, call `.filled()`.
- integers, bool, complex, longdouble, float8, strings, objects, datetimes, structured dtypes: an
  error, cast to a float dtype first.
- NaN and infinities: an error with the first index and the count.
- arrays of a GPU: CuPy's, and, in the same memory, those of anything with `__dlpack__` or
  `__cuda_array_interface__`; float32, float16 and bfloat16.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from .checks import check_subnormals
from .constants import DTYPES
from .devices import as_cupy, is_cupy, is_on_gpu, is_writable, may_share_memory, on_host
from .errors import ArgTypeError, ArgValueError, QrsMemoryError, bad

Array = NDArray[Any]
P = ParamSpec("P")
R = TypeVar("R")

_ACCEPTED = ", ".join(DTYPES)
_BLOCK = 1 << 20
_KERNEL_DTYPES = frozenset(d for d in DTYPES.values() if d != np.float64)


def as_input(x: Any, arg: str = "x", *, min_ndim: int = 1) -> Array:
    """A float array of `min_ndim` or more dimensions, C order, aligned, native; float64 is kept.

    Values are not looked at here: the kernels find NaN and infinities in the pass that reads
    everything anyway. Raises `ArgTypeError`, `ArgValueError` and `QrsMemoryError`.

    >>> as_input([[1, 2.5]]).dtype, as_input(np.ones(4, ">f2")[::2]).flags.c_contiguous
    (dtype('float64'), True)
    """
    array = plain(x, arg)
    if array.ndim < min_ndim:
        raise bad(arg, f"ndim {array.ndim}", array.ndim, f">= {min_ndim}")
    if array.dtype not in _KERNEL_DTYPES:
        array = _with_accepted_dtype(array, arg)
    if array.dtype == np.float64:
        refuse_on_gpu(array, arg)
    return in_c_order(array, arg)


def refuse_on_gpu(x: Array, arg: str) -> None:
    """Raise for float64 on a GPU: CuPy's conversions from and to it flush subnormals to zero."""
    if is_cupy(x):
        expected = "float32, float16 or bfloat16 there"
        raise bad(arg, "got float64 on a GPU", "float64", expected, ArgTypeError)


def rows_of(array: Array) -> Array:
    """(..., n) as (rows, n), of nothing too."""
    return array.reshape(math.prod(array.shape[:-1]), array.shape[-1])


def in_c_order(array: Array, arg: str = "x") -> Array:
    """The array itself, or a copy where it is not in C order or not aligned."""
    flags = array.flags
    if flags.c_contiguous and getattr(flags, "aligned", True):
        return array
    return copied(array, arg)


def as_kernel_float(x: Array, arg: str = "x") -> Array:
    """float64 narrowed to float32; a value that becomes infinite is an error. Others unchanged."""
    if x.dtype != np.float64:
        return x
    check_subnormals(arg, "float64", "float32")
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        narrow = x.astype(np.float32)
    overflow = np.isinf(narrow) & np.isfinite(x)
    if overflow.any():
        at, where = first_index(overflow)
        found = f"{x[at]}{where} overflows float32"
        raise bad(arg, found, float(x[at]), "at most 3.4028235e+38")
    return narrow


def nonfinite_error(x: Array, arg: str = "x") -> ArgValueError:
    """The error for NaN or infinities: how many, and where the first one is.

    >>> str(nonfinite_error(np.array([[1, np.nan], [np.inf, 2]])))
    'x: 2 non-finite values, first nan at (0, 1)'
    """
    x = on_host(x)
    flat, count, first = x.reshape(-1), 0, 0
    for start in range(0, flat.size, _BLOCK):
        with np.errstate(invalid="ignore"):
            bad = ~np.isfinite(flat[start : start + _BLOCK])
        if not count:
            first = start + int(np.argmax(bad))
        count += int(np.count_nonzero(bad))
    at = np.unravel_index(first if count else 0, x.shape)
    values = "value" if count == 1 else "values"
    return ArgValueError(
        f"{arg}: {count} non-finite {values}, first {float(x[at])} at {index_text(at)}",
        arg=arg,
        value=float(x[at]),
        expected="finite values",
    )


def check_out(
    out: Any, shape: tuple[int, ...], dtype: str | np.dtype[Any], inputs: list[Array]
) -> None:
    """Raise unless `out` can take a result: writable C order, right shape and dtype, no overlap."""
    wanted = DTYPES[dtype] if isinstance(dtype, str) else dtype
    on_gpu = any(is_cupy(each) for each in inputs)
    if not (is_cupy(out) if on_gpu else type(out) is np.ndarray):
        expected = "a CuPy array" if on_gpu else "a numpy array"
        raise bad("out", f"got {type(out).__name__}", type(out), expected, ArgTypeError)
    found = None
    if out.shape != shape or out.dtype != wanted:
        found = f"{out.dtype} of shape {out.shape}"
    elif not is_writable(out):
        found = "an array that is not writable, aligned and in C order"
    elif any(may_share_memory(out, each) for each in inputs):
        found = "memory that overlaps an input"
    if found:
        expected = f"a writable {dtype} array of shape {shape} in C order"
        raise bad("out", f"got {found}", found, expected)


def float_dtype_name(dtype: Any) -> str:
    """The name of a float dtype given as a name, a numpy dtype or a scalar type.

    >>> float_dtype_name(np.float16)
    'float16'
    """
    if isinstance(dtype, str) and dtype in DTYPES:
        return dtype
    try:
        name = "" if dtype is None else str(np.dtype(dtype).name)  # None would be float64
    except Exception:  # numpy raises many kinds
        name = ""
    if name not in DTYPES:
        raise bad("dtype", f"got {dtype!r}", dtype, f"one of: {_ACCEPTED}", ArgTypeError)
    return name


class Held:
    """While this is entered, resizing the arrays is an error instead of a dangling pointer.

    `array.resize(n, refcheck=False)` moves memory under the kernels of another thread; numpy
    refuses it for arrays with weak references.
    """

    __slots__ = ("_references",)

    def __init__(self, *arrays: Array | None) -> None:
        hosts = (a for a in arrays if isinstance(a, np.ndarray))
        owners = (a.base if type(a.base) is np.ndarray else a for a in hosts)
        self._references = [weakref.ref(owner) for owner in owners]

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._references.clear()


def copied(array: Array, arg: str = "x") -> Array:
    """A C-order copy in fresh memory; `QrsMemoryError` names the bytes that were asked for."""
    try:
        return array.copy(order="C")
    except MemoryError as error:
        raise QrsMemoryError(
            f"{arg}: no memory for a contiguous copy of {array.nbytes} bytes, shape={array.shape}",
            arg=arg,
            value=array.nbytes,
        ) from error


def reports_memory(function: Callable[P, R]) -> Callable[P, R]:
    """Turn a MemoryError of numpy, wherever it comes up, into a QrsMemoryError."""

    @functools.wraps(function)
    def reporting(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except QrsMemoryError:
            raise
        except MemoryError as error:
            shape, dtype = getattr(error, "shape", None), getattr(error, "dtype", None)
            asked = None if dtype is None else math.prod(shape or ()) * dtype.itemsize
            raise QrsMemoryError(f"out of memory: {error}", value=asked) from error

    return reporting


def index_text(index: Any) -> str:
    """An index as users write it.

    >>> index_text((np.int64(5), np.int64(7))), index_text((np.int64(3),))
    ('(5, 7)', '(3,)')
    """
    return str(tuple(int(i) for i in index))


def first_index(wrong: Array) -> tuple[Any, str]:
    """The index of the first True, and how messages say it; a single number needs no index.

    >>> first_index(np.array([[False, False], [True, True]]))[1], first_index(np.array(True))[1]
    (' at (1, 0)', '')
    """
    at = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
    return at, f" at {index_text(at)}" if wrong.ndim else ""


def plain(x: Any, arg: str = "x", integers: bool = False) -> Array:
    """A plain numpy array of whatever converts to one; masked arrays are refused.

    A list of whole numbers is one of floats, unless `integers` says otherwise.
    """
    if type(x) is np.ndarray:
        return x
    if is_on_gpu(x):
        return as_cupy(x)
    expected = f"an array of {_ACCEPTED}"
    if isinstance(x, np.ma.MaskedArray):
        raise bad(
            arg, "masked array not supported; call .filled()", type(x), expected, ArgTypeError
        )
    try:
        array = np.asarray(x).view(np.ndarray)
    except MemoryError as error:
        raise QrsMemoryError(f"{arg}: no memory to convert it: {error}", arg=arg) from error
    except Exception as error:  # whatever an object's own __array__ raises
        found = f"cannot convert {type(x).__name__} to an array: {error}"
        raise bad(arg, found, type(x), expected, ArgTypeError) from error
    if array.ndim == 0 and array.dtype.kind in "OUS":  # None, a string, a dictionary, ...
        raise bad(arg, f"got {type(x).__name__}", type(x), expected, ArgTypeError)
    # A list of whole numbers has a float meaning; an integer array is a mistake to be shown.
    if not integers and isinstance(x, (list, tuple)) and array.dtype.kind in "iu":
        array = array.astype(np.float64)
    return array


def _with_accepted_dtype(array: Array, arg: str) -> Array:
    dtype = array.dtype
    if dtype == np.float64 and dtype.isnative:
        return array
    if not dtype.isnative and dtype.newbyteorder("=") in DTYPES.values():
        return array.astype(dtype.newbyteorder("="))
    hint = "; cast to a float dtype first" if dtype.kind in "iub" else ""
    raise bad(arg, f"got dtype {dtype}", dtype, f"one of: {_ACCEPTED}{hint}", ArgTypeError)
