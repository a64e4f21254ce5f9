"""Backends: who does the arithmetic, and which one a call gets.

The type of the array picks the backend (numpy -> rust, CuPy -> cupy); `backend=` or the environment
variable QRS_BACKEND override it. Arrays never move between devices, and a missing backend is an
error, never a silent detour. What only the GPU needs is imported when somebody asks for it.
"""

from __future__ import annotations

import importlib
import os
from functools import cache
from typing import Any

import numpy as np

from ..checks import check_subnormals, checked_integer
from ..devices import is_on_gpu
from ..errors import ArgTypeError, DeviceError, QrsError, bad
from .reference import OPERATIONS, Reference

__all__ = [
    "OPERATIONS",
    "available",
    "describe",
    "get",
    "num_threads",
    "of",
    "resolve",
    "set_num_threads",
    "simd_level",
    "simd_levels",
]

NAMES = ("reference", "rust", "cupy")


@cache
def get(name: str) -> Reference:
    """The backend of that name; `DeviceError` says why it is missing and what would fix it."""
    if name == "reference":
        return Reference()
    if name == "rust":
        reason, fix = _missing_rust()
        if reason is None:
            from .rust import Rust

            return Rust()
    elif name == "cupy":
        from . import cupy

        reason, fix = cupy.missing()
        if reason is None:
            return cupy.Cupy()
    else:
        raise bad("backend", f"got {name!r}", name, f"one of: {', '.join(NAMES)}")
    problem = f"backend {name!r} is not available: {reason}; fix: {fix}"
    raise DeviceError(problem, arg="backend", value=name, expected=fix)


def of(array: Any) -> Reference:
    """The backend for an array, by its type alone and QRS_BACKEND."""
    return resolve(None, array)


def resolve(backend: str | None, *arrays: Any) -> Reference:
    """The backend of a call: from `backend`, else QRS_BACKEND, else the type of the arrays.

    Raises `DeviceError` where the arrays belong to another library than the backend computes on.
    """
    on_gpu = {is_on_gpu(a) for a in arrays if isinstance(a, np.ndarray) or is_on_gpu(a)}
    if len(on_gpu) > 1:
        raise bad("x", "numpy and CuPy in one call", None, "arrays of one library", DeviceError)
    library = "CuPy" if True in on_gpu else "numpy"
    name, source = backend, "backend"
    if name is None:
        name, source = os.environ.get("QRS_BACKEND") or None, "QRS_BACKEND"
    if name is None:
        return get("cupy" if library == "CuPy" else "rust")
    if not isinstance(name, str):
        raise bad("backend", f"got {name!r}", name, "a string", ArgTypeError)
    if name not in NAMES:
        raise bad(source, f"got {name!r}", name, f"one of: {', '.join(NAMES)}")
    chosen = get(name)
    if name == "reference":
        check_subnormals(source, "'reference'", "'rust'")
    if on_gpu and (library == "CuPy") != (name == "cupy"):
        found = f"{name!r} does not compute on {library} arrays"
        expected = "arrays on its device: nothing is moved inside a call"
        raise bad(source, found, name, expected, DeviceError)
    return chosen


def available() -> list[str]:
    """Names of the backends that work here.

    >>> "reference" in available()
    True
    """
    return [entry["name"] for entry in describe() if entry["available"]]


def _overrides(kind: type, op: str) -> bool:
    return getattr(kind, op) is not getattr(Reference, op)


def describe() -> list[dict[str, Any]]:
    """Each backend: name, available, reason and fix where it is missing, its own operations.

    "Its own" are those that it overrides; the reference has them all.
    """
    rows: list[dict[str, Any]] = []
    for name in NAMES:
        reason: str | None = None
        fix: str | None = None
        operations: list[str] = []
        try:
            kind = type(get(name))
            operations = [op for op in OPERATIONS if kind is Reference or _overrides(kind, op)]
        except DeviceError:
            reason, fix = _missing_rust() if name == "rust" else _missing_cupy()
        except QrsError as error:  # the environment asks the extension for what it cannot do
            reason, fix = str(error), f"unset {error.arg}"
        rows.append(
            {
                "name": name,
                "available": reason is None,
                "reason": reason,
                "fix": fix,
                "operations": operations,
            }
        )
    return rows


def simd_level() -> str:
    """The SIMD level in use: baseline, avx2, avxvnni, avx512 or amx.

    QRS_SIMD may lower it. Results do not depend on it.
    """
    return str(_extension().simd_level())


def simd_levels() -> list[str]:
    """The SIMD levels of this CPU, from the lowest."""
    return list(_extension().simd_levels())


def num_threads() -> int:
    """How many threads the Rust backend uses."""
    return int(_extension().num_threads())


def set_num_threads(n: int) -> None:
    """Use `n` threads, 1 or more, from now on; QRS_NUM_THREADS sets the start.

    Results do not depend on it. Raises `ArgTypeError` or `ArgValueError` for other values.

    >>> set_num_threads(num_threads())
    """
    _extension().set_num_threads(checked_integer(n, "n"))


def _extension() -> Any:
    get("rust")
    return importlib.import_module("qrs._qrs")


def _missing_rust() -> tuple[str | None, str | None]:
    try:
        importlib.import_module("qrs._qrs")
    except ImportError as error:
        return (
            f"the extension module does not load: {error}",
            "pip install --force-reinstall qrs-quant",
        )
    return None, None


def _missing_cupy() -> tuple[str | None, str | None]:
    from . import cupy

    return cupy.missing()
