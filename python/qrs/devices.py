"""Which library an array belongs to, and explicit moves between the host and a GPU.

Nothing here imports CuPy unless an array of a GPU is at hand or asked for, and nothing moves but in
`moved`, `on_host` and what calls them.
"""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

LIBRARIES = ("numpy", "cupy")

_CUDA_DEVICES = (2, 13)
"""kDLCUDA and kDLCUDAManaged: https://dmlc.github.io/dlpack/latest/c_api.html"""


def is_cupy(x: Any) -> bool:
    """Whether `x` is an array of CuPy.

    >>> is_cupy(np.zeros(3))
    False
    """
    return type(x) is not np.ndarray and type(x).__module__.split(".")[0] == "cupy"


def is_on_gpu(x: Any) -> bool:
    """Whether `x` is an array in the memory of a GPU, of CuPy or of any other library."""
    if isinstance(x, np.ndarray):
        return False
    if is_cupy(x):
        return True
    try:
        if hasattr(x, "__cuda_array_interface__"):
            return True
        device = getattr(type(x), "__dlpack_device__", None)
        return device is not None and device(x)[0] in _CUDA_DEVICES
    except Exception:  # whatever a foreign object raises
        return False


def is_array(x: Any) -> bool:
    """Whether `x` is an array of numpy or CuPy."""
    return isinstance(x, np.ndarray) or is_cupy(x)


def is_writable(x: Any) -> bool:
    """Whether results can be written to `x`: in C order, aligned, and not read-only."""
    flags = x.flags  # CuPy's know neither alignment nor read-only arrays
    return bool(
        flags.c_contiguous and getattr(flags, "aligned", True) and getattr(flags, "writeable", True)
    )


def library_of(x: Any) -> Any:
    """The module whose functions take `x`: numpy or cupy.

    >>> library_of(np.zeros(3)).__name__
    'numpy'
    """
    return importlib.import_module("cupy") if is_cupy(x) else np


def device_of(x: Any) -> AbstractContextManager[Any]:
    """What makes the device of `x` the current one; on the host, nothing."""
    device: AbstractContextManager[Any] = x.device if is_cupy(x) else nullcontext()
    return device


def as_cupy(x: Any) -> Array:
    """An array of a GPU as CuPy's, in the same memory."""
    if not is_cupy(x):
        cupy = importlib.import_module("cupy")
        x = cupy.from_dlpack(x) if hasattr(x, "__dlpack__") else cupy.asarray(x)
    array: Array = x
    return array


def dtype_beside(x: Any, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype that numbers of `dtype` have in the library of `x`: itself, or unsigned integers.

    CuPy (14.2) takes bfloat16 of ml_dtypes and no other of its dtypes: there they stay their bits.
    """
    unknown = is_cupy(x) and dtype.name.startswith(("float8", "float4"))
    return np.dtype(f"uint{8 * dtype.itemsize}") if unknown else dtype


def contiguous(x: Array) -> Array:
    """`x` in C order; a copy only where it is not."""
    result: Array = library_of(x).ascontiguousarray(x)
    return result


def on_host(x: Any) -> Array:
    """`x` as a numpy array; from a GPU, a copy."""
    array: Array = x.get() if is_cupy(x) else x
    return array


def moved(x: Any, library: str) -> Any:
    """`x` as an array of numpy or CuPy; `x` itself where it is one."""
    if library == "numpy":
        return on_host(x)
    return x if is_cupy(x) else importlib.import_module("cupy").asarray(x)


def may_share_memory(a: Any, b: Any) -> bool:
    """Whether two arrays may overlap."""
    if is_cupy(a) != is_cupy(b):
        return False
    return bool(library_of(a).may_share_memory(a, b))
