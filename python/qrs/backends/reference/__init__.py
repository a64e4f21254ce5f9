"""The definition of correct: every kernel operation in plain numpy, short before fast.

The numeric contract. Every backend gives the same bits as this file, on every SIMD level and with
every number of threads:

1. Arithmetic is float32. float16 and bfloat16 inputs widen exactly; float64 rounds to float32, and
   a value that overflows is an error (`qrs.arrays`).
2. Rounding is to nearest, ties to even. Encode is a true division, a clamp in float to
   [qmin - zero_point, qmax - zero_point], a rounding, then the addition of the zero point.
   Decode is (q - zero_point) * scale.
3. Symmetric: scale = max(hi / qmax, lo / qmin), zero_point = 0. Asymmetric: the range is widened
   to hold 0, scale = (hi - lo) / (qmax - qmin), or hi / n - lo / n where hi - lo overflows, and
   zero_point = clip(rne(qmin - lo / scale), qmin, qmax). A range whose extreme codes would decode
   to infinity is a fault.
4. A scale that comes out as zero becomes 1. Subnormals are kept.
5. NaN and infinities are a fault.
6. In sums, the lane of element i is i mod 16, missing elements are +0, and the lanes fold as
   (l, l + 8), (l, l + 4), (l, l + 2), (l, l + 1). Rows longer than 65,536 are cut into chunks of
   65,536, and the chunk sums, in order, are summed by the same rule. No fused multiply-add.
7. Scales are rounded to their stored dtype first; zero points and codes use the rounded ones. A
   scale that overflows its dtype is a fault.
8. Codebooks encode as bitsandbytes does: v = x * (1 / max(|scale|, 1e-38)), with the sign of the
   scale, or v = 0 where that is 0; the code counts the thresholds that v reaches. scale =
   max(hi / highest level, lo / lowest level); one that comes out as zero stays zero, and its group
   decodes to zeros.
9. Conversions between float formats keep NaN, as the canonical quiet one with the sign of the
   input, and infinities where the format has them. What is too large becomes infinity (e4m3: NaN),
   or with `saturate` the largest number, which in e4m3 infinities become too. e2m1 always
   saturates, and NaN is a fault there. Encode with a scale divides, clamps to the largest number
   and rounds; scale = absmax / largest.
10. MX scales are 2^(floor(log2 absmax) - max_exponent), at least 2^-127. With scales that are
   floats themselves (NVFP4), top = absmax of all / (largest * largest of the scales), and the scale
   of a group is the float nearest to absmax / largest / top, times top.

All operations take `x` as (rows, cols) in C order; groups of `group_size` run along the columns,
the last one of a row may be shorter, and there are G = ceil(cols / group_size) of them. `scale`,
`zero_point`, `lo` and `hi` have the shape (rows, G). There are no axes, schemes or files here.
Clustering knows no groups, and takes float64 as it is: all its arithmetic is float64.
"""

from __future__ import annotations

from typing import ClassVar

from .arrays import Array, Bytes, Codes, Float32, Float64, Integers, into
from .gradients import GradientOperations
from .grouped_matmul import GroupedWeights
from .int8_matmul import Int8Weights, Int32
from .kmeans import Labels

__all__ = [
    "OPERATIONS",
    "Array",
    "Bytes",
    "Codes",
    "Float32",
    "Float64",
    "GroupedWeights",
    "Int8Weights",
    "Int32",
    "Integers",
    "Labels",
    "Reference",
    "into",
]


class Reference(GradientOperations):
    """Every operation in numpy. Other backends override what they accelerate.

    >>> import numpy as np
    >>> x = np.array([[1.6, -0.7, -3.4, 1.7, -2.9, 0.5, 2.3, 6.2]], np.float32)
    >>> packed, scale, _ = Reference().quantize_affine_packed(x, 8, 8, -127, 127, True, "float32")
    >>> packed.view(np.int8).tolist()
    [[33, -14, -70, 35, -59, 10, 47, 127]]
    """

    name: ClassVar[str] = "reference"
    library: ClassVar[str] = "numpy"
    """Whose arrays it takes and returns."""


OPERATIONS = tuple(
    name
    for part in reversed(Reference.__mro__)
    for name, value in vars(part).items()
    if callable(value) and not name.startswith("_")
)
"""The names of all kernel operations, in the order of these files."""
