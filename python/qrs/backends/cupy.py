"""The CUDA backend: every operation of the reference on CuPy arrays, the same bits.

Arguments and results are those of `qrs.backends.reference`, with CuPy arrays on one device in place
of numpy's; float16 and bfloat16 go to the kernels as pointers. An operation that can find a fault
waits for the stream once, to read it; the others return before they have run. Which kernel takes
which array is decided here: those for whole aligned groups touch memory once. Nothing here imports
cupy before a backend is made.
"""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..constants import DTYPES
from .cuda.launch import KERNELS, Faults, Launcher, Load, cubins, element
from .reference import Array, Bytes, Codes, Float32, Integers, Reference

__all__ = ["KERNELS", "Cupy", "missing"]

_SCALE_DTYPES = {"float32": 0, "float16": 1, "bfloat16": 2, "e8m0": 3}  # enum ScaleDtype
_CHUNK = 4096  # kChunk in range.cu
_OCTETS_A_LANE = 4  # kOctets in affine.cu
_MOST_LANES = 512


class Cupy(Reference):
    """`xp` is cupy and `load` compiles kernels; tests pass stand-ins for both."""

    name: ClassVar[str] = "cupy"

    def __init__(self, xp: Any = None, load: Load | None = None) -> None:
        self.xp = importlib.import_module("cupy") if xp is None else xp
        self._launch = Launcher(self.xp, load or cubins(self.xp))

    # ---- Ranges and parameters -----------------------------------------------------------------

    def group_range(self, x: Array, group_size: int) -> tuple[Float32, Float32]:
        with self._launch.on_device_of(x=x):
            faults = Faults(self.xp)
            lo, hi = self._range(x, group_size, faults)
            faults.check()
        return lo, hi

    def choose_qparams_affine(
        self, lo: Float32, hi: Float32, qmin: int, qmax: int, symmetric: bool, scale_dtype: str
    ) -> tuple[Float32, NDArray[np.int32] | None]:
        with self._launch.on_device_of(lo=lo, hi=hi):
            faults = Faults(self.xp)
            chosen = self._qparams(lo, hi, qmin, qmax, symmetric, scale_dtype, faults)
            faults.check()
        return chosen

    def _range(self, x: Array, group_size: int, faults: Faults) -> tuple[Float32, Float32]:
        rows, cols = x.shape
        group_size, groups = _groups(cols, group_size)
        lo, hi = (self.xp.zeros((rows, groups), np.float32) for _ in range(2))
        lanes = min(_power_of_two(-(-group_size // 8)), 32)
        teams = lo.size * -(-group_size // _CHUNK)
        args = (x, rows, cols, group_size, np.int32(lanes), lo, hi, faults.words)
        self._launch("group_range", (element(x.dtype),), lanes * teams, *args)
        return lo, hi

    def _qparams(
        self, lo: Float32, hi: Float32, qmin: int, qmax: int, symmetric: bool, scale_dtype: str,
        faults: Faults,
    ) -> tuple[Float32, NDArray[np.int32] | None]:  # fmt: skip
        scale = self.xp.empty(lo.shape, np.float32)
        zero_point = None if symmetric else self.xp.empty(lo.shape, np.int32)
        self._launch(
            "choose_qparams_affine", (), lo.size,
            lo, hi, lo.size, *_int32(qmin, qmax, symmetric, _SCALE_DTYPES[scale_dtype]),
            scale, scale if symmetric else zero_point, faults.words,
        )  # fmt: skip
        return scale, zero_point

    # ---- Affine codes --------------------------------------------------------------------------

    def quantize_affine(
        self,
        x: Array,
        group_size: int,
        scale: Float32,
        zero_point: Integers | None,
        qmin: int,
        qmax: int,
        out: Codes | None = None,
    ) -> Codes:
        with self._launch.on_device_of(x=x, scale=scale, zero_point=zero_point, out=out):
            if out is None:
                out = self.xp.empty(x.shape, np.int8 if qmin < 0 else np.uint8)
            faults = Faults(self.xp)
            self._quantize(x, group_size, scale, zero_point, 8, qmin, qmax, out, faults)
            faults.check()
        return out

    def _quantize(
        self, x: Array, group_size: int, scale: Float32, zero_point: Integers | None, bits: int,
        qmin: int, qmax: int, out: Array, faults: Faults,
    ) -> None:  # fmt: skip
        self._launch(
            "quantize_affine", (element(x.dtype),), _octets(x.shape),
            x, *x.shape, _groups(x.shape[1], group_size)[0], *_qparams(scale, zero_point),
            *_int32(bits, qmin, qmax), out, faults.words,
        )  # fmt: skip

    def dequantize_affine(
        self,
        codes: Codes,
        group_size: int,
        scale: Float32,
        zero_point: Integers | None,
        dtype: str,
        out: Array | None = None,
    ) -> Array:
        signed = codes.dtype == np.int8
        return self._dequantize(
            codes, codes.shape[1], group_size, 8, signed, scale, zero_point, dtype, out
        )

    def _dequantize(
        self, packed: Array, cols: int, group_size: int, bits: int, signed: bool, scale: Float32,
        zero_point: Integers | None, dtype: str, out: Array | None,
    ) -> Array:  # fmt: skip
        shape = rows, _ = packed.shape[0], cols
        with self._launch.on_device_of(packed=packed, scale=scale, zero_point=zero_point, out=out):
            if out is None:
                out = self.xp.empty(shape, DTYPES[dtype])
            group_size, _ = _groups(cols, group_size)
            qparams = _qparams(scale, zero_point)
            if _has_whole_groups(cols, group_size, bits, packed) and out.data.ptr % 16 == 0:
                octets = group_size // 8
                log2 = octets.bit_length() - 1 if octets & (octets - 1) == 0 else -1
                units = rows * cols // 8
                self._launch(
                    "dequantize_affine_packed", (element(dtype), bits), -(-units // 2),
                    packed, units, octets, *_int32(log2, signed), *qparams, out,
                )  # fmt: skip
            else:
                self._launch(
                    "dequantize_affine", (element(dtype),), _octets(shape),
                    packed, rows, cols, group_size, *_int32(bits, signed), *qparams, out,
                )  # fmt: skip
        return out

    # ---- Packing -------------------------------------------------------------------------------

    def pack_bits(self, codes: Codes, bits: int, out: Bytes | None = None) -> Bytes:
        rows, cols = codes.shape
        with self._launch.on_device_of(codes=codes, out=out):
            if out is None:
                out = self.xp.empty((rows, _row_bytes(cols, bits)), np.uint8)
            args = (codes, rows, cols, np.int32(bits), out)
            self._launch("pack_bits", (), _octets(codes.shape), *args)
        return out

    def unpack_bits(
        self, packed: Bytes, bits: int, cols: int, signed: bool, out: Codes | None = None
    ) -> Codes:
        shape = rows, _ = packed.shape[0], cols
        with self._launch.on_device_of(packed=packed, out=out):
            if out is None:
                out = self.xp.empty(shape, np.int8 if signed else np.uint8)
            args = (packed, rows, cols, *_int32(bits, signed), out)
            self._launch("unpack_bits", (), _octets(shape), *args)
        return out

    # ---- Fused ---------------------------------------------------------------------------------

    def quantize_affine_packed(
        self,
        x: Array,
        group_size: int,
        bits: int,
        qmin: int,
        qmax: int,
        symmetric: bool,
        scale_dtype: str,
        scale: Float32 | None = None,
        zero_point: Integers | None = None,
        out: Bytes | None = None,
    ) -> tuple[Bytes, Float32, Integers | None]:
        rows, cols = x.shape
        with self._launch.on_device_of(x=x, scale=scale, zero_point=zero_point, out=out):
            if out is None:
                out = self.xp.empty((rows, _row_bytes(cols, bits)), np.uint8)
            faults = Faults(self.xp)
            rule = (qmin, qmax, symmetric, scale_dtype)
            if scale is None and self._fits_registers(x, group_size, bits, out):
                scale, zero_point = self._quantize_groups(x, group_size, bits, *rule, out, faults)
            else:
                if scale is None:
                    lo, hi = self._range(x, group_size, faults)
                    scale, zero_point = self._qparams(lo, hi, *rule, faults)
                self._quantize(x, group_size, scale, zero_point, bits, qmin, qmax, out, faults)
            faults.check()
        return out, scale, zero_point

    @staticmethod
    def _fits_registers(x: Array, group_size: int, bits: int, out: Bytes) -> bool:
        """Whether one block can hold a group, and all groups lie where vectors can be read."""
        group_size, _ = _groups(x.shape[1], group_size)
        most = 8 * _OCTETS_A_LANE * _MOST_LANES
        fits = _has_whole_groups(x.shape[1], group_size, bits, out) and group_size <= most
        return fits and bool(x.data.ptr % 16 == 0)

    def _quantize_groups(
        self, x: Array, group_size: int, bits: int, qmin: int, qmax: int, symmetric: bool,
        scale_dtype: str, out: Bytes, faults: Faults,
    ) -> tuple[Float32, NDArray[np.int32] | None]:  # fmt: skip
        group_size, groups = _groups(x.shape[1], group_size)
        octets, shape = group_size // 8, (x.shape[0], groups)
        scale = self.xp.empty(shape, np.float32)
        zero_point = None if symmetric else self.xp.empty(shape, np.int32)
        lanes = -(-octets // _OCTETS_A_LANE)
        # Up to a warp, teams are a power of two; from there on, a block of whole warps.
        lanes = _power_of_two(lanes) if lanes <= 32 else -(-lanes // 32) * 32
        types = (element(x.dtype), bits, symmetric and qmin == -qmax)
        self._launch(
            "quantize_affine_packed", types, scale.size * lanes,
            x, scale.size, *_int32(octets, lanes, qmin, qmax, symmetric, _SCALE_DTYPES[scale_dtype]),
            out, scale, scale if symmetric else zero_point, faults.words,
            threads=256 if lanes <= 32 else lanes,
        )  # fmt: skip
        return scale, zero_point

    def dequantize_affine_packed(
        self,
        packed: Bytes,
        cols: int,
        group_size: int,
        bits: int,
        signed: bool,
        scale: Float32,
        zero_point: Integers | None,
        dtype: str,
        out: Array | None = None,
    ) -> Array:
        return self._dequantize(
            packed, cols, group_size, bits, signed, scale, zero_point, dtype, out
        )

    def fake_quantize_affine(
        self,
        x: Array,
        group_size: int,
        qmin: int,
        qmax: int,
        symmetric: bool,
        scale_dtype: str,
        scale: Float32 | None = None,
        zero_point: Integers | None = None,
        out: Array | None = None,
    ) -> Array:
        with self._launch.on_device_of(x=x, scale=scale, zero_point=zero_point, out=out):
            if out is None:
                out = self.xp.empty(x.shape, x.dtype)
            faults = Faults(self.xp)
            if scale is None:
                lo, hi = self._range(x, group_size, faults)
                scale, zero_point = self._qparams(
                    lo, hi, qmin, qmax, symmetric, scale_dtype, faults
                )
            self._launch(
                "fake_quantize_affine", (element(x.dtype),), _octets(x.shape),
                x, *x.shape, _groups(x.shape[1], group_size)[0], *_qparams(scale, zero_point),
                *_int32(qmin, qmax), out, faults.words,
            )  # fmt: skip
            faults.check()
        return out


def _groups(cols: int, group_size: int) -> tuple[int, int]:
    """The group size, no more than a row, and how many groups a row has."""
    group_size = min(group_size, max(cols, 1))
    return group_size, -(-cols // group_size)


def _power_of_two(n: int) -> int:
    """The lowest that is at least `n`."""
    return 1 << (n - 1).bit_length()


def _octets(shape: tuple[int, ...]) -> int:
    """How many pieces of eight values rows are cut into: what most kernels have a thread for."""
    return shape[0] * -(-shape[1] // 8)


def _row_bytes(cols: int, bits: int) -> int:
    return -(-cols * bits // 8)


def _has_whole_groups(cols: int, group_size: int, bits: int, packed: Array) -> bool:
    """Whether groups are whole octets, and the bytes of each octet of codes one aligned word."""
    whole = bits in (4, 8) and group_size % 8 == 0 and cols % group_size == 0
    return whole and bool(packed.data.ptr % bits == 0)


def _int32(*values: int) -> tuple[np.int32, ...]:
    return tuple(map(np.int32, values))


def _qparams(scale: Float32, zero_point: Integers | None) -> tuple[Array, Array, np.int32]:
    """Scales, zero points and whether there are none, as kernels take them."""
    if zero_point is None:
        return scale, scale, np.int32(True)  # never read; a null pointer has no spelling in CuPy
    return scale, zero_point.astype(np.int32, copy=False), np.int32(False)


def missing() -> tuple[str | None, str | None]:
    """Why the backend is not available, and what would fix it; None where it is."""
    return (
        "this version of qrs has no CUDA kernels",
        "pass numpy arrays (`x.get()` copies a CuPy array to the host)",
    )
