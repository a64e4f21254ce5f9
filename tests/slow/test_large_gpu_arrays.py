"""CUDA kernels beyond 2^31 elements, on the CPU: indices of 64 bits all the way.

Memory that was never written reads as zeros and takes no room, so that only results do.
"""

import numpy as np
import pytest

from cuda_cpu import fake_cupy
from cuda_machines import machine

pytestmark = pytest.mark.slow

COLS = (1 << 30) + 24
ROWS = 2


def zeros_with(values: dict[tuple[int, int], float], dtype: type) -> fake_cupy.ndarray:
    host = np.zeros((ROWS, COLS), dtype)
    for at, value in values.items():
        host[at] = value
    return fake_cupy.ndarray(host)


def test_ranges():
    ends = {(0, 0): -3.0, (1, COLS - 1): 7.0, (1, COLS - 30): -2.0}
    x = zeros_with(ends, np.float16)
    assert x.size > 1 << 31
    lo, hi = machine("order-0").raw_call("group_range", x, 1 << 29)
    assert lo.tolist() == [[-3, 0, 0], [0, 0, -2]] and hi.tolist() == [[0, 0, 0], [0, 0, 7]]


def test_codes_and_bits():
    ends = {(0, 1): 3.0, (1, COLS - 1): -1.0, (1, COLS - 2): 1.0}
    x, scale = zeros_with(ends, np.float16), fake_cupy.ones((ROWS, 1), np.float32)
    (packed,) = machine("order-0").raw_call("quantize_affine", x, COLS, scale, None, -128, 127)
    rows, cols = np.nonzero(packed)
    assert [*zip(rows.tolist(), cols.tolist(), strict=True)] == sorted(ends)
    assert packed[rows, cols].tolist() == [3, 1, -1]
    (bits,) = machine("order-0").raw_call("pack_bits", fake_cupy.ndarray(packed), 2)
    assert np.flatnonzero(bits).tolist() == [0, bits.size - 1]
    assert bits[1, -1] >> 4 == 0b1101 and bits[0, 0] == 0b1100
