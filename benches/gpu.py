"""The CUDA kernels on a GPU, in GB/s of bytes read and written, next to a copy on the device.

`python benches/gpu.py [--rows N] [--cols N]`; needs CuPy and a device. The host's share of a call
is not counted: kernels run back to back, and CUDA's events take the time. Writes results/gpu.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cupy
import numpy as np

from qrs.backends.cuda.launch import Faults
from qrs.backends.cupy import Cupy

ROUNDS = 15
JOBS = {
    "int8 per row": (8, None, -127, 127, True),
    "int4 g128": (4, 128, -7, 7, True),
    "int4 g128 asymmetric": (4, 128, -8, 7, False),
    "int4 g32": (4, 32, -7, 7, True),
}
FLOATS = {
    "mxfp4": ("e2m1", 32, "e8m0"),
    "mxfp8": ("e4m3", 32, "e8m0"),
    "e4m3 g128": ("e4m3", 128, "float32"),
}


def milliseconds(work: Callable[[], Any]) -> float:
    """The median over rounds of a few calls each."""
    work()
    times = []
    for _ in range(ROUNDS):
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        for _ in range(5):
            work()
        end.record()
        end.synchronize()
        times.append(cupy.cuda.get_elapsed_time(start, end) / 5)
    return float(np.median(times))


def jobs(rows: int, cols: int) -> Iterator[tuple[str, Callable[[], Any], int]]:
    """Name, work, bytes that it reads and writes."""
    backend, rng = Cupy(), cupy.random.default_rng(0)
    # Without the operation's own look at the faults, which waits.
    kernels, faults = backend._kernels, Faults(cupy)
    for dtype in ("float16", "float32"):
        x = rng.standard_normal((rows, cols), cupy.float32).astype(dtype)
        there = cupy.empty_like(x)
        yield f"copy {dtype}", lambda x=x, there=there: cupy.copyto(there, x), 2 * x.nbytes
        for name, (bits, group, qmin, qmax, symmetric) in JOBS.items():
            rule = (qmin, qmax, symmetric, "float32")
            group = group or cols
            packed, scale, z = backend.quantize_affine_packed(x, group, bits, *rule)
            moved = x.nbytes + packed.nbytes + scale.nbytes
            yield (
                f"quantize {name} {dtype}",
                lambda x=x, g=group, b=bits, r=rule, out=packed: kernels.quantize_affine_packed(
                    x, g, b, *r, out, faults
                ),
                moved,
            )
            yield (
                f"dequantize {name} {dtype}",
                lambda p=packed, g=group, b=bits, s=scale, z=z, d=dtype, out=there: (
                    backend.dequantize_affine_packed(p, cols, g, b, True, s, z, d, out)
                ),
                moved,
            )
        for name, (format, group, scale_dtype) in FLOATS.items():
            packed, scale = backend.quantize_float_packed(x, group, format, scale_dtype)
            moved = x.nbytes + packed.nbytes + scale.nbytes
            yield (
                f"quantize {name} {dtype}",
                lambda x=x, g=group, f=format, s=scale_dtype, out=packed: (
                    backend.quantize_float_packed(x, g, f, s, None, out)
                ),
                moved,
            )
            yield (
                f"dequantize {name} {dtype}",
                lambda p=packed, g=group, f=format, s=scale, d=dtype, out=there: (
                    backend.dequantize_float_packed(p, cols, g, f, s, d, out)
                ),
                moved,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--cols", type=int, default=16384)
    args = parser.parse_args()
    device = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    print(f"{device}, CuPy {cupy.__version__}, {args.rows} x {args.cols}")
    print(f"{'job':38} {'ms':>8} {'GB/s':>7} {'of copy':>8}")
    found, copy = [], 1.0
    for name, work, moved in jobs(args.rows, args.cols):
        ms = milliseconds(work)
        rate = moved / ms / 1e6
        copy = rate if name.startswith("copy") else copy
        found.append({"job": name, "ms": ms, "GB/s": rate, "of copy": rate / copy})
        print(f"{name:38} {ms:8.3f} {rate:7.0f} {rate / copy:8.2f}", flush=True)
    out = Path(__file__).parent / "results" / "gpu.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({"device": device, "rows": found}, indent=1))


if __name__ == "__main__":
    main()
