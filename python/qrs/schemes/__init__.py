"""Schemes: which values can be stored. `parse` reads their short strings.

To add a scheme, write one module with a `Scheme` subclass and import it here.
"""

from __future__ import annotations

from functools import lru_cache

from ..errors import ArgTypeError, ArgValueError
from .base import Scheme, from_dict
from .int import Int

__all__ = ["Int", "Scheme", "as_scheme", "from_dict", "parse"]

GRAMMAR = "int<b>|uint<b>[-axisN|-gN][-asym][-full][-f16|-bf16][-ragged], b = 2..8"


@lru_cache(maxsize=256)
def parse(text: str) -> Scheme:
    """The scheme that a string spells: `parse(str(s)) == s`.

    Grammar: `int<b>|uint<b>[-axisN|-gN][-asym][-full][-f16|-bf16][-ragged]`; `-axisN` is a scale
    per index of axis N, `-gN` per N elements of the last axis, `-asym` an asymmetric signed
    scheme (unsigned ones always are), `-f16` and `-bf16` the dtype of the scales.

    Raises `ArgValueError` for a string that is no scheme.

    >>> parse("int4-g128-asym-f16") == Int(
    ...     4, group_size=128, symmetric=False, scale_dtype="float16")
    True
    """
    for family in Scheme.families.values():
        scheme = family.parse(text)
        if scheme is not None:
            return scheme
    raise ArgValueError(
        f"scheme: cannot read {text!r}, expected {GRAMMAR}",
        arg="scheme",
        value=text,
        expected=GRAMMAR,
    )


def as_scheme(scheme: Scheme | str) -> Scheme:
    """A scheme from a scheme or its string."""
    if isinstance(scheme, Scheme):
        return scheme
    if isinstance(scheme, str):
        return parse(scheme)
    raise ArgTypeError(
        f"scheme: got {scheme!r}, expected a scheme such as qrs.Int(8) or a string: {GRAMMAR}",
        arg="scheme",
        value=scheme,
        expected=GRAMMAR,
    )
