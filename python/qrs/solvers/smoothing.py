"""SmoothQuant: outliers of activations moved into the weight, or rotated away, before both are int.

Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
Models", 2023. Input j is divided by s_j = max|X_j|^alpha / max|W_j|^(1 - alpha), and the weight
multiplied. What is best differs from layer to layer (behind a GELU often nothing), so that each is
tried on a sample of inputs; a rotation of blocks (`Rotated`) competes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import backends
from ..arrays import as_input, as_kernel_float, nonfinite_error
from ..backends.reference import Reference
from ..checks import checked_number
from ..errors import ArgTypeError, bad
from ..qtensor import QTensor
from ..schemes import ColumnScaled, Rotated, Scheme, as_scheme
from ..schemes.checks import refuse_first

Float32 = NDArray[np.float32]

ALPHAS = tuple(step / 20 for step in range(21))
LARGEST_BLOCK = 128


@dataclass(frozen=True)
class Smoothing:
    """What was chosen for a layer, and what there was to choose from.

    `kind` is "none", "smooth" (then with its `alpha`) or "rotated"; `qt` the weight, in its basis;
    `errors` the squared error of the output over its square, for each that was tried.
    """

    kind: str
    alpha: float | None
    qt: QTensor
    errors: dict[str, float]


def smooth_scale(absmax: Any, weight: Any, alpha: float) -> Float32:
    """The factors c = 1 / s of the inputs: max|W_j|^(1 - alpha) / max|X_j|^alpha; 1 for alpha 0.

    `absmax` (in,) is max|X_j|, as `Statistics` have it, and `weight` (out, in) the weight, or all
    weights that share the input, one below the other. Inputs or columns of zeros have a factor of
    1; with alpha 0, which means no smoothing here, all have.

    >>> smooth_scale([4.0, 1.0], [[1.0, 1.0], [0.5, -1.0]], 0.5).tolist()
    [0.5, 1.0]
    """
    x = np.asarray(absmax, np.float64)
    w = np.abs(np.asarray(weight, np.float64)).max(axis=0, initial=0.0)
    for name, given in (("absmax", x), ("weight", w)):
        wrong = ~(np.isfinite(given) & (given >= 0))
        refuse_first(wrong, given, name, "finite magnitudes, 0 or more")
    if x.shape != w.shape:
        raise bad("absmax", f"got shape {x.shape}", x.shape, f"{w.shape}, as the weight has inputs")
    if not 0 <= checked_number(alpha, "alpha") <= 1:
        raise bad("alpha", f"got {alpha!r}", alpha, "a number from 0 to 1")
    usable = (x > 0) & (w > 0) & (alpha > 0)
    safe_x, safe_w = np.where(usable, x, 1.0), np.where(usable, w, 1.0)
    with np.errstate(over="ignore", under="ignore"):
        factors = np.where(usable, safe_w ** (1 - alpha) / safe_x**alpha, 1.0)
    # Any factor above 0 is one: those beyond float32 become its least or greatest.
    limits = np.finfo(np.float32)
    found: Float32 = np.clip(factors, float(limits.tiny), float(limits.max)).astype(np.float32)
    return found


def smooth(
    weight: Any,
    x: Any,
    scheme: Scheme | str = "int8-axis0",
    *,
    activation: Scheme | str = "int8-axis0",
    alphas: Sequence[float] = ALPHAS,
    rotate: bool = True,
    backend: str | None = None,
) -> Smoothing:
    """Choose how a layer with quantized activations is smoothed, by its real output error.

    Parameters
    ----------
    weight : (out, in) floats.
    x : a sample of inputs (rows, in), floats; some hundred rows are enough.
    scheme, activation : of the weight, and of x in each call: "int8-axis0" is per token.
    alphas : powers to try, from 0 to 1; 0, no smoothing, is always tried. Those with which a weight
        or an input overflows are not.
    rotate : whether the rotation of blocks competes, of 128 inputs or the largest power of two that
        divides them.

    `nn.Linear(result.qt, activation=activation)` is the layer. Raises `ArgValueError` for shapes
    that do not fit, NaN and infinities.

    >>> r = np.random.default_rng(0)
    >>> w, x = r.standard_normal((32, 64)), r.standard_normal((200, 64))
    >>> x[:, 3] *= 100  # one input with outliers
    >>> s = smooth(w, x)
    >>> s.kind, s.errors[s.kind] < 0.1 * s.errors["none"]
    ('smooth', True)
    """
    w = _checked("weight", weight)
    rows = _checked("x", x)
    if rows.shape[1] != w.shape[1] or 0 in (*rows.shape, *w.shape):
        expected = f"(rows, {w.shape[1]}), with a row and an input at least"
        raise bad("x", f"got shape {rows.shape} for a weight {w.shape}", rows.shape, expected)
    inner, of_x = as_scheme(scheme), as_scheme(activation)
    ops = backends.resolve(backend, w)
    absmax = np.abs(rows).max(axis=0)
    target = rows.astype(np.float64) @ w.astype(np.float64).T
    tried: dict[str, tuple[float | None, QTensor, float]] = {}
    for alpha in _checked_alphas(alphas):
        basis = ColumnScaled(inner)
        own = {"column_scale": smooth_scale(absmax, w, alpha)}
        found = _tried(basis, own, w, rows, of_x, target, ops)
        kind = "smooth" if alpha else "none"
        if found is not None and (kind not in tried or found[1] < tried[kind][2]):
            qt, error = found
            tried[kind] = alpha or None, qt if alpha else basis.tensor(qt), error
    block = min(w.shape[1] & -w.shape[1], LARGEST_BLOCK)
    if rotate and block > 1:
        found = _tried(Rotated(inner, block), {}, w, rows, of_x, target, ops)
        if found is not None:
            tried["rotated"] = None, *found
    best = min(tried, key=lambda kind: tried[kind][2])
    alpha_found, qt, _ = tried[best]
    return Smoothing(best, alpha_found, qt, {kind: some[2] for kind, some in tried.items()})


def _checked_alphas(alphas: Any) -> list[float]:
    """0 and these, ascending; whether they are from 0 to 1 is for `smooth_scale` to say."""
    if isinstance(alphas, str) or not np.iterable(alphas):
        raise bad("alphas", f"got {alphas!r}", alphas, "numbers from 0 to 1", ArgTypeError)
    return sorted({0.0, *(checked_number(alpha, "alphas") for alpha in alphas)})


def _tried(
    basis: ColumnScaled | Rotated,
    own: dict[str, Any],
    w: Float32,
    rows: Float32,
    activation: Scheme,
    target: NDArray[np.float64],
    ops: Reference,
) -> tuple[QTensor, float] | None:
    """The weight in a basis with these parts of its own, and the squared error of the output with
    quantized inputs, over the square of the output; None where a weight or an input overflows.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        changed, x = basis.weight_into(w, own), basis.input_into(rows, own)
    if not (np.isfinite(changed).all() and np.isfinite(x).all()):
        return None
    stored = basis.inner.quantize(changed, ops)
    x_hat = activation.fake_quantize(x, ops).astype(np.float64)
    y = x_hat @ basis.inner.dequantize(stored, "float32", ops).astype(np.float64).T
    whole = max(float(np.sum(target**2)), np.finfo(float).tiny)
    return basis.of(stored, own), float(np.sum((y - target) ** 2) / whole)


def _checked(name: str, array: Any) -> Float32:
    """Two axes of finite floats."""
    values = as_kernel_float(as_input(array, name), name).astype(np.float32)
    if values.ndim != 2:
        raise bad(name, f"got shape {values.shape}", values.shape, "two axes")
    if not np.isfinite(values).all():
        raise nonfinite_error(values, name)
    found: Float32 = np.ascontiguousarray(values)
    return found
