"""Checks that every layer may need. Those of arrays are in `qrs.arrays`."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

from .errors import ArgTypeError, ArgValueError


def checked_integer(value: Any, arg: str) -> int:
    """An int from a Python or numpy integer; bool, float and str are refused."""
    if isinstance(value, (bool, np.bool_)) or not hasattr(value, "__index__"):
        raise ArgTypeError(
            f"{arg}: got {value!r}, expected an integer", arg=arg, value=value, expected="int"
        )
    return operator.index(value)


def checked_number(value: Any, arg: str) -> float:
    """A finite float of 0 or more from a Python or numpy number; bool and str are refused."""
    number = isinstance(value, (int, float, np.integer, np.floating))
    if not number or isinstance(value, (bool, np.bool_)):
        expected = "a number of 0 or more"
        raise ArgTypeError(
            f"{arg}: got {value!r}, expected {expected}", arg=arg, value=value, expected=expected
        )
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not 0 <= found < math.inf:
        expected = "a finite number of 0 or more"
        raise ArgValueError(
            f"{arg}: got {value!r:.60}, expected {expected}",
            arg=arg,
            value=value,
            expected=expected,
        )
    return found


def check_subnormals(arg: str, value: str, expected: str) -> None:
    """Raise in a thread whose CPU state drops subnormals: numpy's arithmetic would lose them.

    The Rust kernels set that state themselves; the reference, and the conversions from and to
    float64, are numpy's.
    """
    if not np.float64(2.0**-149).astype(np.float32).astype(np.float64).view(np.int64):
        raise ArgValueError(
            f"{arg}: {value} in a thread that flushes subnormals to zero (FTZ or DAZ of the CPU), "
            f"expected {expected}",
            arg=arg,
            value=value,
            expected=expected,
        )
