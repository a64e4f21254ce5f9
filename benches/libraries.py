"""How each library does each job of `jobs.py`, the way its users would write it.

One class per library, one method per job it can do; a class that cannot be made (the library is not
installed) or a method that fails is listed by `peers.py` with the reason. Everything up to the
returned function is preparation and is not timed.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from jobs import GROUP, Array, Contender, Data


class Qrs:
    """This library: once with fresh outputs, once with `out=`."""

    name = "qrs"

    def __init__(self, data: Data, threads: int) -> None:
        import qrs

        qrs.set_num_threads(threads)
        self.qrs, self.data = qrs, data

    def _quantize(self, scheme: str, **parameters: Any) -> list[Contender]:
        x, quantize = self.data.x, self.qrs.quantize
        out = quantize(x, scheme, **parameters)
        return [
            Contender("qrs", lambda: quantize(x, scheme, **parameters), self.qrs.dequantize),
            Contender(
                "qrs, out=",
                lambda: quantize(x, scheme, out=out, **parameters),
                self.qrs.dequantize,
                in_place=True,
            ),
        ]

    def _dequantize(self, scheme: str) -> list[Contender]:
        qt, dequantize = self.qrs.quantize(self.data.x, scheme), self.qrs.dequantize
        out = dequantize(qt)
        return [
            Contender("qrs", lambda: dequantize(qt), np.asarray),
            Contender("qrs, out=", lambda: dequantize(qt, out=out), np.asarray, in_place=True),
        ]

    def int8_axis0(self) -> list[Contender]:
        return self._quantize("int8-axis0")

    def int8_tensor(self) -> list[Contender]:
        return self._quantize("int8")

    def int8_given(self) -> list[Contender]:
        return self._quantize("int8", scale=self.data.s8_tensor)

    def int4_g128(self) -> list[Contender]:
        return self._quantize(f"int4-g{GROUP}-asym")

    def dequantize_int8(self) -> list[Contender]:
        return self._dequantize("int8-axis0")

    def dequantize_int4(self) -> list[Contender]:
        return self._dequantize(f"int4-g{GROUP}-asym")


class TorchCompile:
    """The plain formulas, compiled; fresh outputs, and copied into existing ones."""

    name = "torch.compile"

    def __init__(self, data: Data, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        # `into` below is compiled once for each job; past the limit torch would run it eagerly.
        torch._dynamo.config.recompile_limit = 64
        self.torch, self.data = torch, data
        self.x = torch.from_numpy(data.x)

    def _contenders(self, function: Any, args: tuple[Any, ...], x_hat: Any) -> list[Contender]:
        def into(out: Any, *args: Any) -> Any:
            result = function(*args)
            large, rest = (result[0], result[1:]) if isinstance(result, tuple) else (result, ())
            return (out.copy_(large), *rest) if rest else out.copy_(large)

        fresh, in_place = self.torch.compile(function), self.torch.compile(into)
        first = fresh(*args)
        out = self.torch.empty_like(first[0] if isinstance(first, tuple) else first)
        return [
            Contender("torch.compile", lambda: fresh(*args), x_hat),
            Contender(
                "torch.compile, into out", lambda: in_place(out, *args), x_hat, in_place=True
            ),
        ]

    def int8_axis0(self) -> list[Contender]:
        torch = self.torch

        def quantize(x: Any) -> Any:
            scale = x.abs().amax(dim=1, keepdim=True) / 127
            return torch.round(x / scale).clamp(-127, 127).to(torch.int8), scale

        return self._contenders(quantize, (self.x,), lambda r: (r[0] * r[1]).numpy())

    def int8_tensor(self) -> list[Contender]:
        torch = self.torch

        def quantize(x: Any) -> Any:
            scale = x.abs().amax() / 127
            return torch.round(x / scale).clamp(-127, 127).to(torch.int8), scale

        return self._contenders(quantize, (self.x,), lambda r: (r[0] * r[1]).numpy())

    def int8_given(self) -> list[Contender]:
        torch, scale = self.torch, self.torch.tensor(self.data.s8_tensor)

        def quantize(x: Any, scale: Any) -> Any:
            return torch.round(x / scale).clamp(-127, 127).to(torch.int8)

        return self._contenders(quantize, (self.x, scale), lambda q: (q * scale).numpy())

    def int4_g128(self) -> list[Contender]:
        torch = self.torch

        def quantize(x: Any) -> Any:
            groups = x.view(x.shape[0], -1, GROUP)
            lo = groups.amin(dim=2, keepdim=True).clamp(max=0)
            hi = groups.amax(dim=2, keepdim=True).clamp(min=0)
            scale = (hi - lo) / 15
            zero_point = torch.round(-lo / scale).clamp(0, 15)
            q = (torch.round(groups / scale) + zero_point).clamp(0, 15).to(torch.uint8)
            q = q.view(x.shape)
            return q[:, 0::2] | (q[:, 1::2] << 4), scale, zero_point

        def x_hat(result: Any) -> Array:
            packed, scale, zero_point = result
            q = torch.stack([packed & 15, packed >> 4], dim=2).view(scale.shape[0], -1, GROUP)
            return ((q - zero_point) * scale).view(self.x.shape).numpy()

        return self._contenders(quantize, (self.x,), x_hat)

    def dequantize_int8(self) -> list[Contender]:
        q, scale = self.torch.from_numpy(self.data.q8), self.torch.from_numpy(self.data.s8)
        return self._contenders(
            lambda q, scale: q.float() * scale[:, None], (q, scale), lambda r: r.numpy()
        )

    def dequantize_int4(self) -> list[Contender]:
        torch, data = self.torch, self.data

        def dequantize(packed: Any, scale: Any, zero_point: Any) -> Any:
            q = torch.stack([packed & 15, packed >> 4], dim=2).view(packed.shape[0], -1, GROUP)
            x_hat = (q.float() - zero_point[..., None]) * scale[..., None]
            return x_hat.view(packed.shape[0], -1)

        args = tuple(torch.from_numpy(array) for array in (data.packed4, data.s4, data.z4))
        return self._contenders(dequantize, args, lambda r: r.numpy())


class Torch:
    """torch's own quantization function, where the scale is given."""

    name = "torch"

    def __init__(self, data: Data, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.torch, self.data = torch, data

    def int8_given(self) -> list[Contender]:
        torch, x, scale = self.torch, self.torch.from_numpy(self.data.x), float(self.data.s8_tensor)
        return [
            Contender(
                "torch.quantize_per_tensor",
                lambda: torch.quantize_per_tensor(x, scale, 0, torch.qint8),
                lambda q: q.dequantize().numpy(),
            )
        ]


class TorchAO:
    """torchao's primitives, eager."""

    name = "torchao"

    def __init__(self, data: Data, threads: int) -> None:
        import torch
        from torchao.quantization import quant_primitives

        torch.set_num_threads(threads)
        self.torch, self.ao, self.data = torch, quant_primitives, data
        self.x = torch.from_numpy(data.x)

    def _quantize(self, block: tuple[int, int], symmetric: bool, bits: int) -> list[Contender]:
        torch, ao, x = self.torch, self.ao, self.x
        mapping = ao.MappingType.SYMMETRIC if symmetric else ao.MappingType.ASYMMETRIC
        dtype = torch.int8 if symmetric else torch.uint8
        low, high = (-127, 127) if symmetric else (0, 2**bits - 1)

        def run() -> Any:
            scale, zero = ao.choose_qparams_affine(x, mapping, block, dtype, low, high)
            q = ao.quantize_affine(x, block, scale, zero, dtype, low, high)
            return (q if bits == 8 else q[:, 0::2] | (q[:, 1::2] << 4)), scale, zero

        def x_hat(result: Any) -> Array:
            q, scale, zero = result
            if bits == 4:
                q = torch.stack([q & 15, q >> 4], dim=2).view(x.shape)
            return ao.dequantize_affine(q, block, scale, zero, dtype, low, high).numpy()

        # Its symmetric scale is absmax / 127.5, so that codes are on another grid.
        return [Contender("torchao", run, x_hat, other_grid=symmetric)]

    def int8_axis0(self) -> list[Contender]:
        return self._quantize((1, self.x.shape[1]), True, 8)

    def int8_tensor(self) -> list[Contender]:
        return self._quantize(tuple(self.x.shape), True, 8)

    def int4_g128(self) -> list[Contender]:
        return self._quantize((1, GROUP), False, 4)

    def dequantize_int8(self) -> list[Contender]:
        torch, ao, block = self.torch, self.ao, (1, self.x.shape[1])
        q, scale = torch.from_numpy(self.data.q8), torch.from_numpy(self.data.s8)
        return [
            Contender(
                "torchao",
                lambda: ao.dequantize_affine(q, block, scale, None, torch.int8, -127, 127),
                lambda r: r.numpy(),
            )
        ]

    def dequantize_int4(self) -> list[Contender]:
        torch, ao, data = self.torch, self.ao, self.data
        packed, scale = torch.from_numpy(data.packed4), torch.from_numpy(data.s4)
        zero = torch.from_numpy(data.z4).to(torch.int32)

        def run() -> Any:
            q = torch.stack([packed & 15, packed >> 4], dim=2).view(self.x.shape)
            return ao.dequantize_affine(q, (1, GROUP), scale, zero, torch.uint8, 0, 15)

        return [Contender("torchao", run, lambda r: r.numpy())]


class BitsAndBytes:
    """bitsandbytes' int8."""

    name = "bitsandbytes"

    def __init__(self, data: Data, threads: int) -> None:
        import bitsandbytes.functional as functional
        import torch

        torch.set_num_threads(threads)
        self.functional, self.x = functional, torch.from_numpy(data.x)

    def int8_axis0(self) -> list[Contender]:
        quantize = self.functional.int8_vectorwise_quant

        def x_hat(result: Any) -> Array:
            return (result[0] * (result[1][:, None] / 127)).numpy()

        return [Contender("int8_vectorwise_quant", lambda: quantize(self.x), x_hat)]


class Gguf:
    """gguf-py: blocks of 32 with float16 scales, the nearest it has. One thread by design."""

    name = "gguf"

    def __init__(self, data: Data, threads: int) -> None:
        import gguf

        self.gguf, self.data = gguf, data

    def _quantize(self, kind: str) -> list[Contender]:
        kind, quants = getattr(self.gguf.GGMLQuantizationType, kind), self.gguf.quants
        return [
            Contender(
                f"gguf-py {kind.name}",
                lambda: quants.quantize(self.data.x, kind),
                lambda blocks: quants.dequantize(blocks, kind),
                other_grid=True,
            )
        ]

    def _dequantize(self, kind: str) -> list[Contender]:
        kind, quants = getattr(self.gguf.GGMLQuantizationType, kind), self.gguf.quants
        blocks = quants.quantize(self.data.x, kind)
        return [
            Contender(
                f"gguf-py {kind.name}",
                lambda: quants.dequantize(blocks, kind),
                np.asarray,
                other_grid=True,
            )
        ]

    def int4_g128(self) -> list[Contender]:
        return self._quantize("Q4_1")

    def dequantize_int8(self) -> list[Contender]:
        return self._dequantize("Q8_0")

    def dequantize_int4(self) -> list[Contender]:
        return self._dequantize("Q4_1")


class Numpy:
    """numpy by blocks of rows that stay in the cache, one Python thread for each CPU."""

    name = "numpy"

    def __init__(self, data: Data, threads: int) -> None:
        self.data, self.pool = data, ThreadPoolExecutor(threads)

    def _contender(self, out: Array, block: Any, x_hat: Any) -> list[Contender]:
        starts = range(0, len(self.data.x), 32)

        def run() -> Array:
            list(self.pool.map(lambda start: block(slice(start, start + 32)), starts))
            return out

        return [Contender("numpy in blocks", run, x_hat, in_place=True)]

    def int8_axis0(self) -> list[Contender]:
        x = self.data.x
        out, scale = np.empty(x.shape, np.int8), np.empty((len(x), 1), np.float32)

        def block(rows: slice) -> None:
            scale[rows] = np.abs(x[rows]).max(axis=1, keepdims=True) / np.float32(127)
            values = x[rows] / scale[rows]
            out[rows] = np.rint(values, out=values)

        return self._contender(out, block, lambda q: q * scale)

    def int8_given(self) -> list[Contender]:
        x, scale, out = self.data.x, self.data.s8_tensor, np.empty(self.data.x.shape, np.int8)

        def block(rows: slice) -> None:
            values = x[rows] / scale
            out[rows] = np.clip(np.rint(values, out=values), -127, 127, out=values)

        return self._contender(out, block, lambda q: q * scale)

    def int4_g128(self) -> list[Contender]:
        x = self.data.x
        out = np.empty((len(x), x.shape[1] // 2), np.uint8)
        scale, zero_point = np.empty_like(self.data.s4), np.empty_like(self.data.z4)

        def block(rows: slice) -> None:
            groups = x[rows].reshape(-1, x.shape[1] // GROUP, GROUP)
            lo, hi = groups.min(axis=2), groups.max(axis=2)
            scale[rows] = (hi - lo) / np.float32(15)
            zero_point[rows] = np.clip(np.rint(-lo / scale[rows]), 0, 15)
            values = groups / scale[rows][..., None]
            np.rint(values, out=values)
            values += zero_point[rows][..., None]
            q = np.clip(values, 0, 15, out=values).astype(np.uint8).reshape(len(groups), -1)
            out[rows] = q[:, 0::2] | (q[:, 1::2] << 4)

        def x_hat(packed: Array) -> Array:
            q = np.stack([packed & 15, packed >> 4], axis=2).reshape(len(x), -1, GROUP)
            values = (q.astype(np.float32) - zero_point[..., None]) * scale[..., None]
            return values.reshape(x.shape)

        return self._contender(out, block, x_hat)

    def dequantize_int8(self) -> list[Contender]:
        q, scale, out = self.data.q8, self.data.s8, np.empty_like(self.data.x)

        def block(rows: slice) -> None:
            np.multiply(q[rows], scale[rows, None], out=out[rows])

        return self._contender(out, block, np.asarray)

    def dequantize_int4(self) -> list[Contender]:
        data, out = self.data, np.empty_like(self.data.x)

        def block(rows: slice) -> None:
            values = out[rows]
            np.bitwise_and(data.packed4[rows], 15, out=values[:, 0::2], casting="unsafe")
            np.right_shift(data.packed4[rows], 4, out=values[:, 1::2], casting="unsafe")
            groups = values.reshape(len(values), -1, GROUP)
            groups -= data.z4[rows][..., None]
            groups *= data.s4[rows][..., None]

        return self._contender(out, block, np.asarray)
