"""What users may pass to k-means, and the checks on it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import as_input, as_kernel_float, first_index, nonfinite_error
from ..backends.reference import Float32, Reference
from ..checks import checked_integer
from ..devices import on_host
from ..errors import ArgTypeError, KernelFault, bad

Array = NDArray[Any]


def as_points(x: Array) -> Float32:
    """An array of `qrs.arrays.as_input` as float32 points (n, d); a vector is one column."""
    if x.ndim > 2 or (x.ndim == 2 and x.shape[1] == 0):
        raise bad("x", f"got shape {x.shape}", x.shape, "points (n, d) or numbers (n,)")
    points: Float32 = as_kernel_float(x).astype(np.float32, copy=False)
    return points.reshape(len(x), 1 if x.ndim == 1 else x.shape[1])


def as_start(init: Any, shape: tuple[int, int], ndim: int) -> Float32 | None:
    """Centers to start from, on the host; None for k-means++."""
    if isinstance(init, str) and init == "k-means++":
        return None
    if isinstance(init, str):
        raise bad("init", f"got {init!r}", init, f"'k-means++' or centers of shape {shape}")
    given = as_input(init, "init")
    if given.shape != shape and (ndim > 1 or given.shape != shape[:1]):
        raise bad("init", f"got shape {given.shape}", given.shape, shape)
    centers: Float32 = on_host(as_kernel_float(given, "init")).astype(np.float32)
    if not np.isfinite(centers).all():
        raise nonfinite_error(given, "init")
    return centers.reshape(shape)


def as_weights(sample_weight: Any, n: int, backend: Reference) -> Float32 | None:
    """Weights as float32 (n,); None where there are none."""
    if sample_weight is None:
        return None
    arg = "sample_weight"
    given = as_input(sample_weight, arg)
    if given.shape != (n,):
        raise bad(arg, f"got shape {given.shape}", given.shape, f"({n},), one for each point")
    weights: Float32 = as_kernel_float(given, arg).astype(np.float32, copy=False)
    least, most = finite_range(weights, given, arg, backend)
    if least < 0:
        at, where = first_index(on_host(given) < 0)
        raise bad(arg, f"got {float(given[at])}{where}", float(given[at]), "none below 0")
    if most == 0:
        raise bad(arg, "got zeros alone", 0.0, "one above 0 or more")
    return weights


def finite_range(x: Float32, given: Array, arg: str, backend: Reference) -> tuple[float, float]:
    """The least and the greatest of `x` and 0; NaN and infinities are an error about `given`."""
    try:
        lo, hi = backend.group_range(x.reshape(1, -1), x.size)
    except KernelFault:
        raise nonfinite_error(given, arg) from None
    return float(on_host(lo)[0, 0]), float(on_host(hi)[0, 0])


def check_range(x: Float32, given: Array, start: Float32 | None, backend: Reference) -> None:
    """Raise for numbers that are not finite, or so large that squared distances would not be."""
    lo, hi = finite_range(x, given, "x", backend)
    if start is not None:
        lo, hi = min(lo, float(start.min())), max(hi, float(start.max()))
    # Half of what float32 holds, so that rounding cannot matter.
    if x.shape[1] * (hi - lo) ** 2 >= 2.0**127:
        found = f"numbers from {lo:g} to {hi:g} in {x.shape[1]} columns"
        raise bad("x", found, hi, "squared distances below 2**127; scale x down")


def checked_count(value: Any, arg: str, most: int | None = None) -> int:
    """An integer from 1 on, to `most` where that is given."""
    count = checked_integer(value, arg)
    if count < 1 or (most is not None and count > most):
        expected = {
            "k": f"1 to {most}, the number of points",
            "n_init": "1, since init is an array" if most else "1 or more",
        }.get(arg, "1 or more")
        raise bad(arg, f"got {count}", count, expected)
    return count


def checked_tolerance(tol: Any) -> float:
    """A number from 0 on."""
    is_number = isinstance(tol, (int, float, np.integer, np.floating)) and not isinstance(tol, bool)
    if not is_number:
        raise bad("tol", f"got {tol!r}", tol, "a number", ArgTypeError)
    if not 0 <= tol < np.inf:
        raise bad("tol", f"got {tol}", tol, "a finite number, 0 or more")
    return float(tol)


def checked_seed(seed: Any) -> int:
    """An integer of 64 bits."""
    expected = "an integer from 0 to 2**64 - 1"
    if seed is None:
        expected += ": a result must be one that can be had again"
        raise bad("seed", "got None", None, expected, ArgTypeError)
    seed = checked_integer(seed, "seed")
    if not 0 <= seed < 1 << 64:
        raise bad("seed", f"got {seed}", seed, expected)
    return int(seed)
