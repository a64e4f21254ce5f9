"""The front door: quantize, dequantize, fake_quantize.

Checks what users pass, picks the backend, lets the scheme work, and turns what a kernel found
wrong into an error that names the argument, the value and what was expected.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import backends
from .arrays import as_input, as_kernel_float, check_out, index_text, nonfinite_error
from .constants import DTYPES
from .errors import (
    ArgTypeError,
    ArgValueError,
    InternalError,
    KernelFault,
    QrsError,
    QrsMemoryError,
)
from .qtensor import QTensor
from .schemes import Int, Scheme, as_scheme

Array = NDArray[Any]

SOLVERS = ("minmax",)


def quantize(
    x: Any,
    scheme: Scheme | str,
    *,
    solver: str = "minmax",
    scale: Any = None,
    zero_point: Any = None,
    out: QTensor | None = None,
    backend: str | None = None,
) -> QTensor:
    """Quantize an array.

    Parameters
    ----------
    x : array of one dimension or more, float32, float16, bfloat16 or float64 (narrowed to
        float32), any strides; see `qrs.arrays` for what else converts. It is not changed.
    scheme : a scheme, or its string such as "int4-g128-asym".
    solver : how scales are chosen; "minmax" covers the range of each group.
    scale, zero_point : parameters known beforehand, in their stored shapes; the scale is rounded
        to the scheme's scale dtype. Without them they come from the range of `x`.
    out : a QTensor of the same scheme and shape to overwrite and return; after an error its
        contents are unspecified.
    backend : "reference", "rust" or "cupy"; by default the type of `x` decides.

    Returns a `QTensor`. Raises `ArgTypeError` and `ArgValueError` naming the argument; NaN and
    infinities are errors that name the first index and the count. Class A: the same bits on
    every backend, SIMD level and number of threads.

    >>> import numpy as np, qrs
    >>> qt = qrs.quantize(np.array([-0.5, 0.0, 1.5], np.float32), "uint8")
    >>> qt.codes.tolist(), int(qt.zero_point), float(qt.scale) == np.float32(2 / 255)
    ([0, 64, 255], 64, True)
    """
    scheme = as_scheme(scheme)
    if solver not in SOLVERS:
        raise ArgValueError(
            f"solver: got {solver!r}, expected one of: {', '.join(SOLVERS)}",
            arg="solver",
            value=solver,
            expected=", ".join(SOLVERS),
        )
    if out is not None and not isinstance(out, QTensor):
        raise ArgTypeError(
            f"out: got {type(out).__name__}, expected a QTensor", arg="out", value=type(out)
        )
    chosen = backends.resolve(backend, x, scale, zero_point)
    array = as_input(x)
    values = as_kernel_float(array)
    try:
        qt = scheme.quantize(values, chosen, scale, zero_point, out)
    except KernelFault as fault:
        raise explain(fault, values, scheme) from None
    except MemoryError as error:
        raise _out_of_memory(error) from error
    if values is not array:
        qt.dtype = "float64"
    return qt


def dequantize(
    qt: QTensor, dtype: str = "float32", *, out: Array | None = None, backend: str | None = None
) -> Array:
    """Decode a QTensor: an array of `qt.shape` and `dtype`.

    Parameters
    ----------
    qt : a QTensor.
    dtype : "float32", "float16", "bfloat16" or "float64", as a name or a numpy dtype. Decoding is
        (q - zero_point) * scale in float32, then one rounding to `dtype`; a value that overflows
        `dtype` is an error.
    out : an array of that shape and dtype, writable and in C order, to fill and return.
    backend : as in `quantize`.

    >>> import qrs
    >>> qrs.dequantize(qrs.quantize([[0.0, 1.0, 2.0]], "uint8")).tolist()
    [[0.0, 1.003921627998352, 2.0]]
    """
    if not isinstance(qt, QTensor):
        raise ArgTypeError(f"qt: got {type(qt).__name__}, expected a QTensor", arg="qt", value=qt)
    name = dtype_name(dtype)
    if out is not None:
        check_out(out, qt.shape, name, [array for _, array in qt.leaves()])
    chosen = backends.resolve(backend, qt.packed)
    try:
        return qt.scheme.dequantize(qt, name, chosen, out)
    except QrsError:
        raise
    except MemoryError as error:
        raise _out_of_memory(error) from error


def fake_quantize(
    x: Any, scheme: Scheme | str, *, out: Array | None = None, backend: str | None = None
) -> Array:
    """`dequantize(quantize(x, scheme))` in one pass, in the dtype of `x`.

    Shapes, errors and `backend` as in `quantize`; `out` as in `dequantize`.

    >>> fake_quantize([0.0, 0.4, 1.0], "int2").tolist()
    [0.0, 0.0, 1.0]
    """
    scheme = as_scheme(scheme)
    chosen = backends.resolve(backend, x)
    array = as_input(x)
    values = as_kernel_float(array)
    if out is not None:
        check_out(out, array.shape, array.dtype.name, [array])
    try:
        x_hat = scheme.fake_quantize(values, chosen, out if values is array else None)
    except KernelFault as fault:
        raise explain(fault, values, scheme) from None
    except MemoryError as error:
        raise _out_of_memory(error) from error
    if values is array:
        return x_hat
    if out is None:
        return x_hat.astype(np.float64)
    out[...] = x_hat
    return out


def dtype_name(dtype: Any) -> str:
    """The name of a float dtype given as a name, a numpy dtype or a scalar type.

    >>> dtype_name(np.float16)
    'float16'
    """
    if isinstance(dtype, str) and dtype in DTYPES:
        return dtype
    try:
        name = "" if dtype is None else str(np.dtype(dtype).name)  # None would be float64
    except TypeError:
        name = ""
    if name not in DTYPES:
        accepted = ", ".join(DTYPES)
        raise ArgTypeError(
            f"dtype: got {dtype!r}, expected one of: {accepted}",
            arg="dtype",
            value=dtype,
            expected=accepted,
        )
    return name


def explain(fault: KernelFault, x: Array, scheme: Scheme) -> QrsError:
    """The error for the user behind a kernel's fault, found by looking at the array itself."""
    if fault.reason == "nonfinite":
        return nonfinite_error(x)
    if not isinstance(scheme, Int):
        return InternalError(f"kernel fault {fault.reason!r}: bug, please report")
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


def _out_of_memory(error: MemoryError) -> QrsMemoryError:
    if isinstance(error, QrsMemoryError):
        return error
    return QrsMemoryError(f"out of memory: {error}")
