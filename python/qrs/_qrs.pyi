"""The Rust kernels (rust/py.rs), called by `qrs.backends.rust` alone.

Arrays are C-contiguous with two axes; float16 and bfloat16 travel as uint16 with the name of their
dtype beside them. Parameters are positional-only in spirit: they have no meaning outside of qrs.
"""

from typing import Any, final

from numpy import float32, float64, int8, int32, uint8
from numpy.typing import NDArray

__all__ = [
    "GroupedWeights",
    "Int8Weights",
    "add_matmul",
    "center_scales",
    "cholesky",
    "choose_qparams_affine",
    "choose_scale_codebook",
    "choose_scale_float",
    "choose_scale_float_nested",
    "choose_scale_lsq",
    "clip_gradient_affine",
    "column_absmax",
    "conv_int8",
    "decode_float",
    "dequantize_affine",
    "dequantize_affine_packed",
    "dequantize_codebook",
    "dequantize_codebook_packed",
    "dequantize_float",
    "dequantize_float_packed",
    "dequantize_sums",
    "descend",
    "encode_float",
    "fake_quantize_affine",
    "gelu",
    "group_range",
    "kmeans_1d",
    "kmeans_assign",
    "kmeans_potentials",
    "kmeans_update",
    "layer_norm",
    "linear_grouped_int8",
    "linear_int8",
    "matmul_float64",
    "matmul_grouped",
    "matmul_int8",
    "num_threads",
    "pack_bits",
    "pack_grouped",
    "pack_int8",
    "quantize_affine",
    "quantize_affine_packed",
    "quantize_codebook",
    "quantize_codebook_packed",
    "quantize_float",
    "quantize_float_packed",
    "requantize",
    "requantize_fixed_point",
    "round_with_feedback",
    "set_num_threads",
    "set_simd_level",
    "simd_level",
    "simd_levels",
    "softmax",
    "step_gradients_affine",
    "unpack_bits",
    "version",
]

def group_range(
    x: NDArray[Any], dtype: str, group_size: int
) -> tuple[NDArray[float32], NDArray[float32]]: ...
def choose_qparams_affine(
    lo: NDArray[float32],
    hi: NDArray[float32],
    qmin: int,
    qmax: int,
    symmetric: bool,
    scale_dtype: str,
) -> tuple[NDArray[float32], NDArray[int32] | None]: ...
def quantize_affine(
    x: NDArray[Any],
    dtype: str,
    group_size: int,
    scale: NDArray[float32],
    zero_point: NDArray[int32] | None,
    qmin: int,
    qmax: int,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]: ...
def dequantize_affine(
    codes: NDArray[Any],
    group_size: int,
    scale: NDArray[float32],
    zero_point: NDArray[int32] | None,
    dtype: str,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]: ...
def pack_bits(
    codes: NDArray[Any], bits: int, out: NDArray[uint8] | None = None
) -> NDArray[uint8]: ...
def unpack_bits(
    packed: NDArray[uint8], bits: int, cols: int, signed: bool, out: NDArray[Any] | None = None
) -> NDArray[Any]: ...
def quantize_affine_packed(
    x: NDArray[Any],
    dtype: str,
    group_size: int,
    bits: int,
    qmin: int,
    qmax: int,
    symmetric: bool,
    scale_dtype: str,
    scale: NDArray[float32] | None,
    zero_point: NDArray[int32] | None,
    out: NDArray[uint8] | None = None,
) -> tuple[NDArray[uint8], NDArray[float32], NDArray[int32] | None]: ...
def dequantize_affine_packed(
    packed: NDArray[uint8],
    cols: int,
    group_size: int,
    bits: int,
    signed: bool,
    scale: NDArray[float32],
    zero_point: NDArray[int32] | None,
    dtype: str,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]: ...
def fake_quantize_affine(
    x: NDArray[Any],
    dtype: str,
    group_size: int,
    qmin: int,
    qmax: int,
    symmetric: bool,
    scale_dtype: str,
    scale: NDArray[float32] | None,
    zero_point: NDArray[int32] | None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]: ...
def clip_gradient_affine(
    dy: NDArray[Any], x: NDArray[Any], dtype: str, group_size: int, scale: NDArray[float32],
    zero_point: NDArray[int32] | None, qmin: int, qmax: int, out: NDArray[Any] | None = None,
) -> NDArray[Any]: ...  # fmt: skip
def step_gradients_affine(
    dy: NDArray[Any], x: NDArray[Any], dtype: str, group_size: int, scale: NDArray[float32],
    zero_point: NDArray[int32] | None, qmin: int, qmax: int, out: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], NDArray[float32], NDArray[float32]]: ...  # fmt: skip
def encode_float(
    x: NDArray[Any], dtype: str, format: str, saturate: bool, out: NDArray[Any] | None = None
) -> NDArray[Any]: ...
def decode_float(
    codes: NDArray[Any], format: str, dtype: str, out: NDArray[Any] | None = None
) -> NDArray[Any]: ...
def choose_scale_float(
    lo: NDArray[float32], hi: NDArray[float32], format: str, scale_dtype: str
) -> NDArray[float32]: ...
def choose_scale_float_nested(
    lo: NDArray[float32], hi: NDArray[float32], format: str, scale_format: str
) -> tuple[NDArray[Any], NDArray[float32]]: ...
def quantize_float(
    x: NDArray[Any],
    dtype: str,
    group_size: int,
    format: str,
    scale: NDArray[float32] | None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]: ...
def dequantize_float(
    codes: NDArray[Any],
    group_size: int,
    format: str,
    scale: NDArray[float32] | None,
    dtype: str,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]: ...
def quantize_float_packed(
    x: NDArray[Any],
    dtype: str,
    group_size: int,
    format: str,
    scale_dtype: str | None,
    scale: NDArray[float32] | None,
    out: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], NDArray[float32] | None]: ...
def dequantize_float_packed(
    packed: NDArray[Any],
    cols: int,
    group_size: int,
    format: str,
    scale: NDArray[float32] | None,
    dtype: str,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]: ...
def choose_scale_codebook(
    lo: NDArray[float32], hi: NDArray[float32], low: float, high: float, scale_dtype: str
) -> NDArray[float32]: ...
def quantize_codebook(
    x: NDArray[Any],
    dtype: str,
    group_size: int,
    scale: NDArray[float32] | None,
    thresholds: NDArray[float32],
    codes: NDArray[uint8] | None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]: ...
def dequantize_codebook(
    codes: NDArray[Any],
    group_size: int,
    scale: NDArray[float32] | None,
    offset: NDArray[float32] | None,
    book: NDArray[float32],
    dtype: str,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]: ...
def center_scales(scale: NDArray[float32]) -> tuple[NDArray[float32], NDArray[float32]]: ...
def choose_scale_lsq(
    x: NDArray[Any],
    dtype: str,
    group_size: int,
    weights: NDArray[float32] | None,
    levels: NDArray[float32],
    thresholds: NDArray[float32],
    factors: NDArray[float32],
    scale: NDArray[float32],
    scale_dtype: str,
) -> tuple[NDArray[float32], NDArray[float64]]: ...
def quantize_codebook_packed(
    x: NDArray[Any],
    dtype: str,
    group_size: int,
    bits: int,
    ends: tuple[float, float],
    scale_dtype: str | None,
    scale: NDArray[float32] | None,
    thresholds: NDArray[float32],
    codes: NDArray[uint8] | None,
    out: NDArray[uint8] | None = None,
) -> tuple[NDArray[uint8], NDArray[float32] | None]: ...
def dequantize_codebook_packed(
    packed: NDArray[uint8],
    cols: int,
    group_size: int,
    bits: int,
    scale: NDArray[float32] | None,
    offset: NDArray[float32] | None,
    book: NDArray[float32],
    dtype: str,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]: ...
def kmeans_1d(
    x: NDArray[Any],
    dtype: str,
    k: int,
    weights: NDArray[float64] | None,
    with_labels: bool,
) -> tuple[NDArray[float64], NDArray[int32] | None, NDArray[float64], NDArray[int32]]: ...
def kmeans_assign(
    x: NDArray[float32],
    centers: NDArray[float32],
    labels: NDArray[int32] | None = None,
    distances: NDArray[float32] | None = None,
) -> tuple[NDArray[int32], NDArray[float32]]: ...
def kmeans_update(
    x: NDArray[float32], labels: NDArray[int32], weights: NDArray[float32] | None, k: int
) -> tuple[NDArray[float64], NDArray[float64]]: ...
def kmeans_potentials(
    x: NDArray[float32],
    candidates: NDArray[float32],
    closest: NDArray[float32],
    weights: NDArray[float32] | None,
) -> NDArray[float64]: ...
def simd_level() -> str: ...
def simd_levels() -> list[str]: ...
def set_simd_level(name: str) -> None: ...
def num_threads() -> int: ...
def set_num_threads(n: int) -> None: ...
def version() -> str: ...

@final
class Int8Weights: ...

def pack_int8(
    codes: NDArray[int8], zero_point: NDArray[int32] | None = None, groups: int = 1
) -> Int8Weights: ...
def matmul_int8(
    x: NDArray[Any],
    weights: Int8Weights,
    x_zero_point: NDArray[int32] | None = None,
    bias: NDArray[int32] | None = None,
    out: NDArray[int32] | None = None,
) -> NDArray[int32]: ...
def linear_int8(
    x: NDArray[Any],
    weights: Int8Weights,
    x_scale: NDArray[float32],
    x_zero_point: NDArray[int32] | None,
    w_scale: NDArray[float32],
    bias: NDArray[float32] | None = None,
    relu: bool = False,
    out: NDArray[float32] | None = None,
) -> NDArray[float32]: ...
def conv_int8(
    x: NDArray[Any],
    weights: Int8Weights,
    shape: tuple[int, ...],
    x_zero_point: int,
    bias: NDArray[int32] | None = None,
    out: NDArray[int32] | None = None,
) -> NDArray[int32]: ...
def dequantize_sums(
    sums: NDArray[int32],
    scale: NDArray[float32],
    bias: NDArray[float32] | None = None,
    relu: bool = False,
    out: NDArray[float32] | None = None,
) -> NDArray[float32]: ...
def requantize(
    sums: NDArray[int32],
    scale: NDArray[float32],
    zero_point: int,
    qmin: int,
    qmax: int,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]: ...
def requantize_fixed_point(
    sums: NDArray[int32],
    multiplier: NDArray[int32],
    shift: NDArray[int32],
    zero_point: int,
    qmin: int,
    qmax: int,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]: ...
def column_absmax(x: NDArray[Any], dtype: str) -> NDArray[float32]: ...
def gelu(x: NDArray[Any], dtype: str, out: NDArray[Any] | None = None) -> NDArray[Any]: ...
def softmax(x: NDArray[Any], dtype: str, out: NDArray[Any] | None = None) -> NDArray[Any]: ...
def layer_norm(
    x: NDArray[Any],
    dtype: str,
    weight: NDArray[float32],
    bias: NDArray[float32],
    eps: float,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]: ...

@final
class GroupedWeights: ...

def pack_grouped(
    packed: NDArray[uint8],
    cols: int,
    group_size: int,
    bits: int,
    signed: bool,
    scale: NDArray[float32],
    zero_point: NDArray[int32] | None = None,
    books: NDArray[float32] | None = None,
) -> GroupedWeights: ...
def matmul_grouped(
    x: NDArray[Any],
    dtype: str,
    weights: GroupedWeights,
    bias: NDArray[float32] | None = None,
    as_bf16x2: bool = False,
    out: NDArray[float32] | None = None,
) -> NDArray[float32]: ...
def linear_grouped_int8(
    x: NDArray[Any],
    weights: GroupedWeights,
    x_scale: NDArray[float32],
    bias: NDArray[float32] | None = None,
    out: NDArray[float32] | None = None,
) -> NDArray[float32]: ...
def add_matmul(
    y: NDArray[float32],
    x: NDArray[Any],
    dtype: str,
    w: NDArray[float32],
    bias: NDArray[float32] | None = None,
    relu: bool = False,
    out: NDArray[float32] | None = None,
) -> NDArray[float32]: ...
def cholesky(h: NDArray[float64], out: NDArray[float64] | None = None) -> NDArray[float64]: ...
def matmul_float64(
    a: NDArray[float64], b: NDArray[float64], out: NDArray[float64] | None = None
) -> NDArray[float64]: ...
def round_with_feedback(
    w: NDArray[float32],
    factor: NDArray[float64],
    scale: NDArray[float32],
    group_of: NDArray[int32],
    levels: NDArray[float32] | None = None,
    lowest: NDArray[int32] | None = None,
    count: int = 0,
    out: NDArray[uint8] | None = None,
) -> NDArray[uint8]: ...
def descend(
    w: NDArray[float32],
    h: NDArray[float64],
    w_hat: NDArray[float32],
    scale: NDArray[float32],
    group_of: NDArray[int32],
    levels: NDArray[float32] | None = None,
    lowest: NDArray[int32] | None = None,
    count: int = 0,
    out: NDArray[uint8] | None = None,
) -> NDArray[uint8]: ...
