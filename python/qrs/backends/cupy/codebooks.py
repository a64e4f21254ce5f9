"""Codebooks: codes of the nearest levels, their scales, and levels of codes."""

from __future__ import annotations

import numpy as np

from ...constants import DTYPES
from ..cuda.launch import Faults
from ..reference import Array, Bytes, Codes, Float32, Float64
from .affine import packed_shape
from .floats import FloatOperations


class CodebookOperations(FloatOperations):
    """Rule 8 of the contract. Tables and thresholds are on the device, as all arrays are."""

    def choose_scale_codebook(
        self, lo: Float32, hi: Float32, low: float, high: float, scale_dtype: str
    ) -> Float32:
        with self._kernels.on_device_of(lo=lo, hi=hi):
            faults = Faults(self.xp)
            scale: Float32 = self._kernels.choose_scale_codebook(
                lo, hi, low, high, scale_dtype, faults
            )
            faults.check()
        return scale

    def quantize_codebook(
        self,
        x: Array,
        group_size: int,
        scale: Float32 | None,
        thresholds: Float32,
        codes: Codes | None,
        out: Codes | None = None,
    ) -> Codes:
        kernels = self._kernels
        with kernels.on_device_of(x=x, scale=scale, thresholds=thresholds, codes=codes, out=out):
            out = self._out(out, x.shape, np.uint8)
            faults = Faults(self.xp)
            kernels.quantize_codebook(x, group_size, 8, scale, thresholds, codes, out, faults)
            faults.check()
        return out

    def dequantize_codebook(
        self,
        codes: Codes,
        group_size: int,
        scale: Float32 | None,
        offset: Float32 | None,
        book: Float32,
        dtype: str,
        out: Array | None = None,
    ) -> Array:
        cols = codes.shape[1]
        return self.dequantize_codebook_packed(
            codes, cols, group_size, 8, scale, offset, book, dtype, out
        )

    def center_scales(self, scale: Float32) -> tuple[Float32, Float32]:
        with self._kernels.on_device_of(scale=scale):
            mean, centered = self._kernels.center_scales(scale)
        return mean, centered

    def choose_scale_lsq(
        self,
        x: Array,
        group_size: int,
        weights: Float32 | None,
        levels: Float32,
        thresholds: Float32,
        factors: Float32,
        scale: Float32,
        scale_dtype: str,
    ) -> tuple[Float32, Float64]:
        tables = {"levels": levels, "thresholds": thresholds, "factors": factors}
        with self._kernels.on_device_of(x=x, weights=weights, scale=scale, **tables):
            faults = Faults(self.xp)
            chosen, errors = self._kernels.choose_scale_lsq(
                x, group_size, weights, levels, thresholds, factors, scale, scale_dtype, faults
            )
            faults.check()
        return chosen, errors

    def quantize_codebook_packed(
        self,
        x: Array,
        group_size: int,
        bits: int,
        ends: tuple[float, float],
        scale_dtype: str | None,
        scale: Float32 | None,
        thresholds: Float32,
        codes: Codes | None,
        out: Bytes | None = None,
    ) -> tuple[Bytes, Float32 | None]:
        kernels = self._kernels
        with kernels.on_device_of(x=x, scale=scale, thresholds=thresholds, codes=codes, out=out):
            out = self._out(out, packed_shape(x.shape, bits), np.uint8)
            faults = Faults(self.xp)
            if scale is None and scale_dtype is not None:
                if kernels.fits_team(x, group_size, bits, thresholds, out):
                    rule = (ends, scale_dtype, thresholds, codes)
                    scale = kernels.quantize_codebook_packed(x, group_size, *rule, out, faults)
                    faults.check()
                    return out, scale
                lo, hi = kernels.group_range(x, group_size, faults)
                scale = kernels.choose_scale_codebook(lo, hi, *ends, scale_dtype, faults)
            kernels.quantize_codebook(x, group_size, bits, scale, thresholds, codes, out, faults)
            faults.check()
        return out, scale

    def dequantize_codebook_packed(
        self,
        packed: Bytes,
        cols: int,
        group_size: int,
        bits: int,
        scale: Float32 | None,
        offset: Float32 | None,
        book: Float32,
        dtype: str,
        out: Array | None = None,
    ) -> Array:
        parts = {"packed": packed, "scale": scale, "offset": offset, "book": book, "out": out}
        with self._kernels.on_device_of(**parts):
            out = self._out(out, (packed.shape[0], cols), DTYPES[dtype])
            self._kernels.dequantize_codebook(packed, group_size, bits, scale, offset, book, out)
        return out
