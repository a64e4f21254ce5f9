"""A stand-in for CuPy on numpy arrays, as strict as CuPy is; fit to be `sys.modules["cupy"]`.

It has what qrs uses and no more, so that whatever else qrs would reach for is an AttributeError. An
array wraps a numpy array and is none: `np.asarray(x)` is a TypeError, and so is arithmetic with
numpy arrays. Memory that nobody wrote is full of 0xA5. There are as many devices as `devices(n)`
says; a kernel on another device than its arrays are on is an error.
"""

from __future__ import annotations

import ctypes
import operator
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np

from cuda_cpu.cpu_module import SANITIZE

__version__ = "14.2.0"
POISON = 0xA5
# Of CuPy's memory pool. Under the sanitizers arrays end where their memory does, which they watch.
ALIGNMENT = 0 if os.environ.get(SANITIZE) else 512

_state = SimpleNamespace(devices=1, current=0)
float32, float16, int8, uint8, int32, int64, uint64 = (
    np.float32, np.float16, np.int8, np.uint8, np.int32, np.int64, np.uint64,
)  # fmt: skip


class CUDARuntimeError(RuntimeError):
    """What CuPy raises where the CUDA runtime reports an error."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name}: as a driver says it")


class Device:
    """A device, and the context in which it is the current one."""

    def __init__(self, device: int | Device | None = None) -> None:
        self.id = _state.current if device is None else int(getattr(device, "id", device))
        self._before: list[int] = []

    def __enter__(self) -> Device:
        if not 0 <= self.id < _state.devices:
            raise CUDARuntimeError("cudaErrorInvalidDevice")
        self._before.append(_state.current)
        _state.current = self.id
        return self

    def __exit__(self, *_: object) -> None:
        _state.current = self._before.pop()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"

    @property
    def compute_capability(self) -> str:
        return "90"

    @property
    def attributes(self) -> dict[str, int]:
        return {"MultiProcessorCount": 2}


@contextmanager
def devices(count: int) -> Iterator[None]:
    """Play a machine with so many devices; 0 is one without."""
    before = _state.devices
    _state.devices = count
    try:
        yield
    finally:
        _state.devices, _state.current = before, 0


def _device_count() -> int:
    if _state.devices == 0:
        raise CUDARuntimeError("cudaErrorNoDevice")
    return _state.devices


cuda = SimpleNamespace(
    Device=Device,
    is_available=lambda: _state.devices > 0,
    runtime=SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        getDeviceCount=_device_count,
        runtimeGetVersion=lambda: 13020,
        driverGetVersion=lambda: 13000,
    ),
)


class ndarray:
    """An array on a device."""

    __module__ = "cupy"
    __array_ufunc__ = None
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, host: np.ndarray, device: int | None = None) -> None:
        self._host = host
        self._device = _state.current if device is None else device

    # What kernels see.

    @property
    def data(self) -> SimpleNamespace:
        return SimpleNamespace(ptr=self._host.ctypes.data, device=self.device)

    @property
    def device(self) -> Device:
        return Device(self._device)

    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    size = property(lambda self: self._host.size)
    ndim = property(lambda self: self._host.ndim)
    nbytes = property(lambda self: self._host.nbytes)
    itemsize = property(lambda self: self._host.itemsize)
    strides = property(lambda self: self._host.strides)

    @property
    def flags(self) -> SimpleNamespace:
        flags = self._host.flags
        return SimpleNamespace(
            c_contiguous=flags.c_contiguous, f_contiguous=flags.f_contiguous, owndata=flags.owndata
        )

    # To the host, only when asked.

    def get(self) -> np.ndarray:
        return self._host.copy()

    def item(self) -> Any:
        return self._host.item()

    def tolist(self) -> Any:
        return self._host.tolist()

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed."
            " Please use `.get()` to construct a NumPy array explicitly."
        )

    def __len__(self) -> int:
        return len(self._host)

    def __bool__(self) -> bool:
        return bool(self._host)

    def __int__(self) -> int:
        return int(self._host)

    def __float__(self) -> float:
        return float(self._host)

    # Views and copies on its device.

    def _like(self, host: np.ndarray) -> ndarray:
        return ndarray(np.asarray(host), self._device)

    def view(self, dtype: Any) -> ndarray:
        _known(dtype)
        return self._like(self._host.view(dtype))

    def reshape(self, *shape: Any) -> ndarray:
        return self._like(self._host.reshape(*shape))

    def ravel(self) -> ndarray:
        return self._like(self._host.ravel())

    def transpose(self, *axes: Any) -> ndarray:
        return self._like(self._host.transpose(*axes))

    T = property(lambda self: self.transpose())

    def astype(self, dtype: Any, order: str = "K", copy: bool = True) -> ndarray:
        if not copy and self.dtype == np.dtype(dtype):
            return self
        return self._like(_pooled(self._host.astype(dtype, order)))

    def copy(self, order: str = "C") -> ndarray:
        return self._like(_pooled(self._host.copy(order)))

    def __getitem__(self, key: Any) -> ndarray:
        return self._like(self._host[_unwrapped(self, key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self._host[_unwrapped(self, key)] = _unwrapped(self, value)

    def any(self) -> ndarray:
        return self._like(self._host.any())

    def all(self) -> ndarray:
        return self._like(self._host.all())

    def max(self) -> ndarray:
        return self._like(self._host.max())

    def min(self, axis: int | None = None) -> ndarray:
        return self._like(self._host.min(axis))

    def argmin(self, axis: int | None = None) -> ndarray:
        return self._like(self._host.argmin(axis))

    def argmax(self) -> ndarray:
        return self._like(self._host.argmax())

    def sum(self, axis: int) -> ndarray:
        return self._like(self._host.sum(axis))


def _operator(name: str) -> Callable[[ndarray, Any], ndarray]:
    function = getattr(operator, name)

    def apply(self: ndarray, other: Any) -> ndarray:
        return self._like(_pooled(np.asarray(function(self._host, _unwrapped(self, other)))))

    return apply


for _name in (
    "add",
    "sub",
    "mul",
    "lshift",
    "rshift",
    "lt",
    "le",
    "gt",
    "ge",
    "eq",
    "ne",
    "and_",
    "or_",
    "xor",
):
    setattr(ndarray, f"__{_name.rstrip('_')}__", _operator(_name))
ndarray.__invert__ = lambda self: self._like(_pooled(~self._host))


def _known(dtype: Any) -> None:
    """CuPy takes bfloat16 of ml_dtypes, and no other of its dtypes."""
    if np.dtype(dtype).name.startswith(("float8", "float4")):
        raise ValueError(f"Unsupported dtype {np.dtype(dtype)}")


def _unwrapped(beside: ndarray | None, value: Any) -> Any:
    """The numpy array in one of ours; a TypeError for numpy's own, as CuPy says it."""
    if isinstance(value, tuple):
        return tuple(_unwrapped(beside, v) for v in value)
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    if not isinstance(value, ndarray):
        return value
    if beside is not None and value._device != beside._device:
        raise ValueError(f"Array device must be same: {value._device} and {beside._device}")
    return value._host


def _pooled(host: np.ndarray) -> np.ndarray:
    """A copy where CuPy's pool would put it."""
    fresh = _allocate(host.shape, host.dtype)
    if host.flags.f_contiguous and not host.flags.c_contiguous:
        fresh = _allocate(host.T.shape, host.dtype).T
    fresh[...] = host
    return fresh


def _allocate(shape: Any, dtype: Any) -> np.ndarray:
    """Memory in C order at an address like those of CuPy's pool, full of 0xA5."""
    dtype = np.dtype(dtype)
    _known(dtype)
    shape = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
    count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = np.full(count + ALIGNMENT, POISON, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT if ALIGNMENT else 0
    return memory[start : start + count].view(dtype).reshape(shape)


def empty(shape: Any, dtype: Any = float) -> ndarray:
    _device_count()
    return ndarray(_allocate(shape, dtype))


def zeros(shape: Any, dtype: Any = float) -> ndarray:
    return full(shape, 0, dtype)


def full(shape: Any, value: Any, dtype: Any = None) -> ndarray:
    array = empty(shape, np.asarray(value).dtype if dtype is None else dtype)
    array._host[...] = value
    return array


def asarray(value: Any, dtype: Any = None) -> ndarray:
    """To the current device: what is there already stays, the rest is copied."""
    _device_count()
    interface = getattr(value, "__cuda_array_interface__", None)
    if interface is not None:
        kind = np.dtype(interface["typestr"])
        count = int(np.prod(interface["shape"])) * kind.itemsize
        memory = (ctypes.c_char * count).from_address(interface["data"][0])
        return ndarray(np.frombuffer(memory, kind).reshape(interface["shape"]))
    if isinstance(value, ndarray):
        return value if dtype is None or value.dtype == dtype else value.astype(dtype)
    return ndarray(_pooled(np.asarray(value, dtype)))


array = asarray


def ascontiguousarray(value: ndarray, dtype: Any = None) -> ndarray:
    value = asarray(value, dtype)
    return value if value.flags.c_contiguous else value.copy("C")


def moveaxis(value: ndarray, source: Any, destination: Any) -> ndarray:
    return value._like(np.moveaxis(value._host, source, destination))


def isfinite(value: ndarray) -> ndarray:
    return value._like(np.isfinite(value._host))


def isnan(value: ndarray) -> ndarray:
    return value._like(np.isnan(value._host))


def clip(value: ndarray, least: float, most: float) -> ndarray:
    return value._like(_pooled(np.clip(value._host, least, most)))


def where(condition: ndarray, yes: Any, no: Any) -> ndarray:
    branches = (_unwrapped(condition, yes), _unwrapped(condition, no))
    return condition._like(_pooled(np.where(condition._host, *branches)))


def ones(shape: Any, dtype: Any = float) -> ndarray:
    return full(shape, 1, dtype)


def may_share_memory(a: ndarray, b: ndarray) -> bool:
    return np.may_share_memory(a._host, b._host)


def from_dlpack(value: Any) -> ndarray:
    array = value.__dlpack__()
    assert isinstance(array, ndarray)
    return array


def minimum(a: ndarray, b: ndarray, out: ndarray | None = None) -> ndarray:
    out = empty(a.shape, a.dtype) if out is None else out
    np.minimum(a._host, _unwrapped(a, b), out=out._host)
    return out


def searchsorted(ascending: ndarray, values: ndarray) -> ndarray:
    return values._like(np.searchsorted(_unwrapped(values, ascending), values._host))


def bincount(x: ndarray, weights: ndarray, minlength: int) -> ndarray:
    return x._like(np.bincount(x._host, _unwrapped(x, weights), minlength))


def concatenate(values: Any) -> ndarray:
    first = values[0]
    return first._like(_pooled(np.concatenate([_unwrapped(first, v) for v in values])))


class CountedModule:
    """A module of kernels that counts launches by name, and sees that they run where they can."""

    def __init__(self, module: Any, launches: Counter[str]) -> None:
        self._module, self._launches = module, launches

    def get_function(self, name: str) -> Callable[..., None]:
        function = self._module.get_function(name)

        def launch(grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...]) -> None:
            away = {a.device.id for a in args if isinstance(a, ndarray)} - {_state.current}
            if away:
                raise CUDARuntimeError(f"cudaErrorIllegalAddress on devices {away}")
            if not all(a.flags.c_contiguous for a in args if isinstance(a, ndarray)):
                raise AssertionError(f"{name}: an array that is not in C order")
            self._launches[name] += 1
            function(grid, block, args)

        return launch


def this() -> Any:
    """This module, as the `xp` of a backend."""
    return sys.modules[__name__]
