"""Integers with a float offset for each group: x_hat = q * scale + offset, q from 0 on.

ggml's Q4_1, MLX and HQQ store weights like that. It is the scheme `inner` (the levels 0, 1, 2, ...
times a scale) of an array from which the offsets are subtracted; decoding adds them in float32.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backends.reference import Reference
from ..checks import checked_integer
from ..constants import DTYPES, SCALE_DTYPES
from ..devices import library_of
from ..errors import bad
from ..qtensor import QTensor
from . import scales
from .base import Array, PartSpecs, Scheme, Shape, from_dict
from .basis import InBasis
from .codebook import Codebook
from .layout import layout_of

_SPELLING = re.compile(
    r"uint(?P<bits>\d{1,2})(?:-axis(?P<axis>-?\d{1,9})|-g(?P<group>\d{1,9}))?-offset"
    r"(?:-(?P<scale>f16|bf16))?(?P<flat>-flat)?(?P<ragged>-ragged)?",
    re.ASCII,
)


@dataclass(frozen=True)
class Offset(InBasis, Scheme, family="offset"):
    """Unsigned integers times a scale, plus an offset, both for each group. Made by `IntOffset`."""

    suits_layers = False

    inner: Scheme

    def __post_init__(self) -> None:
        table = self.inner.table if isinstance(self.inner, Codebook) else None
        counted = table is not None and table == tuple(map(float, range(len(table))))
        if not counted or not isinstance(self.inner.scale_dtype, str):
            raise bad(
                "inner", f"got {self.inner!r}", str(self.inner), "that of IntOffset(bits, ...)"
            )
        self._take_over()

    def __str__(self) -> str:
        text = f"uint{self.bits}{self.granularity.suffix()}-offset"
        suffix = SCALE_DTYPES[str(self.scale_dtype)]
        flags = {name: getattr(self.granularity, name, False) for name in ("flat", "ragged")}
        text += f"-{suffix}" if suffix else ""
        return text + "".join(f"-{name}" for name, set_ in flags.items() if set_)

    @classmethod
    def parse(cls, text: str) -> Offset | None:
        match = _SPELLING.fullmatch(text)
        if match is None:
            return None
        by_suffix = {suffix: name for name, suffix in SCALE_DTYPES.items()}
        return IntOffset(
            int(match["bits"]),
            axis=None if match["axis"] is None else int(match["axis"]),
            group_size=None if match["group"] is None else int(match["group"]),
            ragged=bool(match["ragged"]),
            flat=bool(match["flat"]),
            scale_dtype=by_suffix[match["scale"] or ""],
        )

    def to_dict(self) -> dict[str, Any]:
        return {"family": self.family, "inner": self.inner.to_dict()}

    @classmethod
    def _from_dict(cls, fields: Mapping[str, Any]) -> Offset:
        return cls._built({**fields, "inner": from_dict(fields.get("inner", {}))})

    def _with(self, inner: Scheme) -> Offset:
        return Offset(inner)

    @property
    def loads_by_rows(self) -> bool:
        return self.inner.loads_by_rows

    def own_parts(self, shape: Shape) -> PartSpecs:
        return {"offset": (str(self.scale_dtype), layout_of(self, shape).scale_shape)}

    def default_parts(self, x: Array) -> dict[str, Any]:
        """The least value of each group, as it is stored."""
        layout = layout_of(self, x.shape)
        if x.size == 0:
            return {"offset": np.zeros(layout.scale_shape, DTYPES[str(self.scale_dtype)])}
        rows = self.granularity.to_rows(x).astype(np.float32)
        starts = np.arange(0, layout.cols, layout.group_size)
        least = np.minimum.reduceat(rows, starts, axis=1) + np.float32(0)
        return self.parts_of(least, x.shape)

    def parts_of(
        self, offset: Any, shape: Shape, backend: Reference | None = None
    ) -> dict[str, Any]:
        """Offsets (rows, G), rounded to how they are stored; raises where that overflows."""
        layout, dtype = layout_of(self, shape), str(self.scale_dtype)
        with np.errstate(invalid="ignore", over="ignore"):
            stored = scales.stored(offset, dtype, layout.scale_shape, backend)
        lost = library_of(offset).isinf(scales.decoded(stored, dtype, backend))
        if (lost & library_of(offset).isfinite(offset).reshape(lost.shape)).any():
            largest = float(abs(offset).max())
            raise bad(
                "x", f"an offset of {largest:.6g} overflows {dtype}", largest, "float32 scales"
            )
        return {"offset": stored}

    def weight_into(self, w: Array, parts: Mapping[str, Any]) -> Array:
        changed: Array = w - self._spread(parts["offset"], w.shape)
        return changed

    def weight_out_of(self, w: Array, parts: Mapping[str, Any]) -> Array:
        changed: Array = w + self._spread(parts["offset"], w.shape)
        return changed

    def input_into(self, x: Array, parts: Mapping[str, Any]) -> Array:
        return x

    def check_parts(self, qt: QTensor) -> None:
        super().check_parts(qt)
        offset = scales.decoded(qt.parts["offset"], str(self.scale_dtype))
        if not library_of(offset).isfinite(offset).all():
            raise bad("offset", "has values that are not finite", None, "finite numbers")

    def select(self, qt: QTensor, index: Any) -> QTensor:
        selected = self.inner.select(self.tensor(qt), index)
        offset = self.granularity.select(qt.parts["offset"], index, len(qt.shape))
        return self.of(selected, {"offset": offset})

    def _spread(self, offset: Any, shape: Shape) -> Any:
        """Stored offsets as float32 in the shape of the array."""
        layout = layout_of(self, shape)
        if 0 in shape:
            return np.float32(0)
        decoded = scales.decoded(offset, str(self.scale_dtype)).reshape(layout.rows, layout.groups)
        each = library_of(decoded).repeat(decoded, max(layout.group_size, 1), axis=1)
        return self.granularity.from_rows(each[:, : layout.cols], shape)


def IntOffset(
    bits: int,
    *,
    axis: int | None = None,
    group_size: int | None = None,
    ragged: bool = False,
    flat: bool = False,
    scale_dtype: str = "float32",
) -> Offset:
    """Integers from 0 to 2**bits - 1 with a scale and an offset, both of `scale_dtype`.

    x_hat = q * scale + offset, rounded to float32 twice. The offset is the least value, so that
    ranges need not hold 0; `solver="lsq"` searches for better ones. Arguments as of `Int`.

    >>> import qrs
    >>> qt = qrs.quantize([[1.0, 1.25, 1.75, 4.75]], IntOffset(4, group_size=4))
    >>> str(qt.scheme), qt.codes.tolist(), qt.parts["offset"].tolist()
    ('uint4-g4-offset', [[0, 1, 3, 15]], [[1.0]])
    """
    bits = checked_integer(bits, "bits")
    if not 2 <= bits <= 8:
        raise bad("bits", f"got {bits}", bits, "2 to 8")
    if not isinstance(scale_dtype, str) or scale_dtype not in SCALE_DTYPES:
        accepted = f"one of: {', '.join(SCALE_DTYPES)}"
        raise bad("scale_dtype", f"got {scale_dtype!r}", scale_dtype, accepted)
    levels = tuple(map(float, range(1 << bits)))
    return Offset(
        Codebook(levels, axis=axis, group_size=group_size, scale_dtype=scale_dtype,
                 ragged=ragged, flat=flat)
    )  # fmt: skip
