"""Products with weights that stay packed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import KernelFault
from ...float_formats import ALIASES
from ..cuda.launch import Faults
from ..reference import Array, Bytes, Codes, Float32, GroupedWeights, Integers
from .int8_matmul import Int8MatmulOperations, optional, tiles


@dataclass(frozen=True)
class DeviceGroupedWeights:
    """Weights on a GPU, as `pack_bits` packs them."""

    packed: Array
    cols: int
    group_size: int
    bits: int
    signed: bool
    scale: Array
    zero_point: Array | None
    books: Array | None

    def sent(self) -> tuple[Any, ...]:
        """As kernels take them: `Packed` in products.cu."""
        books = 0 if self.books is None else 1 if len(self.books) == 1 else 2
        width = 0 if self.books is None else self.books.shape[1]
        return (
            self.packed, len(self.packed), self.cols, self.group_size, self.packed.shape[1],
            self.scale, self.scale.view(np.int32) if self.zero_point is None else self.zero_point,
            self.scale if self.books is None else self.books, width, self.bits, int(self.signed),
            int(self.zero_point is not None), books,
        )  # fmt: skip


class GroupedMatmulOperations(Int8MatmulOperations):
    """Sums by the chains of their definition: here class B has the bits of Rust."""

    def pack_grouped(
        self,
        packed: Bytes,
        cols: int,
        group_size: int,
        bits: int,
        signed: bool,
        scale: Float32,
        zero_point: Integers | None = None,
        books: Float32 | None = None,
    ) -> GroupedWeights:
        if books is not None and books.shape[1] < 1 << bits:
            codes = self.unpack_bits(packed, bits, cols, signed)
            if bool((codes >= books.shape[1]).any()):
                raise KernelFault("no_level", 0)
        z = None if zero_point is None else zero_point.astype(np.int32, copy=False)
        group_size = min(group_size, max(cols, 1))
        return DeviceGroupedWeights(packed, cols, group_size, bits, signed, scale, z, books)

    def matmul_grouped(
        self,
        x: Array,
        weights: GroupedWeights,
        bias: Float32 | None = None,
        compute: str = "float32",
        out: Float32 | None = None,
    ) -> Float32:
        m, n = len(x), len(weights.packed)
        with self._kernels.on_device_of(x=x, weights=weights.packed, bias=bias, out=out):
            out = self._out(out, (m, n), np.float32)
            self._kernels.launch(
                "matmul_grouped", (ALIASES[x.dtype.name],), tiles(m, n),
                x, m, *weights.sent(), *optional(bias, weights.scale), out,
            )  # fmt: skip
        return out

    def linear_grouped_int8(
        self,
        x: Codes,
        weights: GroupedWeights,
        x_scale: Float32,
        bias: Float32 | None = None,
        out: Float32 | None = None,
    ) -> Float32:
        m, n = len(x), len(weights.packed)
        with self._kernels.on_device_of(
            x=x, weights=weights.packed, x_scale=x_scale, bias=bias, out=out
        ):
            out = self._out(out, (m, n), np.float32)
            self._kernels.launch(
                "linear_grouped_int8", (), tiles(m, n),
                x, m, *weights.sent(), x_scale, *optional(bias, weights.scale), out,
            )  # fmt: skip
        return out

    def add_matmul(
        self,
        y: Float32,
        x: Array,
        w: Float32,
        bias: Float32 | None = None,
        relu: bool = False,
        out: Float32 | None = None,
    ) -> Float32:
        with self._kernels.on_device_of(y=y, x=x, w=w, bias=bias, out=out):
            out = self._out(out, y.shape, np.float32)
            self._kernels.launch(
                "add_matmul", (ALIASES[x.dtype.name],), y.size,
                y, *y.shape, x, x.shape[1], w, *optional(bias, y), np.int32(relu), out,
            )  # fmt: skip
        return out

    def column_absmax(self, x: Array) -> Float32:
        with self._kernels.on_device_of(x=x):
            out: Float32 = self.xp.zeros((1, x.shape[1]), np.float32)
            faults = Faults(self.xp)
            types = (ALIASES[x.dtype.name],)
            self._kernels.launch("column_absmax", types, out.size, x, *x.shape, out, faults.words)
            faults.check()
        return out
