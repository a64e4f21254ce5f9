"""Second moments of a layer's inputs, as solvers take them: H = X^T X over tokens, or a multiple.

The error that quantizing a weight W (out, in) leaves in the output of its layer is
tr(E H E^T), E = W - W_hat: the sum of the squared differences over all tokens that were seen.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import first_index, plain
from ..devices import on_host
from ..errors import ArgTypeError, bad
from ..statistics import Statistics

Float64 = NDArray[np.float64]

ASYMMETRY = 1e-5
"""How far from symmetric a Hessian may be, of its greatest element: sums in float32 are."""

TILE = 256


def checked_hessian(statistics: Any, features: int, name: str = "statistics") -> Float64:
    """The Hessian (features, features) of `Statistics` or of an array, float64 and symmetric.

    Raises `ArgTypeError` and `ArgValueError` naming `name` for other types and shapes, for NaN and
    infinities, a negative diagonal, one of zeros alone, products with an input whose own square is
    0, and a matrix that is not symmetric.

    >>> checked_hessian([[2.0, 1.0], [1.0, 2.0]], 2).tolist()
    [[2.0, 1.0], [1.0, 2.0]]
    >>> checked_hessian([[2.0, 1.0], [1.0, -2.0]], 2)
    Traceback (most recent call last):
    ...
    qrs.errors.ArgValueError: statistics: the diagonal is -2.0 at index 1, expected sums of squares
    """
    if isinstance(statistics, Statistics):
        if statistics.hessian is None:
            found = f"got {statistics!r}"
            raise bad(name, found, statistics, "Statistics(hessian=True) that has seen data")
        statistics = statistics.hessian
    expected = f"second moments of shape ({features}, {features})"
    given = on_host(plain(statistics, name))
    if given.dtype.kind not in "fiu":
        raise bad(name, f"got dtype {given.dtype}", given.dtype, "real numbers", ArgTypeError)
    if given.shape != (features, features):
        raise bad(name, f"got shape {given.shape}", given.shape, expected)
    hessian = np.ascontiguousarray(given, np.float64)
    _check_numbers(hessian, name)
    return hessian if _checked_asymmetry(hessian, name) == 0 else (hessian + hessian.T) / 2


def _check_numbers(hessian: Float64, name: str) -> None:
    """Raise where these are no second moments."""
    wrong = ~np.isfinite(hessian)
    if wrong.any():
        at, where = first_index(wrong)
        raise bad(name, f"{hessian[at]}{where}", float(hessian[at]), "finite numbers")
    diagonal = np.diagonal(hessian)
    if (diagonal < 0).any():
        at = int(np.argmax(diagonal < 0))
        found = f"the diagonal is {diagonal[at]} at index {at}"
        raise bad(name, found, float(diagonal[at]), "sums of squares")
    if hessian.size and not diagonal.any():
        raise bad(name, "has a diagonal of zeros", 0.0, "the moments of inputs that are not all 0")
    dead = np.flatnonzero(diagonal == 0)
    products = np.abs(hessian[dead]).max(axis=1, initial=0.0)
    if products.any() and products.max() > ASYMMETRY * _greatest(hessian):
        worst = int(np.argmax(products))
        found = f"the diagonal is 0 at index {dead[worst]}, beside products of {products[worst]}"
        raise bad(name, found, float(products[worst]), "second moments X^T X: a row of zeros there")


def _checked_asymmetry(hessian: Float64, name: str) -> float:
    """The greatest difference of two elements that mirror each other; raises where it is large."""
    worst, where = 0.0, (0, 0)
    for i in range(0, len(hessian), TILE):  # tiles, since columns are far apart in memory
        for j in range(i, len(hessian), TILE):
            rows, columns = slice(i, i + TILE), slice(j, j + TILE)
            apart = np.abs(hessian[rows, columns] - hessian[columns, rows].T)
            if apart.max() > worst:
                row, column = np.unravel_index(int(np.argmax(apart)), apart.shape)
                worst, where = float(apart.max()), (i + int(row), j + int(column))
    if worst > ASYMMETRY * _greatest(hessian):
        there, back = hessian[where], hessian[where[::-1]]
        found = f"is not symmetric: {there} at {where}, {back} at {where[::-1]}"
        raise bad(name, found, worst, "X^T X")
    return worst


def _greatest(hessian: Float64) -> float:
    """The greatest magnitude."""
    return float(max(hessian.max(initial=0.0), -hessian.min(initial=0.0)))


def relative(diagonal: Float64) -> Float64:
    """A diagonal over its greatest: importance, whatever the multiple of the moments.

    >>> relative(np.array([1e-60, 2e-60])).tolist()
    [0.5, 1.0]
    """
    greatest = float(diagonal.max(initial=0.0))
    return diagonal / greatest if greatest else diagonal


def output_error(weight: Any, weight_hat: Any, hessian: Any) -> float:
    """The relative squared error of a layer's output: tr(E H E^T) / tr(W H W^T), E = W - W_hat.

    `weight` and `weight_hat` are (out, in), or have more axes behind the first, which count as
    one; `hessian` (in, in) as in `qrs.gptq`. Products in float64 are numpy's. 0 where there is no
    error, NaN where the output is 0 and there is one. Raises what `qrs.gptq` raises for a Hessian,
    and where it makes the square of an output negative.

    >>> output_error([[3.0, 1.0]], [[3.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]])
    0.1
    """
    w = np.asarray(plain(weight, "weight"), np.float64)
    w_hat = np.asarray(plain(weight_hat, "weight_hat"), np.float64)
    if w.ndim < 2 or w.shape != w_hat.shape:
        found = f"got shapes {w.shape} and {w_hat.shape}"
        raise bad("weight_hat", found, w_hat.shape, "the shape (out, in) of weight")
    rows = len(w), math.prod(w.shape[1:])
    w, w_hat = w.reshape(rows), w_hat.reshape(rows)
    h = checked_hessian(hessian, w.shape[1], "hessian")
    error = quadratic_form(w - w_hat, h)
    whole = quadratic_form(w, h)
    return error / whole if whole else (float("nan") if error else 0.0)


def quadratic_form(x: Float64, h: Float64) -> float:
    """tr(x h x^T), the product numpy's; raises where it is negative, and not by rounding."""
    found = float(np.einsum("ij,ij->", x @ h, x))
    if found < 0:
        magnitude = np.abs(x)
        if -found > ASYMMETRY * float(np.einsum("ij,ij->", magnitude @ np.abs(h), magnitude)):
            expected = "X^T X of inputs, which is positive semidefinite"
            raise bad("hessian", f"gives outputs the square {found:.6g}", found, expected)
    return max(found, 0.0)
