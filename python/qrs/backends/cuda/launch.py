"""From an operation to launches: which kernels there are, where they run, and what they found.

Kernels run on CuPy's current stream, and nothing waits for them but `Faults.check`, which reads
three words. Nothing here imports cupy: `xp` is it, or a stand-in for it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import product
from typing import Any, Final

import numpy as np

from ...errors import DeviceError, KernelFault, bad
from ...float_formats import FORMATS
from . import source

__all__ = ["KERNELS", "Faults", "Launcher", "Load", "cubins", "name_of"]

Load = Callable[[str, tuple[str, ...]], Any]
"""Family and name expressions -> an object with `get_function(name)`."""


def name_of(kernel: str, *types: Any) -> str:
    """The name expression of an instance of a kernel.

    >>> name_of("quantize_affine_packed", "f16", 4, True), name_of("pack_bits")
    ('quantize_affine_packed<f16, 4, true>', 'pack_bits')
    """
    words = [str(t).lower() if isinstance(t, bool) else str(t) for t in types]
    return f"{kernel}<{', '.join(words)}>" if words else kernel


def _instances(kernel: str, *choices: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(name_of(kernel, *types) for types in product(*choices))


_DTYPES = ("f32", "f16", "bf16")
_FORMATS = tuple(FORMATS)

KERNELS: Final[dict[str, tuple[str, ...]]] = {
    "range": _instances("group_range", _DTYPES),
    "qparams": (
        "choose_qparams_affine",
        "choose_scale_float",
        "choose_scale_codebook",
        "absmax_of_all",
        *_instances("choose_scale_float_nested", _FORMATS),
    ),
    "affine": (
        *_instances("quantize_affine", _DTYPES),
        *_instances("dequantize_affine", _DTYPES),
        *_instances("fake_quantize_affine", _DTYPES),
        *_instances("quantize_affine_packed", _DTYPES, (8, 4), (True, False)),
        *_instances("dequantize_affine_packed", _DTYPES, (8, 4), (True, False)),
    ),
    "pack": ("pack_bits", "unpack_bits"),
    "floats": (
        *_instances("quantize_float", _DTYPES, _FORMATS, (False,)),
        *_instances("quantize_float", _DTYPES, ("e2m1",), (True,)),
        *_instances("dequantize_float", _DTYPES, _FORMATS, (False,)),
        *_instances("dequantize_float", _DTYPES, ("e2m1",), (True,)),
    ),
    "codebooks": (
        *_instances("quantize_codebook", _DTYPES, (16, 256, 0)),
        *_instances("dequantize_codebook", _DTYPES, (True, False)),
        *_instances("quantize_codebook_packed", _DTYPES, (16, 256)),
        *_instances("dequantize_codebook_packed", _DTYPES, (4, 8)),
    ),
    "scale_search": (
        *_instances("choose_scale_lsq", _DTYPES, (16, 256)),
        *_instances("sum_chunks", ("float", "double")),
        "center_scales",
    ),
    "products": (
        *_instances("matmul_int8", (True, False)),
        *_instances("conv_int8", (True, False)),
        "dequantize_sums",
        "requantize",
        "requantize_fixed_point",
        *_instances("matmul_grouped", _DTYPES),
        "linear_grouped_int8",
        *_instances("add_matmul", _DTYPES),
        *_instances("column_absmax", _DTYPES),
    ),
    "functional": (
        *_instances("gelu", _DTYPES),
        *_instances("softmax", _DTYPES),
        *_instances("layer_norm", _DTYPES),
    ),
}
"""Every instance that can be asked for, by the file it is in."""

_FAMILY = {name: family for family, names in KERNELS.items() for name in names}
_LEAST_CAPABILITY = 80  # maxima that keep NaN, and halves of bfloat16
_THREADS = 256
_BLOCKS_PER_PROCESSOR = 16
NONFINITE, GROUP, NAN = range(3)  # enum FaultWord in common.cuh


def cubins(xp: Any) -> Load:
    """The loader for real devices: compiles with NVRTC, or takes the cubin from the cache."""

    def load(family: str, names: tuple[str, ...]) -> Any:
        from ..cubin_cache import cached_cubin

        capability = xp.cuda.Device().compute_capability  # "90" for 9.0
        if int(capability) < _LEAST_CAPABILITY:
            found = f"the GPU has compute capability {capability[:-1]}.{capability[-1]}"
            raise DeviceError(f"{found}, the kernels need 8.0 or later", expected="8.0 or later")
        major = xp.cuda.runtime.runtimeGetVersion() // 1000
        path, lowered = cached_cubin(source(family), names, f"sm_{capability}", major=major)
        return _Lowered(xp.RawModule(path=path), lowered)

    return load


class _Lowered:
    """A module whose functions go by their name expressions."""

    def __init__(self, module: Any, lowered: dict[str, str]) -> None:
        self._module, self._lowered = module, lowered

    def get_function(self, name: str) -> Any:
        return self._module.get_function(self._lowered[name])


class Launcher:
    """Loads kernels when they are first asked for, and launches them."""

    def __init__(self, xp: Any, load: Load) -> None:
        self.xp, self._load = xp, load
        self._functions: dict[tuple[str, int], Any] = {}
        self._processors: dict[int, int] = {}

    def on_device_of(self, **arrays: Any) -> AbstractContextManager[Any]:
        """What makes the device of the arrays the current one; they must all be on the same.

        Arguments that are None are left out. Raises `DeviceError` with both devices.
        """
        there = {name: a.device.id for name, a in arrays.items() if a is not None}
        first, device = next(iter(there.items()))
        for name, other in there.items():
            if other != device:
                expected = f"device {device}, where {first} is: nothing is moved inside a call"
                raise bad(name, f"on device {other}", other, expected, DeviceError)
        entered: AbstractContextManager[Any] = self.xp.cuda.Device(device)
        return entered

    def launch(
        self, kernel: str, types: tuple[Any, ...], units: int, *args: Any, threads: int = _THREADS
    ) -> None:
        """Launch for `units` threads' work, on the current device and stream; none for 0.

        Integers go as 64 bits; what a kernel takes as 32 is passed as `np.int32`.
        """
        if units == 0:
            return
        device = self.xp.cuda.Device()
        name = name_of(kernel, *types)
        function = self._functions.get((name, device.id))
        if function is None:
            function = self._load(_FAMILY[name], (name,)).get_function(name)
            self._functions[name, device.id] = function
            self._processors[device.id] = device.attributes["MultiProcessorCount"]
        # Kernels make as many turns as they have to, so that a full device is enough.
        most = self._processors[device.id] * _BLOCKS_PER_PROCESSOR
        grid = min(-(-units // threads), most)
        sent = tuple(np.int64(a) if type(a) is int else a for a in args)
        function((grid,), (threads,), sent)


class Faults:
    """Words in device memory that kernels write what they found to, all zero at first."""

    def __init__(self, xp: Any) -> None:
        self.words = xp.zeros(3, np.uint64)

    def check(self) -> None:
        """Wait for the stream, and raise the fault that comes first.

        That is NaN or an infinity anywhere, then the lowest group: `Fault::or` of rust/error.rs.
        """
        words = self.words.get()
        if words[NONFINITE]:
            raise KernelFault("nonfinite", 0)
        if words[NAN]:
            raise KernelFault("nan", 0)
        if words[GROUP]:
            group, reason = divmod(~int(words[GROUP]) & (2**64 - 1), 2)
            raise KernelFault("decode_overflow" if reason else "scale_overflow", group)
