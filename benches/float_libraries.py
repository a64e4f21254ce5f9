"""How each library does the jobs with float formats; the other jobs are in `libraries.py`."""

from __future__ import annotations

from typing import Any

import numpy as np

import libraries
from jobs import DTYPES, Contender


class Qrs(libraries.Qrs):
    """Float schemes: plain casts, MXFP4 and NVFP4."""

    def to_bf16(self) -> list[Contender]:
        return self._quantize("bf16")

    def to_f16(self) -> list[Contender]:
        return self._quantize("f16")

    def to_e4m3(self) -> list[Contender]:
        return self._quantize("e4m3")

    def from_bf16(self) -> list[Contender]:
        return self._dequantize("bf16")

    def from_f16(self) -> list[Contender]:
        return self._dequantize("f16")

    def from_e4m3(self) -> list[Contender]:
        return self._dequantize("e4m3")

    def mxfp4(self) -> list[Contender]:
        return self._quantize("mxfp4")

    def nvfp4(self) -> list[Contender]:
        return self._quantize("nvfp4")


class Numpy(libraries.Numpy):
    """`astype`, with the dtypes of ml_dtypes: as it is, and by blocks on all threads."""

    def _cast(self, x: Any, dtype: Any) -> list[Contender]:
        out = np.empty(x.shape, dtype)

        def block(rows: slice) -> None:
            out[rows] = x[rows]

        def x_hat(y: Any) -> Any:
            return y.astype(np.float32)

        return [
            Contender("astype", lambda: x.astype(dtype), x_hat),
            *self._contender(out, block, x_hat),
        ]

    def to_bf16(self) -> list[Contender]:
        return self._cast(self.data.x, DTYPES["bf16"])

    def to_f16(self) -> list[Contender]:
        return self._cast(self.data.x, DTYPES["f16"])

    def to_e4m3(self) -> list[Contender]:
        return self._cast(self.data.x, DTYPES["e4m3"])

    def from_bf16(self) -> list[Contender]:
        return self._cast(self.data.x.astype(DTYPES["bf16"]), np.float32)

    def from_f16(self) -> list[Contender]:
        return self._cast(self.data.x.astype(DTYPES["f16"]), np.float32)

    def from_e4m3(self) -> list[Contender]:
        return self._cast(self.data.x.astype(DTYPES["e4m3"]), np.float32)


class Gguf(libraries.Gguf):
    """Its MXFP4, which picks the nearest value of a table; NVFP4 it can only read."""

    def mxfp4(self) -> list[Contender]:
        return self._quantize("MXFP4")

    nvfp4 = mxfp4


class TorchAO(libraries.TorchAO):
    """torchao's prototypes, eager."""

    def mxfp4(self) -> list[Contender]:
        from torchao.prototype.mx_formats.mx_tensor import MXTensor

        torch, x = self.torch, self.x

        def run() -> Any:
            return MXTensor.to_mx(x, torch.float4_e2m1fn_x2, 32)

        return [Contender("torchao", run, self._x_hat, other_grid=True)]

    def nvfp4(self) -> list[Contender]:
        from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor

        x = self.x

        def run() -> Any:
            return NVFP4Tensor.to_nvfp4(x, per_tensor_scale=x.abs().amax() / (6 * 448))

        return [Contender("torchao", run, self._x_hat, other_grid=True)]

    def _x_hat(self, tensor: Any) -> Any:
        # Every tensor of torch has a `dequantize`, of another kind.
        convert = tensor.to_dtype if hasattr(tensor, "to_dtype") else tensor.dequantize
        return convert(self.torch.float32).numpy()
