"""How scales are stored, read back, and checked where they come from outside.

float16 and bfloat16 scales are arrays of that dtype. e8m0 ("OCP Microscaling Formats (MX)
Specification v1.0", section 5.4.1) is one byte, a biased exponent: the code c is 2^(c - 127), and
255 is NaN. A scale may also be a QTensor, of the scheme that `scale_dtype` is then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import backends
from ..arrays import in_c_order, plain
from ..backends.reference import Reference
from ..constants import DTYPES
from ..devices import library_of, moved, on_host
from ..errors import ArgTypeError, KernelFault, bad
from ..float_formats import ALIASES
from .checks import check_shape, refuse_first

if TYPE_CHECKING:
    from ..qtensor import QTensor
    from .base import Array, Scheme, Shape
    from .layout import Layout

Float32 = NDArray[np.float32]

E8M0_NAN = 255


def part_dtype(scale_dtype: str) -> str:
    """The dtype of the stored array."""
    return "uint8" if scale_dtype == "e8m0" else scale_dtype


def stored(scale: Any, scale_dtype: str, shape: Shape, backend: Reference | None = None) -> Any:
    """Scales that are float32 and rounded already, as the array of `shape` that is stored.

    >>> stored(np.array([[0.5, 4.0]], np.float32), "e8m0", (2,)).tolist()
    [126, 129]
    """
    if scale_dtype == "e8m0":
        # The exponent field of a power of two; that of 2^-127, a subnormal number, is 0.
        return (scale.view(np.int32) >> 23).astype(np.uint8).reshape(shape)
    if scale_dtype == "float32":
        return scale.reshape(shape)
    backend = backend or backends.of(scale)
    codes = backend.encode_float(scale.reshape(1, -1), ALIASES[scale_dtype], False)
    return codes.view(DTYPES[scale_dtype]).reshape(shape)


def decoded(part: Any, scale_dtype: str, backend: Reference | None = None) -> Any:
    """What `stored` made, as float32 again.

    >>> decoded(np.array([126, 0], np.uint8), "e8m0").tolist() == [0.5, 2.0**-127]
    True
    """
    if scale_dtype == "float32":
        return part
    if scale_dtype == "e8m0":
        bits = part.astype(np.int32) << 23
        return library_of(part).where(part == 0, np.int32(1 << 22), bits).view(np.float32)
    backend = backend or backends.of(part)
    codes = library_of(part).ascontiguousarray(part).reshape(1, -1).view(np.uint16)
    return backend.decode_float(codes, ALIASES[scale_dtype], "float32").reshape(part.shape)


def quantized(scale: Any, inner: Scheme, backend: Reference) -> tuple[QTensor, Any]:
    """Scales, flattened, by a scheme of their own: the part, and what it decodes to."""
    try:
        part = inner.quantize(scale.reshape(-1), backend)
    except KernelFault:
        found = f"scales overflow as {inner}: the largest is {float(abs(scale).max()):.6g}"
        raise bad("x", found, inner, "smaller values") from None
    return part, inner.dequantize(part, "float32", backend).reshape(scale.shape)


def given(scale: Any, expected: Shape, scale_dtype: str) -> Float32:
    """`scale=` as float32 of the shape `expected`, rounded to what will be stored; on the host."""
    if scale is None:
        raise bad("scale", "got None", None, f"one of shape {expected}")
    array = on_host(plain(scale, "scale"))
    if array.dtype.newbyteorder("=") not in DTYPES.values():
        raise bad("scale", f"got dtype {array.dtype}", array.dtype, ", ".join(DTYPES), ArgTypeError)
    check_shape("scale", array, expected)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        value: Array = array.astype(np.float32, order="C")  # one rounding more for float64: rule 1
        if scale_dtype == "e8m0":
            fraction, _ = np.frexp(value)
            wrong = (fraction != 0.5) | (value < 2.0**-127)
            refuse_first(wrong, array, "scale", "powers of two from 2**-127 to 2**127")
        else:
            value = value.astype(DTYPES[scale_dtype]).astype(np.float32)
    lost = np.isinf(value) & np.isfinite(array)
    refuse_first(lost, array, "scale", f"within {scale_dtype}")
    refuse_first(
        (value == 0) & (array != 0), array, "scale", f"no number that is 0 in {scale_dtype}"
    )
    return value


def for_kernels(scale: Any, layout: Layout) -> Any:
    """Scales as (rows, G), in C order and aligned."""
    return in_c_order(scale, "scale").reshape(layout.rows, layout.groups)


def moved_like(scale: Any, x: Any) -> Any:
    """Checked parameters where the kernels of `x` need them."""
    return scale if scale is None else moved(scale, library_of(x).__name__)
