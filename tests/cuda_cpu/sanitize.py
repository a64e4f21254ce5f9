"""Run Python in a process where the kernels of `CpuModule` are built with ASan and UBSan.

Reads and writes beyond an array, misaligned vectors, conversions out of range and overflows end
that process with a message on its stderr.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cuda_cpu.cpu_module import SANITIZE

TESTS = Path(__file__).resolve().parent.parent


def run_sanitized(
    arguments: Sequence[str], timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """`python *arguments`, with the sanitizers loaded first and the tests' folder on its path."""
    libraries = [_library(name) for name in ("libasan.so", "libubsan.so")]
    environment = {
        **os.environ,
        SANITIZE: "1",
        "LD_PRELOAD": " ".join(libraries),
        # Python keeps memory until it ends, and numpy caches small arrays unless told not to.
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": str(TESTS),
    }
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def _library(name: str) -> str:
    command = [os.environ.get("CXX", "g++"), f"-print-file-name={name}"]
    path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not os.path.isabs(path):
        raise FileNotFoundError(f"{name}: the compiler has no sanitizers")
    return os.path.realpath(path)
