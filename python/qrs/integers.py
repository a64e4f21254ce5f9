"""Integer arguments: Python or numpy integers, and nothing that merely looks like one."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from .errors import ArgTypeError


def checked_integer(value: Any, arg: str) -> int:
    """An int from a Python or numpy integer; bool, float and str are refused."""
    if isinstance(value, (bool, np.bool_)) or not hasattr(value, "__index__"):
        raise ArgTypeError(
            f"{arg}: got {value!r}, expected an integer", arg=arg, value=value, expected="int"
        )
    return operator.index(value)
