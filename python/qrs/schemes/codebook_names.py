"""The strings of codebook schemes: `nf4-g64-dq`, `kmeans4-axis0`, `learned4-g32-s6`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ..codebooks import TABLES
from ..constants import SCALE_DTYPES
from ..granularity import PerGroup, PerTensor
from .base import Scheme

if TYPE_CHECKING:
    from .codebook import Codebook

_SHARED = r"(?:-axis(?P<axis>-?\d{1,99})|-g(?P<group_size>\d{1,99}))?"
_DTYPE = r"(?:-(?P<dtype>f32|f16|bf16))?"
_END = r"(?P<flat>-flat)?(?P<ragged>-ragged)?"
_SPELLINGS = [
    re.compile(text, re.ASCII)
    for text in (
        rf"(?P<family>nf4|fp4)(?:-g(?P<group_size>\d{{1,99}}))?(?P<double_quant>-dq)?{_DTYPE}{_END}",
        rf"(?P<family>kmeans)(?P<bits>\d{{1,99}}){_SHARED}{_DTYPE}"
        rf"(?:-sparse(?P<outlier_fraction>\d*\.?\d+(?:e-\d+)?))?{_END}",
        rf"(?P<family>learned)(?P<bits>\d{{1,99}})-g(?P<group_size>\d{{1,99}})"
        rf"-s(?P<scale_bits>\d{{1,99}}){_DTYPE}{_END}",
    )
]
_TYPES: dict[str, type] = {
    "outlier_fraction": float,
    **dict.fromkeys(("double_quant", "flat", "ragged"), bool),
}


def parsed(text: str) -> tuple[str, dict[str, Any]] | None:
    """The family that a string names, and the arguments of its short form.

    >>> parsed("nf4-g64-dq")
    ('nf4', {'group_size': 64, 'double_quant': True})
    """
    for spelling in _SPELLINGS:
        match = spelling.fullmatch(text)
        if match is not None:
            fields = {name: value for name, value in match.groupdict().items() if value is not None}
            family, dtype = fields.pop("family"), fields.pop("dtype", None)
            arguments: dict[str, Any] = {
                name: _TYPES.get(name, int)(value) for name, value in fields.items()
            }
            if dtype is not None:
                of = "scale_dtype" if family in TABLES else "book_dtype"
                arguments[of] = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[dtype]
            return family, arguments
    return None


def spelled(scheme: Codebook) -> str:
    """The string of a scheme; `parse` reads it where one of the short forms makes it."""
    text = _front(scheme) + _dtype(scheme)
    if scheme.outlier_fraction:
        text += f"-sparse{scheme.outlier_fraction!r}"
    if isinstance(scheme.granularity, PerGroup):
        text += "-flat" * scheme.granularity.flat + "-ragged" * scheme.granularity.ragged
    return text


def _front(scheme: Codebook) -> str:
    """Table, groups and how scales are quantized."""
    names = {table: name for name, table in TABLES.items()}
    shared, inner = scheme.granularity.suffix(), scheme.inner
    if scheme.table is not None:
        quantized = "" if inner is None else "-dq" if is_double_quant(inner) else f"-({inner})"
        centered = "-centered" * scheme.centered
        shared += "-tensor" * isinstance(scheme.granularity, PerTensor)
        return names.get(scheme.table, f"codebook{scheme.bits}") + shared + centered + quantized
    if scheme.scale_dtype is None:
        return f"kmeans{scheme.bits}{shared}"
    stored = str(scheme.scale_dtype)
    short = {"float16": "16", "int6-g256-ragged": "6", "int8-g256-ragged": "8"}.get(stored)
    return f"learned{scheme.bits}{shared}-" + (f"s{short}" if short else f"({stored})")


def _dtype(scheme: Codebook) -> str:
    """The dtype of the learned table, float16 by default, or that of the scales, float32."""
    if scheme.is_learned:
        return {"float16": "", "float32": "-f32", "bfloat16": "-bf16"}[scheme.book_dtype]
    if not isinstance(scheme.scale_dtype, str):
        return "" if isinstance(scheme.scale_dtype, Scheme) else "-unscaled"
    suffix = SCALE_DTYPES[scheme.scale_dtype]
    return f"-{suffix}" if suffix else ""


def is_double_quant(inner: Scheme) -> bool:
    """Whether scales are quantized as bitsandbytes does it."""
    return str(inner) == "dynamic8-g256-centered-ragged"
