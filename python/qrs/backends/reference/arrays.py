"""Types and small steps that the reference operations share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...constants import DTYPES
from ...errors import KernelFault
from ...float_formats import ALIASES, FORMATS

Array = NDArray[Any]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Codes = NDArray[Any]
"""int8 or uint8; for float formats uint8, uint16 or uint32."""
Bytes = NDArray[np.uint8]
Integers = NDArray[Any]
"""Any integer dtype; kernels return int32."""


def widened(x: Array) -> Float32:
    """`x` as float32; exact."""
    # Unlike copies of quiet NaNs, conversions of signalling ones raise a flag; both are refused.
    with np.errstate(invalid="ignore"):
        return x.astype(np.float32, copy=False)


def zeros_or(zero_point: Integers | None, scale: Float32) -> NDArray[np.int32]:
    """Zero points as int32; 0 where there are none."""
    return np.zeros(scale.shape, np.int32) if zero_point is None else zero_point.astype(np.int32)


def spread(per_group: Array, group_size: int, x: Array) -> Array:
    """(rows, G) -> something that broadcasts against (rows, cols)."""
    if per_group.shape[1] == 1:
        return per_group
    return np.repeat(per_group, group_size, axis=1)[:, : x.shape[1]]


LANES = 16
CHUNK = 65_536


def lane_sums(x: Array) -> Array:
    """Sums over the last axis, in its own dtype and in the order of rule 6.

    >>> float(lane_sums(np.arange(35, dtype=np.float32)))
    595.0
    """
    length = x.shape[-1]
    if length > CHUNK:
        chunks = [lane_sums(x[..., i : i + CHUNK]) for i in range(0, length, CHUNK)]
        return lane_sums(np.stack(chunks, axis=-1))
    steps = -(-length // LANES)
    padded = np.zeros((*x.shape[:-1], steps * LANES), x.dtype)
    padded[..., :length] = x
    # numpy adds in pairs along the last axis alone; along any other, one after the other.
    lanes = padded.reshape(*x.shape[:-1], steps, LANES).sum(axis=-2, initial=0)
    for half in (8, 4, 2, 1):
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def narrowed(x_hat: Float32, dtype: str) -> Array:
    """Float32 rounded to `dtype`; NaN becomes the canonical quiet one, with its sign."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        narrow = x_hat.astype(DTYPES[dtype])
    nan = np.isnan(x_hat)
    if nan.any():
        f = FORMATS[ALIASES[dtype]]
        bits = narrow.view(f.code_dtype)
        bits[nan] = np.where(np.signbit(x_hat[nan]), f.sign_bit, 0) | f.nan_code
    return narrow


def raise_first(scale_overflow: Array, decode_overflow: Array) -> None:
    """Raise the fault of the first group that has one."""
    faults = np.flatnonzero(scale_overflow | decode_overflow)
    if faults.size:
        group = int(faults[0])
        reason = "scale_overflow" if scale_overflow.flat[group] else "decode_overflow"
        raise KernelFault(reason, group)


def into(out: Array | None, result: Array) -> Array:
    """`result`, or `out` filled with it."""
    if out is None:
        return result
    out[...] = result
    return out
