"""Checks of stored or foreign parts that schemes share, and the words for faults of kernels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import index_text, nonfinite_error
from ..backends.reference import Reference
from ..devices import is_cupy, on_host
from ..errors import KernelFault, QrsError, bad
from ..qtensor import QTensor
from .layout import layout_of

if TYPE_CHECKING:
    from .base import Array, Scheme, Shape

Float32 = NDArray[np.float32]


def check_shape(arg: str, array: Array, expected: Shape) -> None:
    """Raise unless `array` has this shape."""
    if array.shape != expected:
        raise bad(arg, f"got shape {array.shape}", array.shape, expected)


def refuse_first(wrong: Any, values: Array, arg: str, expected: str) -> None:
    """Raise for the first index where `wrong` is true."""
    if not np.any(wrong):
        return
    at = np.unravel_index(int(np.argmax(wrong)), values.shape)
    found = values[at].item() if values.dtype.kind in "iu" else float(values[at])
    raise bad(arg, f"{found} at {index_text(at)}", found, expected)


def useless(scheme: Scheme, arg: str, value: Any) -> QrsError:
    """The error for an argument that a scheme has no use for."""
    reason = {
        "weights": "whose codes do not depend on them; solver='lsq' uses them",
        "statistics": "whose codes do not depend on them; solver='lsq' or 'gptq' uses them",
        "codebook": "which has none",
    }[arg]
    return bad(arg, f"given for {scheme}, {reason}", type(value), "None")


def check_nonzero(scale: Float32) -> None:
    """Nothing can be divided by a scale of 0."""
    refuse_first(scale == 0, scale, "scale", "values other than 0")


def check_reach(scale: Float32, reach: Any) -> None:
    """Scales are finite, and decode no code, up to `reach` steps from 0, to infinity."""
    refuse_first(~np.isfinite(scale), scale, "scale", "finite values")
    with np.errstate(over="ignore"):
        overflow = np.isinf(reach * scale)
    refuse_first(overflow, scale, "scale", "values that decode every code to a finite number")


def check_zero_scales(qt: QTensor) -> None:
    """A scale of 0 is legal where every code says 0 anyway."""
    zero = qt.scale == 0
    if not zero.any():
        return
    # With the scale 1 where it was 0, and 0 elsewhere, exactly the codes in question decode.
    parts = {**qt.parts, "scale": np.asarray(zero, np.float32)}
    scheme = qt.scheme.with_scale_dtype("float32")
    if QTensor(scheme, qt.shape, qt.dtype, parts).dequantize().any():
        refuse_first(zero, qt.scale, "scale", "other than 0 where codes decode to other than 0")


def check_padding(qt: QTensor) -> None:
    """The bits behind the last code of each row are zeros."""
    layout = layout_of(qt.scheme, qt.shape)
    rows = qt.packed.reshape(-1, layout.packed_shape[-1])
    used = layout.stored_shape[-1] * qt.scheme.bits % 8
    if used and (rows[:, -1] >> used).any():
        at = int(np.argmax(rows[:, -1] >> used != 0))
        found = f"bits behind the last code of row {at}"
        raise bad("packed", found, int(rows[at, -1]), "zeros")


def check_overflow(
    x_hat: Array, arg: str, backend: Reference, scale: Any = None, reach: float = 0
) -> None:
    """Raise where a finite float32 was rounded to an infinity of a narrower dtype.

    With the scales and how many steps codes reach at most, a look at those may do; on a GPU it
    would be a synchronization more.
    """
    if x_hat.dtype == np.float32:
        return
    if scale is not None and not is_cupy(scale):
        largest = np.float64(np.abs(scale).max()) * reach
        if largest < (65504 if x_hat.dtype == np.float16 else 3.38e38):
            return
    try:
        backend.group_range(x_hat.reshape(1, -1), x_hat.size)
        return
    except KernelFault:
        x_hat = on_host(x_hat)
    infinite = ~np.isfinite(x_hat)
    at, dtype = np.unravel_index(int(np.argmax(infinite)), x_hat.shape), x_hat.dtype.name
    found = f"the decoded value at {index_text(at)} overflows {dtype}"
    raise bad(arg, found, dtype, "float32")


def underflow_groups(
    scale: Any, unit: Any, below: Any, ranges: Callable[[], tuple[Any, Any]]
) -> dict[str, int]:
    """For `QTensor.info`: groups that decode to zeros although they are not zeros.

    Their scale came out as too small and became `unit` (contract, rules 4 and 10), so only those
    need a second look: they are the ones whose values are no larger than `below`. On a GPU that
    look would cost a synchronization, and there is no count.
    """
    if is_cupy(scale):
        return {}
    if not (scale == unit).any():
        return {"underflow_groups": 0}
    lo, hi = ranges()
    # Bits tell subnormals from zero in a thread whose CPU state takes them for zero, too.
    nonzero = (lo.view(np.uint32) | hi.view(np.uint32)) != 0
    tiny = (lo >= -below) & (hi <= below) & nonzero
    return {"underflow_groups": int(np.count_nonzero(tiny & (scale == unit)))}


def explain(
    scheme: Scheme,
    fault: KernelFault,
    x: Array,
    needed_scale: Callable[[Float32, Float32], Float32],
) -> QrsError:
    """The error for the user behind a kernel's fault, found by looking at the array itself.

    `needed_scale` is the scale of a range before it is rounded to its stored dtype.
    """
    x = on_host(x)
    if fault.reason == "nonfinite":
        return nonfinite_error(x)
    layout = layout_of(scheme, x.shape)
    row, group = divmod(fault.group, layout.groups)
    columns = slice(group * layout.group_size, (group + 1) * layout.group_size)
    values = scheme.granularity.to_rows(x)[row : row + 1, columns]
    lo, hi = Reference().group_range(values, layout.group_size)
    where = "the tensor"
    if math.prod(layout.scale_shape) > 1:
        where = f"group {index_text(np.unravel_index(fault.group, layout.scale_shape))}"
    span = f"its values span [{lo.item():.6g}, {hi.item():.6g}]"
    if fault.reason == "scale_overflow":
        found = f"{scheme.scale_dtype} overflows in {where}: {span}, which needs a scale of"
        found = f"{found} {needed_scale(lo, hi).item():.6g}"
        return bad("scale_dtype", found, scheme.scale_dtype, "a wider scale_dtype")
    found = f"the extreme codes of {where} would decode to infinity: {span}"
    return bad("x", found, max(hi, -lo).item(), "values further from the end of float32")
