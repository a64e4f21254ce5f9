"""Schemes: which values can be stored. `parse` reads their short strings.

To add a scheme, write one module with a `Scheme` subclass and import it here.
"""

from __future__ import annotations

from functools import lru_cache

from ..errors import ArgTypeError, bad
from .base import Scheme, from_dict
from .basis import ColumnScaled, InBasis, Rotated
from .codebook import FP4, NF4, Codebook, KMeans, LearnedCodebook
from .float import MXFP4, MXFP8, NVFP4, Float
from .int import Int
from .offset import IntOffset, Offset

__all__ = [
    "FP4",
    "MXFP4",
    "MXFP8",
    "NF4",
    "NVFP4",
    "Codebook",
    "ColumnScaled",
    "Float",
    "InBasis",
    "Int",
    "IntOffset",
    "KMeans",
    "LearnedCodebook",
    "Offset",
    "Rotated",
    "Scheme",
    "as_scheme",
    "from_dict",
    "parse",
]

GRAMMAR = (
    "int<b>|uint<b>[-axisN|-gN][-asym][-full][-f16|-bf16][-flat][-ragged], b = 2..8; or "
    "bf16|f16|e4m3|e5m2|e2m1[-tensor|-axisN|-gN][-f16|-bf16|-e8m0][-flat][-ragged]; or "
    "nvfp4|mxfp4|mxfp8[-flat][-ragged]; or nf4|fp4[-gN][-dq][-f16|-bf16][-flat][-ragged]; or "
    "kmeans<b>[-axisN|-gN][-f32|-bf16][-sparse<fraction>][-flat][-ragged]; or "
    "learned<b>-gN-s6|-s8|-s16[-f32|-bf16][-flat][-ragged]; or "
    "uint<b>[-axisN|-gN]-offset[-f16|-bf16][-flat][-ragged]; each with -scaled or -rotN"
)


def parse(text: str) -> Scheme:
    """The scheme that a string spells: `parse(str(s)) == s`.

    Grammar: `int<b>|uint<b>[-axisN|-gN][-asym][-full][-f16|-bf16][-flat][-ragged]`; `-axisN` is a
    scale per index of axis N, `-gN` per N elements of the last axis, `-asym` an asymmetric signed
    scheme (unsigned ones always are), `-f16` and `-bf16` the dtype of the scales, `-flat` groups
    along all axes but the first, `-ragged` a shorter last group. Float schemes begin with a format;
    without `-tensor`, `-axisN` or `-gN` they are plain casts, and then `-strict` refuses what is
    too large. `-e8m0` stores scales as powers of two. `nvfp4`, `mxfp4`, `mxfp8` are whole schemes.
    `nf4` and `fp4` have groups of 64 without `-gN`, and `-dq` quantizes their scales; `-f32` and
    `-bf16` after `kmeans` and `learned` are the dtype of the tables, `-sparse0.0045` the part of
    outliers, and `-s6` the bits of the scales. `-offset` adds a float to each group. Behind any of
    them `-scaled` has a factor for each input, and `-rot128` rotates blocks of 128 inputs.

    Raises `ArgTypeError`, and `ArgValueError` for a string that is no scheme.

    >>> parse("int4-g128-asym-f16") == Int(
    ...     4, group_size=128, symmetric=False, scale_dtype="float16")
    True
    >>> parse("e4m3-g32") == Float("e4m3", group_size=32), parse("mxfp4") == MXFP4()
    (True, True)
    """
    if not isinstance(text, str):
        raise bad("scheme", f"got {text!r}", text, f"a scheme or a string: {GRAMMAR}", ArgTypeError)
    return _parsed(text)


@lru_cache(maxsize=256)
def _parsed(text: str) -> Scheme:
    for family in Scheme.families.values():
        scheme = family.parse(text)
        if scheme is not None:
            return scheme
    raise bad("scheme", f"cannot read {text!r}", text, GRAMMAR)


def as_scheme(scheme: Scheme | str) -> Scheme:
    """A scheme from a scheme or its string."""
    return scheme if isinstance(scheme, Scheme) else parse(scheme)
