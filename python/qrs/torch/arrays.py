"""Tensors as arrays and back, in the same memory.

CPU tensors become numpy arrays, CUDA tensors CuPy arrays (by DLPack), so that the backend of the
device does the work. bfloat16, which numpy does not have, is ml_dtypes' dtype there.
"""

from __future__ import annotations

import importlib
from typing import Any

import ml_dtypes
import numpy as np
import torch

from ..errors import ArgTypeError, DeviceError, bad

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

DTYPES = {
    torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16",
    torch.float64: "float64",
}  # fmt: skip
"""Floats that are taken, and their names in qrs."""


def check_floats(x: Any) -> None:
    """Raise `ArgTypeError` for what is no float tensor."""
    if not isinstance(x, torch.Tensor) or x.dtype not in DTYPES:
        found = f"got {x.dtype if isinstance(x, torch.Tensor) else type(x).__name__}"
        raise bad("x", found, type(x), "a float tensor", ArgTypeError)


def as_array(tensor: Any, arg: str = "x") -> Any:
    """The array that shares the memory of a tensor; gradients do not flow through it.

    Raises `ArgTypeError` for what is no tensor, `DeviceError` for devices other than CPU and CUDA.

    >>> t = torch.tensor([1.0, 2.0])
    >>> as_array(t)[0] = 5.0
    >>> t.tolist()
    [5.0, 2.0]
    """
    if not isinstance(tensor, torch.Tensor):
        raise bad(arg, f"got {type(tensor).__name__}", type(tensor), "a torch.Tensor", ArgTypeError)
    plain = tensor.detach()
    if plain.device.type == "cuda":
        return importlib.import_module("cupy").from_dlpack(plain)
    if plain.device.type != "cpu":
        expected = "a tensor on 'cpu' or 'cuda'"
        found = f"is on {str(plain.device)!r}"
        raise bad(arg, found, plain.device, expected, DeviceError)
    if plain.dtype == torch.bfloat16:
        return plain.view(torch.int16).numpy().view(BFLOAT16)
    return plain.numpy()


def as_tensor(array: Any) -> torch.Tensor:
    """The tensor that shares the memory of an array; a copy of one that is not writable.

    >>> as_tensor(np.array([1.0, 2.5], ml_dtypes.bfloat16))
    tensor([1.0000, 2.5000], dtype=torch.bfloat16)
    """
    if not isinstance(array, np.ndarray):
        found: torch.Tensor = torch.from_dlpack(array)
        return found
    if not array.flags.writeable or not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
