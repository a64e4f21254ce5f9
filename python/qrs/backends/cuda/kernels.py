"""The kernels as methods: arrays in, arrays out, and which kernel takes which array.

Those for whole aligned groups touch memory once; the others take anything. What they found wrong
they write to `faults`, which nobody reads here. `x` has rows and columns in C order, as everywhere
in `qrs.backends.reference`, and so have outputs, which the caller allocates where it may be given
one.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from ...float_formats import ALIASES, FORMATS
from .launch import Faults, Launcher

Array = Any
"""A CuPy array."""
Parameters = tuple[Array, Array | None]
"""Scales, and zero points where there are some."""

SCALE_DTYPES: Final = {"float32": 0, "float16": 1, "bfloat16": 2, "e8m0": 3}  # enum ScaleDtype
ENCODE, SATURATE, CAST, SCALE = map(np.int32, range(4))  # enum Conversion
_CHUNK = 4096  # kChunk in range.cu
_OCTETS_A_LANE = 4  # kOctets in affine.cu and codebooks.cu
_MOST_LANES = 512
_SUMMED = 65_536  # kSummed in sums.cuh
_LANES = 16  # kLanes there
_MOST_FAST = 8 << 31  # dequantize_affine_packed counts octets in 31 bits


class Kernels(Launcher):
    """Everything runs on the current device and its current stream."""

    # ---- Ranges and parameters ------------------------------------------------------------------

    def group_range(self, x: Array, group_size: int, faults: Faults) -> tuple[Array, Array]:
        rows, cols = x.shape
        group_size, groups = per_row(cols, group_size)
        lo, hi = (self.xp.zeros((rows, groups), np.float32) for _ in range(2))
        lanes = min(_power_of_two(-(-group_size // 8)), 32)
        teams = lo.size * -(-group_size // _CHUNK)
        args = (x, rows, cols, group_size, np.int32(lanes), lo, hi, faults.words)
        self.launch("group_range", (_element(x.dtype),), lanes * teams, *args)
        return lo, hi

    def choose_qparams_affine(
        self, lo: Array, hi: Array, qmin: int, qmax: int, symmetric: bool, scale_dtype: str,
        faults: Faults,
    ) -> Parameters:  # fmt: skip
        scale, zero_point = self._parameters(lo.shape, symmetric)
        self.launch(
            "choose_qparams_affine", (), lo.size,
            lo, hi, lo.size, *_int32(qmin, qmax, symmetric, SCALE_DTYPES[scale_dtype]),
            scale, scale if zero_point is None else zero_point, faults.words,
        )  # fmt: skip
        return scale, zero_point

    def choose_scale_float(
        self, lo: Array, hi: Array, format: str, scale_dtype: str, faults: Faults
    ) -> Array:
        f, scale = FORMATS[format], self.xp.empty(lo.shape, np.float32)
        self.launch(
            "choose_scale_float", (), lo.size,
            lo, hi, lo.size, np.float32(f.largest),
            *_int32(f.max_exponent, SCALE_DTYPES[scale_dtype]), scale, faults.words,
        )  # fmt: skip
        return scale

    def choose_scale_float_nested(
        self, lo: Array, hi: Array, format: str, scale_format: str, faults: Faults
    ) -> tuple[Array, Array]:
        f, s = FORMATS[format], FORMATS[scale_format]
        absmax, top = self.xp.zeros((1, 1), np.float32), self.xp.empty((1, 1), np.float32)
        codes = self.xp.empty(lo.shape, s.code_dtype)
        with np.errstate(over="ignore"):
            top_reach = np.float32(f.largest * s.largest)
        self.launch("absmax_of_all", (), lo.size, lo, hi, lo.size, absmax)
        self.launch(
            "choose_scale_float_nested", (s.name,), max(lo.size, 1),
            lo, hi, lo.size, np.float32(f.largest), top_reach, absmax,
            codes, top, faults.words,
        )  # fmt: skip
        return codes, top

    def choose_scale_codebook(
        self, lo: Array, hi: Array, low: float, high: float, scale_dtype: str, faults: Faults
    ) -> Array:
        scale = self.xp.empty(lo.shape, np.float32)
        self.launch(
            "choose_scale_codebook", (), lo.size,
            lo, hi, lo.size, np.float32(low), np.float32(high),
            np.int32(SCALE_DTYPES[scale_dtype]), scale, faults.words,
        )  # fmt: skip
        return scale

    def _parameters(self, shape: tuple[int, ...], symmetric: bool) -> Parameters:
        zero_point = None if symmetric else self.xp.empty(shape, np.int32)
        return self.xp.empty(shape, np.float32), zero_point

    # ---- Affine codes ---------------------------------------------------------------------------

    def quantize_affine(
        self, x: Array, group_size: int, parameters: Parameters, bits: int, qmin: int, qmax: int,
        out: Array, faults: Faults,
    ) -> None:  # fmt: skip
        self.launch(
            "quantize_affine", (_element(x.dtype),), _octets(x.shape),
            x, *x.shape, per_row(x.shape[1], group_size)[0], *_sent(parameters),
            *_int32(bits, qmin, qmax), out, faults.words,
        )  # fmt: skip

    def fake_quantize_affine(
        self, x: Array, group_size: int, parameters: Parameters, qmin: int, qmax: int, out: Array,
        faults: Faults,
    ) -> None:  # fmt: skip
        self.launch(
            "fake_quantize_affine", (_element(x.dtype),), _octets(x.shape),
            x, *x.shape, per_row(x.shape[1], group_size)[0], *_sent(parameters),
            *_int32(qmin, qmax), out, faults.words,
        )  # fmt: skip

    @staticmethod
    def fits_registers(
        x: Array, group_size: int, bits: int, packed: Array, lanes: int = _MOST_LANES
    ) -> bool:
        """Whether `lanes` can hold a group, and all groups lie where vectors can be read."""
        cols = x.shape[1]
        group_size, _ = per_row(cols, group_size)
        fits = group_size <= 8 * _OCTETS_A_LANE * lanes
        whole = _has_whole_groups(cols, group_size, bits, packed)
        return fits and whole and bool(x.data.ptr % 16 == 0)

    def quantize_affine_packed(
        self, x: Array, group_size: int, bits: int, qmin: int, qmax: int, symmetric: bool,
        scale_dtype: str, out: Array, faults: Faults,
    ) -> Parameters:  # fmt: skip
        """For what `fits_registers`."""
        group_size, groups = per_row(x.shape[1], group_size)
        scale, zero_point = self._parameters((x.shape[0], groups), symmetric)
        octets = group_size // 8
        lanes = -(-octets // _OCTETS_A_LANE)
        # Up to a warp, teams are a power of two; from there on, a block of whole warps.
        lanes = _power_of_two(lanes) if lanes <= 32 else -(-lanes // 32) * 32
        types = (_element(x.dtype), bits, symmetric and qmin == -qmax)
        self.launch(
            "quantize_affine_packed", types, scale.size * lanes,
            x, scale.size, *_int32(octets, lanes, qmin, qmax, symmetric, SCALE_DTYPES[scale_dtype]),
            out, scale, scale if zero_point is None else zero_point, faults.words,
            threads=256 if lanes <= 32 else lanes,
        )  # fmt: skip
        return scale, zero_point

    def dequantize_affine(
        self, packed: Array, group_size: int, bits: int, signed: bool, parameters: Parameters,
        out: Array,
    ) -> None:  # fmt: skip
        rows, cols = out.shape
        group_size, _ = per_row(cols, group_size)
        element = _element(out.dtype)
        aligned = out.data.ptr % 16 == 0 and out.size < _MOST_FAST
        if aligned and _has_whole_groups(cols, group_size, bits, packed):
            octets = rows * cols // 8
            divisor = _fast_divisor(group_size // 8)
            scale, zero_point, symmetric = _sent(parameters)
            self.launch(
                "dequantize_affine_packed", (element, bits, bool(symmetric)), -(-octets // 2),
                packed, np.uint32(octets), *divisor, np.int32(signed), scale, zero_point, out,
            )  # fmt: skip
        else:
            self.launch(
                "dequantize_affine", (element,), _octets(out.shape),
                packed, rows, cols, group_size, *_int32(bits, signed), *_sent(parameters), out,
            )  # fmt: skip

    # ---- Packing --------------------------------------------------------------------------------

    def pack_bits(self, codes: Array, bits: int, out: Array) -> None:
        args = (codes, *codes.shape, np.int32(bits), out)
        self.launch("pack_bits", (), _octets(codes.shape), *args)

    def unpack_bits(self, packed: Array, bits: int, signed: bool, out: Array) -> None:
        args = (packed, *out.shape, *_int32(bits, signed), out)
        self.launch("unpack_bits", (), _octets(out.shape), *args)

    # ---- Number formats -------------------------------------------------------------------------

    def quantize_float(
        self, x: Array, group_size: int, format: str, conversion: np.int32, scale: Array | None,
        packed: bool, out: Array, faults: Faults,
    ) -> None:  # fmt: skip
        self.launch(
            "quantize_float", (_element(x.dtype), format, packed), _octets(x.shape),
            x, *x.shape, _scaled_group(x.shape[1], group_size, scale),
            x if scale is None else scale, conversion, out, faults.words,
        )  # fmt: skip

    def dequantize_float(
        self, codes: Array, group_size: int, format: str, scale: Array | None, packed: bool,
        out: Array,
    ) -> None:  # fmt: skip
        self.launch(
            "dequantize_float", (_element(out.dtype), format, packed), _octets(out.shape),
            codes, *out.shape, _scaled_group(out.shape[1], group_size, scale),
            out if scale is None else scale, np.int32(scale is not None), out,
        )  # fmt: skip

    # ---- Codebooks ------------------------------------------------------------------------------

    def quantize_codebook(
        self, x: Array, group_size: int, bits: int, scale: Array | None, thresholds: Array,
        codes: Array | None, out: Array, faults: Faults,
    ) -> None:  # fmt: skip
        books, count = thresholds.shape
        size, by_row = _books(x.shape, group_size, scale, books)
        self.launch(
            "quantize_codebook", (_element(x.dtype), _levels(count + 1) if books == 1 else 0),
            _octets(x.shape),
            x, *x.shape, size, *_optional(scale, thresholds), thresholds,
            *_int32(count, by_row), *_optional(codes, out), np.int32(bits), out, faults.words,
        )  # fmt: skip

    @classmethod
    def fits_team(cls, x: Array, group_size: int, bits: int, thresholds: Array, out: Array) -> bool:
        """Whether a warp can hold a group, as `fits_registers`, and `quantize_codebook_packed` has
        codes of so many bits for one table."""
        books, count = thresholds.shape
        one_table = books == 1 and bits == (4 if _levels(count + 1) == 16 else 8)
        return one_table and cls.fits_registers(x, group_size, bits, out, 32)

    def quantize_codebook_packed(
        self, x: Array, group_size: int, ends: tuple[float, float], scale_dtype: str,
        thresholds: Array, codes: Array | None, out: Array, faults: Faults,
    ) -> Array:  # fmt: skip
        """For what `fits_team`."""
        group_size, groups = per_row(x.shape[1], group_size)
        scale = self.xp.empty((x.shape[0], groups), np.float32)
        octets, count = group_size // 8, thresholds.size
        lanes = _power_of_two(-(-octets // _OCTETS_A_LANE))
        self.launch(
            "quantize_codebook_packed", (_element(x.dtype), _levels(count + 1)), scale.size * lanes,
            x, scale.size, *_int32(octets, lanes), *map(np.float32, ends),
            np.int32(SCALE_DTYPES[scale_dtype]), thresholds, np.int32(count),
            *_optional(codes, out), out, scale, faults.words,
        )  # fmt: skip
        return scale

    def dequantize_codebook(
        self, packed: Array, group_size: int, bits: int, scale: Array | None,
        offset: Array | None, book: Array, out: Array,
    ) -> None:  # fmt: skip
        books, levels = book.shape
        size, by_row = _books(out.shape, group_size, scale, books)
        element, count = _element(out.dtype), np.int32(levels)
        parameters = (*_optional(scale, book), *_optional(offset, book), out)
        aligned = books == 1 and out.data.ptr % 16 == 0 and out.size < _MOST_FAST
        if aligned and _has_whole_groups(out.shape[1], size, bits, packed):
            octets = out.size // 8
            self.launch(
                "dequantize_codebook_packed", (element, bits), -(-octets // 2),
                packed, np.uint32(octets), *_fast_divisor(size // 8), book, count, *parameters,
            )  # fmt: skip
        else:
            self.launch(
                "dequantize_codebook", (element, books == 1), _octets(out.shape),
                packed, *out.shape, size, np.int32(bits), book, count, np.int32(by_row),
                *parameters,
            )  # fmt: skip

    def center_scales(self, scale: Array) -> tuple[Array, Array]:
        """The mean, 0 where there is nothing, and the scales minus that."""
        sums = scale
        while sums is scale or sums.size > 1:
            length, kind = sums.size, "float" if sums is scale else "double"
            chunks = self.xp.empty(-(-length // _SUMMED), np.float64)
            self.launch("sum_chunks", (kind,), _LANES * chunks.size, sums, length, chunks)
            sums = chunks
        mean, centered = self.xp.zeros((1, 1), np.float32), self.xp.empty(scale.shape, np.float32)
        self.launch("center_scales", (), scale.size, scale, scale.size, sums, mean, centered)
        return mean, centered

    def choose_scale_lsq(
        self, x: Array, group_size: int, weights: Array | None, levels: Array, thresholds: Array,
        factors: Array, scale: Array, scale_dtype: str, faults: Faults,
    ) -> tuple[Array, Array]:  # fmt: skip
        chosen = self.xp.empty(scale.shape, np.float32)
        errors = self.xp.empty(scale.shape, np.float64)
        self.launch(
            "choose_scale_lsq", (_element(x.dtype), _levels(levels.size)), _LANES * scale.size,
            x, *x.shape, per_row(x.shape[1], group_size)[0], *_optional(weights, levels),
            levels, thresholds, np.int32(thresholds.size), factors, np.int32(factors.size),
            scale, np.int32(SCALE_DTYPES[scale_dtype]), chosen, errors, faults.words,
        )  # fmt: skip
        return chosen, errors


def per_row(cols: int, group_size: int) -> tuple[int, int]:
    """The group size, no more than a row, and how many groups a row has."""
    group_size = min(group_size, max(cols, 1))
    return group_size, -(-cols // group_size)


def _scaled_group(cols: int, group_size: int, scale: Array | None) -> int:
    """The group size where there are scales; else a whole row, which octets do not have to cut."""
    return max(cols, 1) if scale is None else per_row(cols, group_size)[0]


def _books(
    shape: tuple[int, ...], group_size: int, scale: Array | None, books: int
) -> tuple[int, bool]:
    """The group size, as `_scaled_group`, and whether of several books each row has one."""
    rows, cols = shape
    by_row = books in (1, rows)
    return (max(cols, 1) if by_row and scale is None else per_row(cols, group_size)[0]), by_row


def _levels(levels: int) -> int:
    """LEVELS of the kernels for one table of so many levels."""
    return 16 if levels <= 16 else 256


def _element(dtype: np.dtype[Any]) -> str:
    """The name that kernels have for a dtype: float16 -> "f16"."""
    return ALIASES[dtype.name]


def _power_of_two(n: int) -> int:
    """The lowest that is at least `n`."""
    return 1 << (n - 1).bit_length()


def _fast_divisor(divisor: int) -> tuple[np.uint32, np.uint32]:
    """What FastDivisor in affine.cu is made of."""
    shift = (divisor - 1).bit_length()
    return np.uint32(-(-(1 << (31 + shift)) // divisor)), np.uint32(shift)


def _octets(shape: tuple[int, ...]) -> int:
    """How many pieces of eight values rows are cut into: what most kernels have a thread for."""
    return shape[0] * -(-shape[1] // 8)


def _has_whole_groups(cols: int, group_size: int, bits: int, packed: Array) -> bool:
    """Whether groups are whole octets, and the bytes of each octet of codes one aligned word."""
    whole = bits in (4, 8) and group_size % 8 == 0 and cols % group_size == 0
    return whole and bool(packed.data.ptr % bits == 0)


def _int32(*values: int) -> tuple[np.int32, ...]:
    return tuple(map(np.int32, values))


def _optional(array: Array | None, other: Array) -> tuple[Array, np.int32]:
    """An array, or one that is never read, and whether it is there."""
    return other if array is None else array, np.int32(array is not None)


def _sent(parameters: Parameters) -> tuple[Array, Array, np.int32]:
    """Scales, zero points and whether there are none, as kernels take them."""
    scale, zero_point = parameters
    if zero_point is None:
        return scale, scale, np.int32(True)  # never read; a null pointer has no spelling in CuPy
    return scale, zero_point.astype(np.int32, copy=False), np.int32(False)
