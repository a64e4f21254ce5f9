"""Calls of the operations of layers: products of codes and what stands between, for any backend.

A call is an operation and its arguments; weights are packed by the backend that is called, so that
`products` takes the backend's own `pack_int8` and `pack_grouped`.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from qrs.convolution import Convolution

FUNCTIONAL = ("gelu", "softmax", "layer_norm")
SUMS = ("dequantize_sums", "requantize", "requantize_fixed_point")
OF_INT8 = ("pack_int8", "matmul_int8", "conv_int8", *SUMS, "linear_int8")
OF_GROUPS = ("pack_grouped", "matmul_grouped", "linear_grouped_int8", "add_matmul", "column_absmax")
SOLVING = ("cholesky", "matmul_float64", "round_with_feedback", "descend")
PRODUCT_OPERATIONS = (*FUNCTIONAL, *OF_INT8, *OF_GROUPS)

Pack = Callable[..., Any]
Call = tuple[str, tuple]


def plain_calls(x: np.ndarray) -> Iterator[Call]:
    """Those that take arrays alone, on float values and on int32 sums of their shape."""
    rows, cols = x.shape
    rng = np.random.default_rng(0)
    weight, bias = (rng.standard_normal((1, cols)).astype(np.float32) for _ in range(2))
    yield "gelu", (x,)
    yield "softmax", (x,)
    yield "layer_norm", (x, weight, bias, 1e-5)
    yield "column_absmax", (x,)
    sums = (x.astype(np.float64) * 1e4).astype(np.int32)
    for shape in ((1, 1), (rows, 1), (1, cols), (rows, cols)):
        scale = rng.uniform(1e-4, 1e-2, shape).astype(np.float32)
        multiplier = rng.integers(2**30, 2**31, shape).astype(np.int32)
        shift = rng.integers(-12, 3, shape).astype(np.int32)
        yield "dequantize_sums", (sums, scale)
        yield "dequantize_sums", (sums, scale, scale, True)
        yield "requantize", (sums, scale, 3, -128, 127)
        yield "requantize_fixed_point", (sums, multiplier, shift, 3, 0, 255)


def int8_calls(pack: Pack, m: int, n: int, k: int) -> Iterator[Call]:
    """Products of int8 weights, and a convolution."""
    rng = np.random.default_rng((m, n, k))
    w = rng.integers(-128, 128, (n, k)).astype(np.int8)
    zero = rng.integers(-99, 99, (n, 1)).astype(np.int32)
    steps = rng.integers(-999, 999, (1, n)).astype(np.int32)
    scale, bias = (rng.standard_normal((1, n)).astype(np.float32) for _ in range(2))
    for dtype, low in (("uint8", 0), ("int8", -128)):
        x = rng.integers(low, low + 256, (m, k)).astype(dtype)
        each = rng.integers(-99, 99, (m, 1)).astype(np.int32)
        yield "matmul_int8", (x, pack(w))
        yield "matmul_int8", (x, pack(w, zero), each[:1], steps)
        yield "matmul_int8", (x, pack(w, zero), each)
        x_scale = rng.uniform(0, 1, (m, 1)).astype(np.float32)
        yield "linear_int8", (x, pack(w), x_scale, each, scale)
        yield "linear_int8", (x, pack(w, zero), x_scale[:1], None, scale, bias, True)
    conv = Convolution(4, (5, 6), (3, 2), (2, 1), (1, 0, 1, 2), (1, 2), groups=2)
    kernels = rng.integers(-128, 128, (6, 12)).astype(np.int8)
    images = rng.integers(0, 256, (8, 30)).astype(np.uint8)
    yield "conv_int8", (images, pack(kernels, None, 2), conv, 7)
    signed = images.view(np.int8)
    six, biases = np.arange(6, dtype=np.int32).reshape(6, 1), np.arange(6, dtype=np.int32)[None]
    yield "conv_int8", (signed, pack(kernels, six, 2), conv, -3, biases)


def grouped_calls(
    pack: Pack, pack_bits: Pack, m: int, n: int, k: int, dtype: Any
) -> Iterator[Call]:
    """Products with packed weights of several kinds."""
    rng = np.random.default_rng((m, n, k, 1))
    x = rng.standard_normal((m, k)).astype(dtype)
    codes8 = rng.integers(-127, 128, (m, k)).astype(np.int8)
    x_scale = rng.uniform(0, 1, (m, 1)).astype(np.float32)
    bias = rng.standard_normal((1, n)).astype(np.float32)
    for bits, signed, group_size, books in (
        (4, True, 8, 0), (4, False, 16, 1), (3, False, 5, 0), (8, True, k, 0), (5, False, 7, n),
    ):  # fmt: skip
        low = -(1 << bits - 1) if signed else 0
        codes = rng.integers(low, low + (1 << bits), (n, k)).astype(np.int8 if signed else np.uint8)
        groups = -(-k // group_size)
        scale = rng.uniform(0.1, 1, (n, groups)).astype(np.float32)
        zero = rng.integers(0, 9, (n, groups)).astype(np.int32) if bits == 3 else None
        levels = rng.standard_normal((books, 1 << bits)).astype(np.float32) if books else None
        weights = pack(pack_bits(codes, bits), k, group_size, bits, signed, scale, zero, levels)
        yield "matmul_grouped", (x, weights)
        yield "matmul_grouped", (x, weights, bias)
        if not books:
            yield "linear_grouped_int8", (codes8, weights, x_scale)
            yield "linear_grouped_int8", (codes8, weights, x_scale, bias)
    y = rng.standard_normal((m, n)).astype(np.float32)
    w = rng.standard_normal((n, 3)).astype(np.float32)
    yield "add_matmul", (y, np.ascontiguousarray(x[:, :3]), w)
    yield "add_matmul", (y, np.ascontiguousarray(x[:, :3]), w, bias, True)
