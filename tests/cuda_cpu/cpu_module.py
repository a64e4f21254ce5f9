"""CUDA kernels on the CPU: g++ compiles their source over a shim, and Python launches them.

`CpuModule(...).get_function(name)(grid, block, args)` is called as a function of `cupy.RawModule`
is, with numpy arrays in place of CuPy's. What a GPU would silently take amiss is an error here: a
Python number, a scalar of another size than the parameter's, an empty grid.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from qrs.backends import cuda

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent.parent / "build" / "cuda_cpu"
HEADERS = ("fibers.h", "cuda_cpu.h", "ptx_cpu.h")
EXPORT = '#define EXPORT extern "C" __attribute__((visibility("default")))'
ORDERS = (0, 1, 2, 3, 7, 8)  # lockstep up and down, greedy up and down, two seeds
SANITIZE = "QRS_CUDA_SANITIZE"  # set by sanitize.py

Kernel = Callable[..., None]


class KernelError(RuntimeError):
    """A launch that a GPU would refuse, hang on, or answer with garbage."""


class CpuModule:
    """The kernels of a family, or of any source text, on the CPU.

    `names` are name expressions, such as "quantize<f16, 64>". `order` says which threads run first
    (see fibers.h); None takes QRS_CUDA_ORDER, else 0. It may be changed between launches.
    """

    def __init__(
        self, family_or_source: str, names: Sequence[str], order: int | None = None
    ) -> None:
        self._prepare(family_or_source, names, order)
        self._library = library(self.source + _tail(self.names))

    def _prepare(self, family_or_source: str, names: Sequence[str], order: int | None) -> None:
        text = family_or_source
        self.source = cuda.source(text) if text.isidentifier() else text
        self.names = tuple(names)
        self.order = int(os.environ.get("QRS_CUDA_ORDER", "0")) if order is None else order

    def get_function(self, name: str) -> Kernel:
        """The kernel, called as `kernel(grid, block, args)`."""
        index = self.names.index(name)
        signature = getattr(self._library, f"qrs_signature_{index}")
        signature.restype = ctypes.c_char_p
        launch = getattr(self._library, f"qrs_launch_{index}")
        launch.restype = ctypes.c_char_p
        kinds = signature().decode().split()

        def kernel(grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...]) -> None:
            values = arguments(name, kinds, args)
            pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
            sizes = _sizes(grid), _sizes(block)
            problem = launch(*sizes, pointers, ctypes.c_uint(self.order), _stacks())
            if problem is not None:
                raise KernelError(f"{name}: {problem.decode()}")

        return kernel


def arguments(name: str, kinds: Sequence[str], args: tuple[Any, ...]) -> list[Any]:
    """The arguments of a kernel as C values; TypeError where one is not what its parameter is.

    `kinds` has "p" for a pointer, else a letter and a size: "i8" for long long, "f4" for float.
    PTX does not tell everything: its "q8" is a pointer or an integer, its "i1" may be a bool.
    """
    if not isinstance(args, tuple) or len(args) != len(kinds):
        raise TypeError(f"{name}: takes a tuple of {len(kinds)} arguments, got {args!r}")
    return [
        _pointer(name, i, arg)
        if kind == "p" or (kind == "q8" and not isinstance(arg, np.generic))
        else _scalar(name, i, kind, arg)
        for i, (kind, arg) in enumerate(zip(kinds, args, strict=True))
    ]


def _pointer(name: str, index: int, arg: Any) -> ctypes.c_void_p:
    if isinstance(arg, np.int64 | np.uint64) and arg == 0:
        return ctypes.c_void_p(None)  # CuPy sends the 8 bytes as they are
    if isinstance(arg, np.ndarray):
        return ctypes.c_void_p(arg.ctypes.data)
    address = getattr(getattr(arg, "data", None), "ptr", None)
    if address is None:
        raise TypeError(f"{name}: argument {index} is {type(arg).__name__}, not an array")
    return ctypes.c_void_p(address)


def _scalar(name: str, index: int, kind: str, arg: Any) -> Any:
    if not isinstance(arg, np.generic):
        raise TypeError(
            f"{name}: argument {index} is {type(arg).__name__}; the kernel wants a numpy scalar"
            f" of {kind[1:]} bytes"
        )
    found = {"u": "i", "V": "s"}.get(arg.dtype.kind, arg.dtype.kind) + str(arg.dtype.itemsize)
    if found != kind and (found, kind) not in {("i8", "q8"), ("b1", "i1")}:
        words = {"i": "integer", "q": "integer", "f": "float", "b": "bool", "s": "struct"}
        raise TypeError(
            f"{name}: argument {index} is {arg.dtype} where the kernel has a"
            f" {kind[1:]}-byte {words[kind[0]]}"
        )
    return ctypes.create_string_buffer(arg.tobytes(), arg.dtype.itemsize)


def _sizes(sizes: tuple[int, ...]) -> Any:
    """Three numbers for a grid or a block, those left out being 1."""
    if not isinstance(sizes, tuple) or not 1 <= len(sizes) <= 3:
        raise TypeError(f"a grid or block is a tuple of one to three integers, got {sizes!r}")
    for size in sizes:
        if not isinstance(size, int | np.integer):
            raise TypeError(f"a grid or block is a tuple of integers, got {sizes!r}")
        if not 0 <= size < 2**32:
            raise KernelError(f"invalid argument: the sizes {sizes}")
    return (ctypes.c_uint * 3)(*map(int, sizes), *[1] * (3 - len(sizes)))


def _tail(names: Sequence[str]) -> str:
    """What exports each instantiated kernel, and says what its parameters are."""
    lines = ["", '#line 1 "exports"', EXPORT]
    for i, name in enumerate(names):
        lines += [
            f"EXPORT const char* qrs_signature_{i}() {{ return cuda_cpu::signature(&{name}); }}",
            f"EXPORT const char* qrs_launch_{i}(unsigned* grid, unsigned* block, void** args,"
            " unsigned order, char* stacks) {"
            f" return cuda_cpu::launch(&{name}, grid, block, args, order, stacks); }}",
        ]
    return "\n".join(lines) + "\n"


@cache
def library(source: str, header: str = "cuda_cpu.h") -> ctypes.PyDLL:
    """Source text that sees a header of the shim, compiled and loaded. Compiled once for each text.

    The interpreter's lock is kept during a launch: the shim runs one launch at a time.
    """
    folder = _precompiled(header)
    path = folder / f"{hashlib.sha256(source.encode()).hexdigest()[:32]}.so"
    if not path.exists():
        _compile(path, ["-I", str(folder), "-include", header, "-shared", "-x", "c++", "-"], source)
    return ctypes.PyDLL(str(path))


@cache
def _stacks() -> ctypes.c_void_p:
    """Stacks for the threads of any module."""
    made = library(f"{EXPORT}\nEXPORT char* qrs_stacks() {{ return cuda_cpu::make_stacks(); }}\n")
    made.qrs_stacks.restype = ctypes.c_void_p
    address = made.qrs_stacks()
    if address is None:
        raise MemoryError("no stacks for the threads of a block")
    return ctypes.c_void_p(address)


@cache
def _precompiled(header: str) -> Path:
    """A folder for one header, as it is now, and one set of options, with the header compiled.

    The compiler takes `header.gch` where it finds it before the header: a second or two are saved.
    """
    texts = [(HERE / name).read_bytes() for name in HEADERS]
    key = hashlib.sha256(b"\0".join([header.encode(), repr(_command()).encode(), *texts]))
    folder = BUILD / key.hexdigest()[:16]
    path = folder / f"{header}.gch"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _compile(path, ["-x", "c++-header", str(HERE / header)])
    return folder


def _compile(path: Path, arguments: list[str], source: str = "") -> None:
    """Run the compiler; the output appears whole, whatever else runs at the same time."""
    unfinished = path.with_name(f"{os.getpid()}-{path.name}")
    done = subprocess.run(
        [*_command(), *arguments, "-o", str(unfinished)],
        env={k: v for k, v in os.environ.items() if k != "LD_PRELOAD"},  # of sanitize.py
        input=source,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise KernelError(f"g++ does not compile the kernels:\n{done.stderr}")
    os.replace(unfinished, path)


@cache
def _command() -> tuple[str, ...]:
    """The compiler and its options: no contraction, and fma in hardware where there is one."""
    options = ["-std=c++17", "-O2", "-ffp-contract=off", "-fno-strict-aliasing", "-fPIC"]
    options += ["-fvisibility=hidden", "-Wall", "-Werror=return-type"]
    options += ["-Wno-unknown-pragmas", "-Wno-unused-function", "-Wno-unused-variable"]
    if platform.machine() == "x86_64" and " fma " in Path("/proc/cpuinfo").read_text():
        options.append("-mfma")
    if os.environ.get(SANITIZE):
        options += ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]
        options += ["-fsanitize-sections=qrs_shared", "-fno-omit-frame-pointer", "-g1"]
    return (os.environ.get("CXX", "g++"), *options)
