"""The front door: quantize, dequantize, fake_quantize.

Checks what users pass, picks the backend, lets the scheme work, and turns what a kernel found
wrong into an error that names the argument, the value and what was expected.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import backends
from .arrays import Held, as_input, as_kernel_float, check_out, plain, reports_memory
from .backends.reference import into
from .constants import DTYPE_NAMES
from .errors import ArgTypeError, KernelFault, bad
from .qtensor import QTensor
from .schemes import InBasis, Scheme, as_scheme
from .solvers import (
    GPTQ,
    Solver,
    as_solver,
    check_solver,
    checked_weights,
    in_basis,
    works_in_basis,
)

Array = NDArray[Any]


@reports_memory
def quantize(
    x: Any,
    scheme: Scheme | str,
    *,
    solver: str | Solver = "minmax",
    scale: Any = None,
    zero_point: Any = None,
    weights: Any = None,
    statistics: Any = None,
    out: QTensor | None = None,
    backend: str | None = None,
) -> QTensor:
    """Quantize an array.

    Parameters
    ----------
    x : array of one dimension or more, float32, float16, bfloat16 or float64 (narrowed to
        float32), any strides; see `qrs.arrays` for what else converts. It is not changed.
    scheme : a scheme, or its string such as "int4-g128-asym".
    solver : how scales and codes are chosen; "minmax" covers the range of each group, "lsq"
        searches for scales of less squared error (see `qrs.solvers.lsq`; learned codebooks do that
        anyway), "gptq" for codes of less error in the output of the layer (see `qrs.gptq`), "awq"
        for a factor for each input beside them (see `qrs.solvers.AWQ`).
    scale, zero_point : parameters known beforehand, in their stored shapes; the scale is rounded
        to the scheme's scale dtype. Without them they come from the range of `x`.
    weights : the importance of each squared error, such as the diagonal of a Hessian: numbers of 0
        or more that broadcast to the shape of `x`. For learned codebooks and "lsq".
    out : a QTensor of the same scheme and shape to overwrite and return; after an error its
        contents are unspecified.
    backend : "reference", "rust" or "cupy"; by default the type of `x` decides.

    Returns a `QTensor`. Raises `ArgTypeError` and `ArgValueError` naming the argument; NaN and
    infinities are errors that name the first index and the count. Class A: the same bits on
    every backend, SIMD level and number of threads.

    >>> import numpy as np, qrs
    >>> qt = qrs.quantize(np.array([-0.5, 0.0, 1.5], np.float32), "uint8")
    >>> qt.codes.tolist(), int(qt.zero_point), bool(qt.scale == np.float32(2 / 255))
    ([0, 64, 255], 64, True)
    """
    scheme = as_scheme(scheme)
    solve = as_solver(solver)
    check_solver(solve, scheme)
    chosen = backends.resolve(backend, x, scale, zero_point, weights)
    given = plain(x)
    array = as_input(given)
    if out is not None:
        if not isinstance(out, QTensor):
            raise bad("out", f"got {type(out).__name__}", type(out), "a QTensor", ArgTypeError)
        out.check_as_out(scheme, array.shape, [given, scale, zero_point])
    if weights is not None:
        weights = checked_weights(weights, array)
    with Held(array):
        values = as_kernel_float(array)
        try:
            known = (chosen, scale, zero_point, weights, statistics, out)
            if isinstance(scheme, InBasis) and works_in_basis(solve, scheme):
                qt = in_basis(solve, values, scheme, *known)
            else:
                qt = solve(values, scheme, *known)
        except KernelFault as fault:
            raise scheme.explain(fault, values) from None
    if values is not array:
        qt.dtype = "float64"
    return qt


def gptq(
    weight: Any,
    hessian: Any,
    scheme: Scheme | str,
    *,
    damping: float = 0.01,
    act_order: bool | str = True,
    polish: int = 0,
    weights: Any = None,
    backend: str | None = None,
) -> QTensor:
    """Quantize a weight for least error in the output of its layer (Frantar et al., 2023).

    Parameters
    ----------
    weight : (out, in), or (out, in, kernel...) of a convolution, as `x` of `quantize`.
    hessian : the second moments X^T X of the inputs over tokens, or a multiple: float (in, in), or
        (in * kernel, in * kernel); or `Statistics`.
    scheme : integers, fixed codebooks with scales (NF4), or k-means per tensor or row.
    damping, act_order, polish : see `qrs.solvers.GPTQ`.
    weights, backend : as in `quantize`.

    Scales are found before by the scale search, where it fits the scheme, with the diagonal of the
    Hessian for importance. `info` of the result has `damping` (what it took), `dead_inputs` (which
    were always 0, and are rounded to nearest) and `polish_rounds`. Raises `ArgValueError` for a
    Hessian that is of another size, not symmetric, not finite or not positive semidefinite.
    float64 throughout; class B: the same bits on every x86 level and with any number of threads.

    >>> import numpy as np, qrs
    >>> w, h = [[0.4, 0.4, 0.4, 3.0]], np.full((4, 4), 4.0) + np.eye(4)
    >>> given = qrs.quantize(w, "int3-axis0", scale=[1.0], solver="gptq", statistics=h)
    >>> given.codes.tolist()  # inputs that move together: of three times 0.4, one is 1
    [[0, 1, 0, 3]]
    """
    solver = GPTQ(damping, act_order, polish)
    return quantize(
        weight, scheme, solver=solver, weights=weights, statistics=hessian, backend=backend
    )


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
    out : an array of that shape and dtype, writable and in C order, to fill and return; after an
        error its contents are unspecified.
    backend : as in `quantize`.

    >>> import qrs
    >>> qrs.dequantize(qrs.quantize([[0.0, 1.0, 2.0]], "uint8")).tolist()
    [[0.0, 0.9960784912109375, 2.0]]
    """
    if not isinstance(qt, QTensor):
        raise bad("qt", f"got {type(qt).__name__}", type(qt), "a QTensor", ArgTypeError)
    return qt.dequantize(dtype, out=out, backend=backend)


@reports_memory
def fake_quantize(
    x: Any,
    scheme: Scheme | str,
    *,
    scale: Any = None,
    zero_point: Any = None,
    out: Array | None = None,
    backend: str | None = None,
) -> Array:
    """`dequantize(quantize(x, scheme))` in one pass, in the dtype of `x`.

    Shapes, errors, `scale`, `zero_point` and `backend` as in `quantize`; `out` as in `dequantize`.

    >>> fake_quantize([0.0, 0.4, 1.0], "int2").tolist()
    [0.0, 0.0, 1.0]
    """
    scheme = as_scheme(scheme)
    chosen = backends.resolve(backend, x, scale, zero_point)
    given = plain(x)
    array = as_input(given)
    if out is not None:
        check_out(out, array.shape, DTYPE_NAMES[array.dtype], [given, scale, zero_point])
    with Held(array, out):
        values = as_kernel_float(array)
        target = out if values is array else None
        try:
            x_hat = scheme.fake_quantize(values, chosen, target, scale, zero_point)
        except KernelFault as fault:
            raise scheme.explain(fault, values) from None
    if values is array:
        return x_hat
    return into(out, x_hat.astype(np.float64))
