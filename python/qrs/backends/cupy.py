"""The CUDA backend: every operation of the reference on CuPy arrays, the same bits.

(k-means alone does not give them: its docstrings in the reference say what differs.) Arguments and
results are those of `qrs.backends.reference`, with CuPy arrays on one device in place of numpy's.
An operation that can find a fault waits for the stream once, to read it; the others return before
they have run. Nothing here imports cupy before a backend is made.

CuPy 14 has ml_dtypes' bfloat16 as a dtype, for `empty` and `view` as for its own kernels. Of float8
it knows no more than the size, so that codes stay integers here.
"""

from __future__ import annotations

import importlib
import os
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..constants import DTYPES
from ..errors import DeviceError
from ..float_formats import FORMATS
from . import nvrtc
from .cuda.kernels import CAST, ENCODE, SATURATE, SCALE, Kernels
from .cuda.launch import KERNELS, Faults, Load, cubins
from .reference import (
    Array,
    Bytes,
    Codes,
    Float32,
    Float64,
    Integers,
    Labels,
    Reference,
)
from .reference.kmeans import BLOCK

__all__ = ["KERNELS", "Cupy", "missing"]


class Cupy(Reference):
    """`xp` is cupy and `load` compiles kernels; tests pass stand-ins for both."""

    name: ClassVar[str] = "cupy"
    library: ClassVar[str] = "cupy"

    def __init__(self, xp: Any = None, load: Load | None = None) -> None:
        self.xp = importlib.import_module("cupy") if xp is None else xp
        self._kernels = Kernels(self.xp, load or cubins(self.xp))

    def _out(self, out: Array | None, shape: tuple[int, ...], dtype: Any) -> Array:
        """`out`, or fresh memory on the current device."""
        fresh: Array = self.xp.empty(shape, dtype) if out is None else out
        return fresh

    # ---- Affine ----------------------------------------------------------------------------------

    def group_range(self, x: Array, group_size: int) -> tuple[Float32, Float32]:
        with self._kernels.on_device_of(x=x):
            faults = Faults(self.xp)
            ranges = self._kernels.group_range(x, group_size, faults)
            faults.check()
        return ranges

    def choose_qparams_affine(
        self, lo: Float32, hi: Float32, qmin: int, qmax: int, symmetric: bool, scale_dtype: str
    ) -> tuple[Float32, NDArray[np.int32] | None]:
        with self._kernels.on_device_of(lo=lo, hi=hi):
            faults = Faults(self.xp)
            chosen = self._kernels.choose_qparams_affine(
                lo, hi, qmin, qmax, symmetric, scale_dtype, faults
            )
            faults.check()
        return chosen

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
        with self._kernels.on_device_of(x=x, scale=scale, zero_point=zero_point, out=out):
            out = self._out(out, x.shape, np.int8 if qmin < 0 else np.uint8)
            faults = Faults(self.xp)
            self._kernels.quantize_affine(
                x, group_size, (scale, zero_point), 8, qmin, qmax, out, faults
            )
            faults.check()
        return out

    def dequantize_affine(
        self,
        codes: Codes,
        group_size: int,
        scale: Float32,
        zero_point: Integers | None,
        dtype: str,
        out: Array | None = None,
    ) -> Array:
        with self._kernels.on_device_of(codes=codes, scale=scale, zero_point=zero_point, out=out):
            out = self._out(out, codes.shape, DTYPES[dtype])
            signed = bool(codes.dtype == np.int8)
            self._kernels.dequantize_affine(codes, group_size, 8, signed, (scale, zero_point), out)
        return out

    def pack_bits(self, codes: Codes, bits: int, out: Bytes | None = None) -> Bytes:
        with self._kernels.on_device_of(codes=codes, out=out):
            out = self._out(out, _packed_shape(codes.shape, bits), np.uint8)
            self._kernels.pack_bits(codes, bits, out)
        return out

    def unpack_bits(
        self, packed: Bytes, bits: int, cols: int, signed: bool, out: Codes | None = None
    ) -> Codes:
        with self._kernels.on_device_of(packed=packed, out=out):
            out = self._out(out, (packed.shape[0], cols), np.int8 if signed else np.uint8)
            self._kernels.unpack_bits(packed, bits, signed, out)
        return out

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
        kernels, rule = self._kernels, (qmin, qmax, symmetric, scale_dtype)
        with kernels.on_device_of(x=x, scale=scale, zero_point=zero_point, out=out):
            out = self._out(out, _packed_shape(x.shape, bits), np.uint8)
            faults = Faults(self.xp)
            if scale is None and kernels.fits_registers(x, group_size, bits, out):
                scale, zero_point = kernels.quantize_affine_packed(
                    x, group_size, bits, *rule, out, faults
                )
            else:
                if scale is None:
                    lo, hi = kernels.group_range(x, group_size, faults)
                    scale, zero_point = kernels.choose_qparams_affine(lo, hi, *rule, faults)
                parameters = (scale, zero_point)
                kernels.quantize_affine(x, group_size, parameters, bits, qmin, qmax, out, faults)
            faults.check()
        return out, scale, zero_point

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
        with self._kernels.on_device_of(packed=packed, scale=scale, zero_point=zero_point, out=out):
            out = self._out(out, (packed.shape[0], cols), DTYPES[dtype])
            parameters = (scale, zero_point)
            self._kernels.dequantize_affine(packed, group_size, bits, signed, parameters, out)
        return out

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
        kernels = self._kernels
        with kernels.on_device_of(x=x, scale=scale, zero_point=zero_point, out=out):
            out = self._out(out, x.shape, x.dtype)
            faults = Faults(self.xp)
            if scale is None:
                lo, hi = kernels.group_range(x, group_size, faults)
                scale, zero_point = kernels.choose_qparams_affine(
                    lo, hi, qmin, qmax, symmetric, scale_dtype, faults
                )
            parameters = (scale, zero_point)
            kernels.fake_quantize_affine(x, group_size, parameters, qmin, qmax, out, faults)
            faults.check()
        return out

    # ---- Floats ----------------------------------------------------------------------------------

    def encode_float(
        self, x: Array, format: str, saturate: bool, out: Codes | None = None
    ) -> Codes:
        with self._kernels.on_device_of(x=x, out=out):
            out = self._out(out, x.shape, FORMATS[format].code_dtype)
            faults = Faults(self.xp)
            conversion = SATURATE if saturate else ENCODE
            self._kernels.quantize_float(x, 1, format, conversion, None, False, out, faults)
            if FORMATS[format].nan_code is None:
                faults.check()
        return out

    def decode_float(
        self, codes: Codes, format: str, dtype: str, out: Array | None = None
    ) -> Array:
        return self.dequantize_float(codes, codes.shape[1], format, None, dtype, out)

    def choose_scale_float(
        self, lo: Float32, hi: Float32, format: str, scale_dtype: str
    ) -> Float32:
        with self._kernels.on_device_of(lo=lo, hi=hi):
            faults = Faults(self.xp)
            scale: Float32 = self._kernels.choose_scale_float(lo, hi, format, scale_dtype, faults)
            if scale_dtype != "e8m0":  # those reach every float32
                faults.check()
        return scale

    def choose_scale_float_nested(
        self, lo: Float32, hi: Float32, format: str, scale_format: str
    ) -> tuple[Codes, Float32]:
        with self._kernels.on_device_of(lo=lo, hi=hi):
            faults = Faults(self.xp)
            chosen = self._kernels.choose_scale_float_nested(lo, hi, format, scale_format, faults)
            faults.check()
        return chosen

    def quantize_float(
        self,
        x: Array,
        group_size: int,
        format: str,
        scale: Float32 | None,
        out: Codes | None = None,
    ) -> Codes:
        with self._kernels.on_device_of(x=x, scale=scale, out=out):
            out = self._out(out, x.shape, FORMATS[format].code_dtype)
            faults = Faults(self.xp)
            conversion = CAST if scale is None else SCALE
            self._kernels.quantize_float(
                x, group_size, format, conversion, scale, False, out, faults
            )
            faults.check()
        return out

    def dequantize_float(
        self,
        codes: Codes,
        group_size: int,
        format: str,
        scale: Float32 | None,
        dtype: str,
        out: Array | None = None,
    ) -> Array:
        with self._kernels.on_device_of(codes=codes, scale=scale, out=out):
            out = self._out(out, codes.shape, DTYPES[dtype])
            self._kernels.dequantize_float(codes, group_size, format, scale, False, out)
        return out

    def quantize_float_packed(
        self,
        x: Array,
        group_size: int,
        format: str,
        scale_dtype: str | None,
        scale: Float32 | None = None,
        out: Bytes | None = None,
    ) -> tuple[Bytes, Float32 | None]:
        kernels, bits = self._kernels, FORMATS[format].bits
        with kernels.on_device_of(x=x, scale=scale, out=out):
            out = self._out(out, _packed_shape(x.shape, bits), np.uint8)
            faults = Faults(self.xp)
            if scale is None and scale_dtype is not None:
                lo, hi = kernels.group_range(x, group_size, faults)
                scale = kernels.choose_scale_float(lo, hi, format, scale_dtype, faults)
            conversion = CAST if scale is None else SCALE
            kernels.quantize_float(x, group_size, format, conversion, scale, bits == 4, out, faults)
            faults.check()
        return out, scale

    def dequantize_float_packed(
        self,
        packed: Bytes,
        cols: int,
        group_size: int,
        format: str,
        scale: Float32 | None,
        dtype: str,
        out: Array | None = None,
    ) -> Array:
        with self._kernels.on_device_of(packed=packed, scale=scale, out=out):
            out = self._out(out, (packed.shape[0], cols), DTYPES[dtype])
            is_packed = FORMATS[format].bits == 4
            self._kernels.dequantize_float(packed, group_size, format, scale, is_packed, out)
        return out

    # ---- Clustering ------------------------------------------------------------------------------

    def kmeans_1d(
        self, x: Array, k: int, weights: Float64 | None, with_labels: bool
    ) -> tuple[Float64, NDArray[np.int32] | None, Float64, NDArray[np.int32]]:
        problem = "kmeans_1d: got an array on a GPU, expected one on the host: there is no kernel"
        fix = "qrs.kmeans_1d(cupy.asnumpy(x), k)"
        raise DeviceError(f"{problem}; fix: {fix}", arg="x", value="cupy", expected=fix)

    # ---- k-means: CuPy's own kernels, which flush subnormals and add in any order (class B) ------

    def kmeans_assign(
        self, x: Float32, centers: Float32, out: tuple[Labels, Float32] | None = None
    ) -> tuple[Labels, Float32]:
        with self._kernels.on_device_of(x=x, centers=centers):
            labels, distances = out or (
                self.xp.empty(len(x), np.int32),
                self.xp.empty(len(x), np.float32),
            )
            if x.shape[1] == 1:
                c = centers[:, 0]
                middles = (c[:-1].astype(np.float64) + c[1:].astype(np.float64)) * 0.5
                labels[...] = self.xp.searchsorted(middles, x[:, 0].astype(np.float64))
                difference = x[:, 0] - c[labels]
                distances[...] = difference * difference
                return labels, distances
            step = max(1, _PAIRS // len(centers))
            for start in range(0, len(x), step):
                part = slice(start, start + step)
                squares = self._squared_distances(x[part], centers)
                labels[part], distances[part] = squares.argmin(axis=1), squares.min(axis=1)
        return labels, distances

    def kmeans_update(
        self, x: Float32, labels: Labels, weights: Float32 | None, k: int
    ) -> tuple[Float64, Float64]:
        with self._kernels.on_device_of(x=x, labels=labels, weights=weights):
            bincount = self.xp.bincount
            weight = self.xp.ones(len(x)) if weights is None else weights.astype(np.float64)
            sums = self.xp.empty((k, x.shape[1]), np.float64)
            for column in range(x.shape[1]):
                sums[:, column] = bincount(labels, x[:, column].astype(np.float64) * weight, k)
            return sums, bincount(labels, weight, k)

    def kmeans_potentials(
        self, x: Float32, candidates: Float32, closest: Float32, weights: Float32 | None
    ) -> Float64:
        with self._kernels.on_device_of(
            x=x, candidates=candidates, closest=closest, weights=weights
        ):
            blocks = -(-len(x) // BLOCK)
            potentials: Float64 = self.xp.empty((len(candidates), blocks), np.float64)
            summands = self.xp.zeros(blocks * BLOCK, np.float64)
            for index in range(len(candidates)):
                squares = self._squared_distances(x, candidates[index : index + 1])[:, 0]
                least = self.xp.minimum(squares, closest).astype(np.float64)
                summands[: len(x)] = least if weights is None else least * weights
                potentials[index] = summands.reshape(blocks, BLOCK).sum(axis=1)
        return potentials

    def _squared_distances(self, x: Float32, centers: Float32) -> Float32:
        squares: Float32 = self.xp.zeros((len(x), len(centers)), np.float32)
        for column in range(x.shape[1]):
            difference = x[:, column, None] - centers[None, :, column]
            squares += difference * difference
        return squares


_PAIRS = 1 << 26
"""Of a point and a center that are looked at at a time: 256 MB, three times."""


def _packed_shape(shape: tuple[int, ...], bits: int) -> tuple[int, int]:
    """Of the bytes of codes: every row starts on a byte."""
    return shape[0], -(-shape[1] * bits // 8)


def missing() -> tuple[str | None, str | None]:
    """Why the backend is not available, and what would fix it; None where it is."""
    install = "pip install 'qrs-quant[cuda13]' (for a driver of CUDA 12: 'qrs-quant[cuda12]')"
    try:
        runtime = importlib.import_module("cupy").cuda.runtime
        devices = runtime.getDeviceCount()
    except ModuleNotFoundError as error:
        return ("CuPy is not installed" if error.name == "cupy" else f"CuPy: {error}"), install
    except ImportError as error:
        return f"CuPy does not load: {error}", install
    except RuntimeError as error:  # CuPy's CUDARuntimeError is one
        return _without_devices(str(error))
    if devices == 0:
        return _without_devices("cudaErrorNoDevice")
    try:
        nvrtc.version(runtime.runtimeGetVersion() // 1000)
    except DeviceError as error:
        return str(error).split("; fix: ")[0], error.expected
    return None, None


def _without_devices(error: str) -> tuple[str, str]:
    """The words for what the CUDA runtime says when asked for its devices."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if "cudaErrorInsufficientDriver" in error:
        return (
            f"there is no NVIDIA driver, or one too old for this CuPy ({error})",
            "install the NVIDIA driver of the GPU, or a CuPy for the CUDA version of the driver",
        )
    if "cudaErrorNoDevice" in error and visible is not None:
        return (
            f"no CUDA device is visible: CUDA_VISIBLE_DEVICES={visible!r} ({error})",
            "unset CUDA_VISIBLE_DEVICES, or name a device in it",
        )
    if "cudaErrorNoDevice" in error:
        return f"there is no CUDA device ({error})", "run where there is an NVIDIA GPU"
    return f"CUDA does not start: {error}", "see whether `nvidia-smi` works"
