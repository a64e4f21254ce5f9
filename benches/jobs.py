"""What is measured against other libraries: jobs on one array, and what a right answer is.

Every job starts from the same float32 array and has one answer, computed here in plain numpy by
the definition (true division, ties to even). A library whose rule differs (reciprocals, another
group size) may be a code off, or, where it says so, on another grid; anything else is an error, so
that no faster line comes from doing less.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from qrs.codebooks import NF4

Array = NDArray[Any]

GROUP = 128
NF4_GROUP, NF4_TABLE = 64, np.array(NF4, np.float32)

TITLES = {
    "int8_axis0": "int8 per channel: find the scales, quantize",
    "int8_tensor": "int8 per tensor: find the scale, quantize",
    "int8_given": "int8 per tensor, scale given: quantize",
    "int4_g128": "int4 group 128 asymmetric: find scales and zero points, quantize, pack",
    "dequantize_int8": "int8 per channel: dequantize to float32",
    "dequantize_int4": "int4 group 128 asymmetric: unpack, dequantize to float32",
    "to_bf16": "float32 to bfloat16",
    "to_f16": "float32 to float16",
    "to_e4m3": "float32 to float8 e4m3",
    "from_bf16": "bfloat16 to float32",
    "from_f16": "float16 to float32",
    "from_e4m3": "float8 e4m3 to float32",
    "mxfp4": "MXFP4: find scales of groups of 32, quantize, pack",
    "nvfp4": "NVFP4: find scales of groups of 16 and their scale, quantize, pack",
    "nf4": "NF4 blocks of 64: find absmax, quantize, pack",
    "dequantize_nf4": "NF4 blocks of 64: unpack, dequantize to float32",
}
DTYPES = {
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "f16": np.dtype(np.float16),
    "e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
}

# The ratios this project set itself, for all threads: (job, library) -> peer time / qrs time with
# outputs in place. "own scale" is every other library that computes the scale itself.
TARGETS = {
    ("int8_axis0", "torch.compile"): 2.0,
    ("int8_axis0", "own scale"): 4.0,
    ("int8_given", "onnxruntime"): 0.95,
    ("int4_g128", "torch.compile"): 2.0,
    ("int4_g128", "onnxruntime"): 20.0,
    ("dequantize_int8", "onnxruntime"): 2.0,
    ("dequantize_int4", "best"): 6.0,
    **{(f"{way}_{name}", "numpy"): 5.0 for way in ("to", "from") for name in DTYPES},
    ("mxfp4", "own scale"): 10.0,
    ("nvfp4", "own scale"): 10.0,
    ("nf4", "best"): 20.0,
    ("dequantize_nf4", "best"): 8.0,
}


@dataclass(frozen=True)
class Contender:
    """One way of doing a job."""

    label: str
    run: Callable[[], Any]
    x_hat: Callable[[Any], Array]
    """The decoded float32 array, from what `run` returned; for the check, not timed."""
    in_place: bool = False
    """Whether the large output reuses memory; fresh memory is first touched, page by page."""
    other_grid: bool = False
    """Whether its codes mean other values by design, such as groups of 32."""


@dataclass(frozen=True)
class Data:
    """The array and the right answers. `q4` holds unsigned codes, `packed4` two to a byte."""

    x: Array
    s8: Array
    q8: Array
    s8_tensor: np.float32
    q8_tensor: Array
    s4: Array
    z4: Array
    q4: Array
    packed4: Array

    def grouped(self, codes: Array) -> Array:
        """(rows, groups, GROUP) view."""
        return codes.reshape(len(codes), -1, GROUP)

    def decode4(self, codes: Array) -> Array:
        """Values of unsigned 4-bit codes."""
        offsets = self.grouped(codes).astype(np.float32) - self.z4[..., None]
        return (offsets * self.s4[..., None]).reshape(self.x.shape)

    def quantize_fp4(self, job: str) -> tuple[Array, Array]:
        """The values of e2m1 codes, and the largest step, from 4 to 6, at each element."""
        groups = self.x.reshape(len(self.x), -1, 32 if job == "mxfp4" else 16)
        absmax = np.abs(groups).max(axis=2, keepdims=True)
        if job == "mxfp4":
            scale = np.exp2(np.floor(np.log2(absmax)) - 2)
        else:
            top = absmax.max() / np.float32(6 * 448)
            scale = (absmax / np.float32(6) / top).astype(DTYPES["e4m3"]).astype(np.float32) * top
        q = np.clip(groups / scale, -6, 6).astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
        step = np.broadcast_to(2 * scale, groups.shape)
        return (q * scale).reshape(self.x.shape), step.reshape(self.x.shape)

    def quantize_nf4(self) -> tuple[Array, Array]:
        """The nearest levels, times absmax, and the widest step, at each element."""
        groups = self.x.reshape(-1, NF4_GROUP)
        absmax = np.abs(groups).max(axis=1, keepdims=True)
        middles = (NF4_TABLE[1:] + NF4_TABLE[:-1]) / 2
        x_hat = NF4_TABLE[np.searchsorted(middles, groups * (1 / absmax))] * absmax
        step = np.broadcast_to(absmax * np.diff(NF4_TABLE).max(), groups.shape)
        return x_hat.reshape(self.x.shape), step.reshape(self.x.shape)

    def answer(self, job: str) -> tuple[Array, Array | np.float32]:
        """The decoded array that `job` stands for, and the size of a step at each element."""
        if job in ("int8_tensor", "int8_given"):
            return self.q8_tensor * self.s8_tensor, self.s8_tensor
        if job in ("nf4", "dequantize_nf4"):
            return self.quantize_nf4()
        if job in ("mxfp4", "nvfp4"):
            return self.quantize_fp4(job)
        if (name := job.partition("_")[2]) in DTYPES:
            # The same numbers: no step at all.
            return self.x.astype(DTYPES[name]).astype(np.float32), np.float32(1e-9)
        if job in ("int8_axis0", "dequantize_int8"):
            return self.q8 * self.s8[:, None], self.s8[:, None]
        step = np.repeat(self.s4, GROUP, axis=1)
        return self.decode4(self.q4), step


def make_data(rows: int, cols: int) -> Data:
    """Standard normal numbers, and their codes by the definition."""
    x = np.random.default_rng(0).standard_normal((rows, cols), dtype=np.float32)
    s8 = np.abs(x).max(axis=1) / np.float32(127)
    q8 = np.rint(x / s8[:, None]).astype(np.int8)
    s8_tensor = np.abs(x).max() / np.float32(127)
    q8_tensor = np.rint(x / s8_tensor).astype(np.int8)
    groups = x.reshape(rows, -1, GROUP)
    lo, hi = groups.min(axis=2), groups.max(axis=2)
    s4 = (hi - lo) / np.float32(15)
    z4 = np.clip(np.rint(-lo / s4), 0, 15).astype(np.float32)
    q4 = np.clip(np.rint(groups / s4[..., None]) + z4[..., None], 0, 15).astype(np.uint8)
    q4 = q4.reshape(rows, cols)
    packed4 = q4[:, 0::2] | (q4[:, 1::2] << 4)
    return Data(x, s8, q8, s8_tensor, q8_tensor, s4, z4, q4, packed4)


def check(data: Data, job: str, contender: Contender) -> float:
    """Relative RMSE of what the contender did; raises if it is not the job."""
    x_hat = contender.x_hat(contender.run())
    assert x_hat.shape == data.x.shape and x_hat.dtype == np.float32, (x_hat.shape, x_hat.dtype)
    expected, step = data.answer(job)
    if not contender.other_grid:
        off = float((np.abs(x_hat - expected) / step).max())
        allowed = 0.01 if job.startswith("dequantize") else 1.01
        assert off <= allowed, f"{contender.label} is not doing {job}: off by {off:.2f} steps"
    error = float(np.linalg.norm(x_hat - data.x) / np.linalg.norm(data.x))
    bound = 0.15 if "4" in job else 0.04
    assert error < bound, f"{contender.label} is not doing {job}: relative RMSE {error:.3f}"
    return error
