"""How each library does the jobs with codebooks; the other jobs are in `libraries.py`."""

from __future__ import annotations

from typing import Any

import numpy as np

import float_libraries
import libraries
import ort
from jobs import NF4_GROUP, NF4_TABLE, Array, Contender


class Qrs(float_libraries.Qrs):
    """NF4."""

    def nf4(self) -> list[Contender]:
        return self._quantize(f"nf4-g{NF4_GROUP}")

    def dequantize_nf4(self) -> list[Contender]:
        return self._dequantize(f"nf4-g{NF4_GROUP}")


class BitsAndBytes(libraries.BitsAndBytes):
    """NF4 where it comes from."""

    def nf4(self) -> list[Contender]:
        quantize, dequantize = self.functional.quantize_4bit, self.functional.dequantize_4bit

        def run() -> Any:
            return quantize(self.x, blocksize=NF4_GROUP, quant_type="nf4")

        return [Contender("quantize_4bit", run, lambda result: dequantize(*result).numpy())]

    def dequantize_nf4(self) -> list[Contender]:
        functional = self.functional
        packed, state = functional.quantize_4bit(self.x, blocksize=NF4_GROUP, quant_type="nf4")

        def run() -> Any:
            return functional.dequantize_4bit(packed, state)

        return [Contender("dequantize_4bit", run, lambda x: x.numpy())]


class OnnxRuntime(ort.OnnxRuntime):
    """The quantizer of MatMulBnb4."""

    def nf4(self) -> list[Contender]:
        from onnxruntime.capi._pybind_state import quantize_matmul_bnb4

        x = self.data.x
        packed = np.zeros(x.size // 2, np.uint8)
        absmax = np.zeros(x.size // NF4_GROUP, np.float32)

        def run() -> Any:
            quantize_matmul_bnb4(packed, x, absmax, NF4_GROUP, 1, *x.shape)
            return packed, absmax

        def x_hat(result: Any) -> Array:
            codes = np.stack([result[0] >> 4, result[0] & 15], axis=1).reshape(-1, NF4_GROUP)
            return (NF4_TABLE[codes] * result[1][:, None]).reshape(self.data.x.shape)

        return [Contender("quantize_matmul_bnb4", run, x_hat, in_place=True)]


class Numpy(float_libraries.Numpy):
    """A search among midpoints, by blocks of rows on all threads."""

    def nf4(self) -> list[Contender]:
        x = self.data.x
        packed = np.empty((len(x), x.shape[1] // 2), np.uint8)
        absmax = np.empty((len(x), x.shape[1] // NF4_GROUP), np.float32)
        middles = (NF4_TABLE[1:] + NF4_TABLE[:-1]) / 2

        def block(rows: slice) -> None:
            groups = x[rows].reshape(-1, NF4_GROUP)
            largest = np.abs(groups).max(axis=1)
            codes = np.searchsorted(middles, groups * (1 / largest)[:, None]).astype(np.uint8)
            codes = codes.reshape(-1, x.shape[1])
            packed[rows] = codes[:, 0::2] | (codes[:, 1::2] << 4)
            absmax[rows] = largest.reshape(-1, absmax.shape[1])

        def x_hat(_: Any) -> Array:
            codes = np.stack([packed & 15, packed >> 4], axis=2).reshape(len(x), -1, NF4_GROUP)
            return (NF4_TABLE[codes] * absmax[..., None]).reshape(x.shape)

        return self._contender(packed, block, x_hat)
