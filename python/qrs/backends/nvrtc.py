"""NVRTC, NVIDIA's run-time compiler, through ctypes: CUDA source to a cubin or to PTX.

It needs neither a GPU, nor a driver, nor a toolkit: one wheel has it all. CuPy's own way to it is
of no use here, since CuPy always appends `-ftz=true`, which turns subnormals into zeros.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

from ..errors import DeviceError

__all__ = ["OPTIONS", "Program", "compile_cubin", "compile_ptx", "version"]

# What the bits stand on: nothing fused that was not asked for, subnormals kept, true divisions.
OPTIONS = (
    "--std=c++17",
    "--fmad=false",
    "-ftz=false",
    "-prec-div=true",
    "-prec-sqrt=true",
    "-default-device",
)
# Where the wheels nvidia-cuda-nvrtc and nvidia-cuda-nvrtc-cu12 put the library, below nvidia/.
_WHEELS = {13: "cu13/lib/libnvrtc.so.13", 12: "cuda_nvrtc/lib/libnvrtc.so.12"}


@dataclass(frozen=True)
class Program:
    """A compiled program: `cubin` (empty for a virtual architecture), `ptx`, and `lowered`.

    `lowered` has for each name expression, such as "quantize<f16, 64>", the symbol to load.
    """

    cubin: bytes
    ptx: str
    lowered: dict[str, str]


def compile_cubin(
    source: str, names: Sequence[str], arch: str, *, major: int | None = None
) -> Program:
    """Machine code for `arch`, such as "sm_90", with the kernels that `names` instantiate.

    `major` asks for the NVRTC of one CUDA version, 12 or 13: a driver loads cubins of its own.
    Raises `DeviceError`, with the compiler's log, where the source does not compile, and where
    there is no NVRTC.
    """
    return _compile(source, names, arch, major)


def compile_ptx(
    source: str, names: Sequence[str], arch: str = "compute_80", *, major: int | None = None
) -> Program:
    """PTX for a virtual architecture, without a cubin; otherwise as `compile_cubin`."""
    return _compile(source, names, arch, major)


def version(major: int | None = None) -> tuple[int, int]:
    """The version of NVRTC that compiles, such as (13, 5)."""
    library = _library(major)
    numbers = ctypes.c_int(), ctypes.c_int()
    _check(library, library.nvrtcVersion(*map(ctypes.byref, numbers)))
    return numbers[0].value, numbers[1].value


def _compile(source: str, names: Sequence[str], arch: str, major: int | None) -> Program:
    library = _library(major)
    program = ctypes.c_void_p()
    created = library.nvrtcCreateProgram(
        ctypes.byref(program), source.encode(), b"qrs.cu", 0, None, None
    )
    _check(library, created)
    try:
        for name in names:
            _check(library, library.nvrtcAddNameExpression(program, name.encode()))
        options = [option.encode() for option in (*OPTIONS, f"-arch={arch}")]
        array = (ctypes.c_char_p * len(options))(*options)
        if library.nvrtcCompileProgram(program, len(options), array):
            log = _output(library, program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
            numbers = ".".join(map(str, version(major)))
            problem = f"NVRTC {numbers} does not compile the kernels for {arch}:\n{log}"
            raise DeviceError(problem, arg="arch", value=arch, expected="source that compiles")
        virtual = arch.startswith("compute_")
        return Program(
            cubin=b"" if virtual else _output(library, program, "CUBIN"),
            ptx=_output(library, program, "PTX").rstrip(b"\0").decode(),
            lowered={name: _lowered(library, program, name) for name in names},
        )
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _output(library: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    """The log, the cubin or the PTX of a program; texts end with a zero byte."""
    size = ctypes.c_size_t()
    get_size: Callable[..., int] = getattr(library, f"nvrtcGet{what}Size")
    get: Callable[..., int] = getattr(library, f"nvrtcGet{what}")
    _check(library, get_size(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(library, get(program, buffer))
    return buffer.raw


def _lowered(library: ctypes.CDLL, program: ctypes.c_void_p, name: str) -> str:
    symbol = ctypes.c_char_p()
    _check(library, library.nvrtcGetLoweredName(program, name.encode(), ctypes.byref(symbol)))
    return (symbol.value or b"").decode()


def _check(library: ctypes.CDLL, status: int) -> None:
    if status:
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise DeviceError(f"NVRTC failed: {library.nvrtcGetErrorString(status).decode()}")


@cache
def _library(major: int | None) -> ctypes.CDLL:
    """libnvrtc: of the NVIDIA wheels, the newest first, else of the system."""
    majors = list(_WHEELS) if major is None else [major]
    spec: Any = find_spec("nvidia")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    wheels = [os.path.join(f, _WHEELS[m]) for m in majors if m in _WHEELS for f in folders]
    for path in (*filter(os.path.exists, wheels), *(f"libnvrtc.so.{m}" for m in majors)):
        with suppress(OSError):
            return ctypes.CDLL(path)
    extras = " or ".join(f"pip install 'qrs-quant[cuda{m}]'" for m in sorted(majors))
    sonames = " or ".join(f"libnvrtc.so.{m}" for m in majors)
    raise DeviceError(f"there is no {sonames} here; fix: {extras}", expected=extras)
