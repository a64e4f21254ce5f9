"""What stands between layers: `gelu`, `softmax`, `layer_norm`, for arrays of any shape.

Class A: the same bits on every backend, SIMD level and number of threads. Results have the dtype of
`x`; NaN and infinities are errors that name the first index.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import backends
from ..arrays import (
    Array,
    Held,
    as_input,
    as_kernel_float,
    nonfinite_error,
    plain,
    reports_memory,
    rows_of,
)
from ..backends.reference import Float32, Reference
from ..checks import checked_integer, checked_number
from ..devices import contiguous, library_of, on_host
from ..errors import ArgTypeError, KernelFault, bad

__all__ = ["gelu", "layer_norm", "softmax"]


@reports_memory
def gelu(x: Any, *, backend: str | None = None) -> Array:
    """x Phi(x), with the normal distribution function Phi (Hendrycks and Gimpel 2016).

    Within 2.4e-7 max(|x|, 1) in float32.

    >>> gelu([-1.0, 0.0, 1.0]).round(4).tolist()
    [-0.1587, 0.0, 0.8413]
    """
    return _on_rows(x, -1, backend, lambda ops, rows: ops.gelu(rows))


@reports_memory
def softmax(x: Any, axis: int = -1, *, backend: str | None = None) -> Array:
    """exp(x) over the sum of exp(x) along an axis.

    >>> softmax([0.0, 0.0, -200.0]).tolist()
    [0.5, 0.5, 0.0]
    """
    return _on_rows(x, axis, backend, lambda ops, rows: ops.softmax(rows))


@reports_memory
def layer_norm(
    x: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *, backend: str | None = None
) -> Array:
    """(x - mean) / sqrt(variance + eps) * weight + bias along the last axis (Ba et al. 2016).

    weight, bias: (features,), by default 1 and 0. Raises `ArgValueError` where the variance of a
    row overflows float32, or is 0 and `eps` too.

    >>> layer_norm([[1.0, 1.0, 3.0, 3.0]], eps=0.0).tolist()
    [[-1.0, -1.0, 1.0, 1.0]]
    """
    number = checked_number(eps, "eps")
    if number > float(np.finfo(np.float32).max):
        raise bad("eps", f"got {eps!r}", eps, "a number within float32")

    def normalized(ops: Reference, rows: Array) -> Array:
        w, b = (
            _vector(name, given, default, rows)
            for name, given, default in (("weight", weight, 1), ("bias", bias, 0))
        )
        with np.errstate(over="ignore", invalid="ignore"):
            y = ops.layer_norm(rows, w, b, number)
        return _checked_rows(y, rows, number)

    return _on_rows(x, -1, backend, normalized)


def _checked_rows(y: Array, rows: Array, eps: float) -> Array:
    """`y`; raises where a row was divided by 0, or overflows."""
    wrong = on_host(~library_of(y).isfinite(y).all(axis=1))
    if not wrong.any():
        return y
    row = int(np.argmax(wrong))
    x = on_host(rows[row]).astype(np.float32)
    if np.float32(eps) == 0 and np.square(x - x.mean(), dtype=np.float32).mean() == 0:
        raise bad("eps", f"got {eps}, and the variance of row {row} is 0", eps, "a number above 0")
    found = f"the result of row {row} overflows {y.dtype}"
    raise bad("x", found, row, "smaller numbers, weight and bias")


def _on_rows(
    x: Any, axis: int, backend: str | None, function: Callable[[Reference, Array], Array]
) -> Array:
    """`function` of the rows along `axis`."""
    axis = checked_integer(axis, "axis")
    given = as_input(plain(x))
    if not -given.ndim <= axis < given.ndim:
        found = f"got {axis} for shape {given.shape}"
        raise bad("axis", found, axis, f"{-given.ndim} to {given.ndim - 1}")
    ops = backends.resolve(backend, given)
    with Held(given):
        values = as_kernel_float(given)
        xp = library_of(values)
        turned = contiguous(xp.moveaxis(values, axis, -1))
        if turned.size == 0:
            return contiguous(xp.empty_like(given))
        try:
            rows = function(ops, rows_of(turned))
        except KernelFault as fault:
            if fault.reason == "nonfinite":
                raise nonfinite_error(values) from None
            found, expected = f"the variance of row {fault.group} overflows", "smaller numbers"
            raise bad("x", found, fault.group, expected) from None
    y = contiguous(xp.moveaxis(rows.reshape(turned.shape), -1, axis))
    return y if values is given else y.astype(given.dtype)


def _vector(name: str, given: Any, default: int, rows: Array) -> Float32:
    """A number for each feature: (1, features) float32, where the rows are."""
    features = rows.shape[1]
    if given is None:
        filled: Float32 = library_of(rows).full((1, features), default, np.float32)
        return filled
    vector = as_kernel_float(as_input(given, name), name)
    if library_of(vector) is not library_of(rows):
        raise bad(name, f"got {type(vector)}", type(vector), f"like x, {type(rows)}", ArgTypeError)
    if vector.shape != (features,):
        raise bad(name, f"got shape {vector.shape}", vector.shape, f"({features},)")
    if not library_of(vector).isfinite(vector).all():
        raise nonfinite_error(vector, name)
    return vector.astype(np.float32).reshape(1, features)
