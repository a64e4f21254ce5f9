"""What kernels multiply with, from the QTensor of a weight."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import floats
from ..backends.reference import Float32, GroupedWeights, Int8Weights, Int32, Reference
from ..devices import contiguous, library_of, on_host
from ..errors import ArgTypeError, bad
from ..granularity import PerAxis, PerGroup, PerTensor
from ..qtensor import QTensor
from ..schemes import Float, Int
from ..schemes.scales import moved_like

INT32_MAX = 2**31 - 1


class IntegerWeights(NamedTuple):
    """Int8 codes (n, k) with one scale for each output."""

    codes: NDArray[np.int8]
    zero_point: Int32 | None
    """(n, 1)."""
    scale: Float32
    """(1, n)."""

    def packed(self, ops: Reference, groups: int = 1) -> Int8Weights:
        """As the kernels of a backend take them."""
        return ops.pack_int8(self.codes, self.zero_point, groups)

    def columns(self, index: NDArray[np.intp]) -> Float32:
        """The decoded values of some inputs: (n, len(index))."""
        picked = self.codes[:, index].astype(np.float32)
        if self.zero_point is not None:
            picked -= self.zero_point
        columns: Float32 = contiguous(picked * self.scale.T)
        return columns

    def check_sums(self, largest: int, bias: Int32 | None = None) -> None:
        """Raise where int32 could not hold a sum over inputs of magnitudes up to `largest`."""
        weights = self.codes.astype(np.int16)
        if self.zero_point is not None:
            weights -= self.zero_point.astype(np.int16)
        reach = largest * abs(weights).sum(axis=1, dtype=np.int64)
        check_reach(int(reach.max()) if reach.size else 0, self.codes.shape[1])
        if bias is not None and reach.size:
            with_bias = int((reach + abs(bias.reshape(-1).astype(np.int64))).max())
            if with_bias > INT32_MAX:
                found = f"with it sums over {self.codes.shape[1]} inputs may reach {with_bias}"
                raise bad("bias", found, with_bias, f"at most {INT32_MAX}, what int32 holds")


def check_reach(reach: int, inputs: int) -> None:
    """Raise where a sum of integers may reach more than int32 holds."""
    if reach > INT32_MAX:
        found = f"sums over {inputs} inputs may reach {reach}"
        expected = f"at most {INT32_MAX}, what int32 holds: split the layer along its inputs"
        raise bad("weight", found, reach, expected)


def has_one_scale_per_output(qt: QTensor) -> bool:
    """Whether the codes are integers, and no output has more than one scale."""
    granularity = qt.scheme.granularity
    by_output = isinstance(granularity, PerAxis) and granularity.axis % qt.ndim == 0
    return isinstance(qt.scheme, Int) and (by_output or isinstance(granularity, PerTensor))


def integer_weights(qt: QTensor) -> IntegerWeights:
    """Int8 codes of a weight (n, ...) whose outputs have one scale each; uint8 is moved by 128."""
    if not has_one_scale_per_output(qt):
        expected = "integers with one scale per output or per tensor, such as 'int8-axis0'"
        raise bad("scheme", f"got {qt.scheme}", str(qt.scheme), expected)
    n = qt.shape[0]
    codes = qt.codes.reshape(n, math.prod(qt.shape[1:]))
    zero_point = _per_output(qt.zero_point, n)
    if zero_point is not None:
        zero_point = zero_point.astype(np.int32)
    if codes.dtype == np.uint8:
        codes = (codes ^ np.uint8(128)).view(np.int8)
        zero_point = zero_point - np.int32(128)
    scale = contiguous(_per_output(qt.scale, n).T)
    return IntegerWeights(contiguous(codes), zero_point, scale)


def _per_output(values: Any, n: int) -> Any:
    """() or (n,) -> (n, 1)."""
    if values is None:
        return None
    xp = library_of(values)
    return contiguous(xp.broadcast_to(values.reshape(-1, 1), (n, 1)))


def grouped_weights(qt: QTensor, ops: Reference) -> GroupedWeights:
    """A weight (n, k) of any scheme that decodes as level * scale, packed as it is."""
    n, k = qt.shape
    granularity, bits = qt.scheme.granularity, qt.scheme.bits
    by_input = isinstance(granularity, PerAxis) and granularity.axis % 2 == 1
    sparse = any(name.startswith("sparse") for name in qt.parts)
    if by_input or not 2 <= bits <= 8 or sparse:
        expected = "codes of 2 to 8 bits, scales per tensor, output or group, and no outliers"
        raise bad("scheme", f"got {qt.scheme}", str(qt.scheme), expected)
    group_size = granularity.group_size if isinstance(granularity, PerGroup) else max(k, 1)
    groups = -(-k // group_size)
    scale, zero_point = qt.scale, qt.zero_point
    xp = library_of(qt.packed)
    if scale is None:
        scale = xp.ones((), np.float32)
    scale = _per_group(scale, n, groups)
    if zero_point is not None:
        zero_point = _per_group(zero_point.astype(np.int32), n, groups)
    signed = isinstance(qt.scheme, Int) and qt.scheme.signed
    return ops.pack_grouped(
        contiguous(qt.packed), k, group_size, bits, signed, scale, zero_point, _books(qt)
    )


def _per_group(values: Any, n: int, groups: int) -> Any:
    """(), (n,) or (n, groups) -> (n, groups)."""
    by_row = values.reshape(-1, 1) if values.ndim < 2 else values
    return contiguous(library_of(values).broadcast_to(by_row, (n, groups)))


def _books(qt: QTensor) -> Float32 | None:
    """The levels by code: (1, levels) or (n, levels); None where codes are integers."""
    if isinstance(qt.scheme, Int):
        return None
    if isinstance(qt.scheme, Float):
        codes = np.arange(1 << qt.scheme.bits, dtype=np.uint8)
        values = floats.decode(codes, qt.scheme.format).reshape(1, -1)
        decoded: Float32 = moved_like(values, qt.packed)
        return decoded
    books = qt.codebook
    if books is None or books.ndim > 2:
        found, expected = f"got {qt.scheme}", "at most one codebook for each output"
        raise bad("scheme", found, str(qt.scheme), expected)
    levels: Float32 = contiguous(books.reshape(-1, books.shape[-1]))
    return levels


def checked_weight(weight: Any, ndim: int) -> QTensor:
    """A QTensor of so many axes."""
    if not isinstance(weight, QTensor):
        expected = "a QTensor; from_float() takes arrays"
        raise bad("weight", f"got {type(weight).__name__}", type(weight), expected, ArgTypeError)
    if weight.ndim != ndim:
        raise bad("weight", f"got shape {weight.shape}", weight.shape, f"{ndim} axes")
    return weight


def output_reach(qt: QTensor) -> float:
    """A bound of |x W^T| for |x| of 1: inputs times the largest level times the largest scale."""
    if math.prod(qt.shape) == 0:
        return 0.0
    if isinstance(qt.scheme, Int):
        level = float(1 << qt.scheme.bits)
    else:
        books = _books(qt)
        assert books is not None
        finite = on_host(books)
        level = float(abs(finite[np.isfinite(finite)]).max(initial=0.0))
    scale = 1.0 if qt.scale is None else float(abs(on_host(qt.scale)).max())
    # Sums of levels times inputs come first, and are scaled then.
    return level * max(scale, 1.0) * math.prod(qt.shape[1:])


def check_group_sums(qt: QTensor, largest: int) -> None:
    """Raise where int32 could not hold the sum of a group of an integer weight."""
    granularity, scheme = qt.scheme.granularity, qt.scheme
    inputs = qt.shape[1]
    if isinstance(granularity, PerGroup):
        inputs = min(granularity.group_size, inputs)
    if not isinstance(scheme, Int):
        expected = "integers: int8 activations multiply no codebooks or floats"
        raise bad("scheme", f"got {scheme}", str(scheme), expected)
    of_weights = scheme.qmax - scheme.qmin
    if scheme.symmetric:
        of_weights = max(scheme.qmax, -scheme.qmin)
    check_reach(inputs * largest * of_weights, inputs)
