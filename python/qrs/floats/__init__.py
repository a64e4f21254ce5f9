"""Number formats: conversion both ways, the anatomy of one number, and the table of formats.

>>> import qrs
>>> qrs.floats.encode([0.1, 448.0, 1e9], "e4m3").view("uint8").tolist()
[29, 126, 126]
>>> qrs.floats.decode([29, 126], "e4m3").tolist()
[0.1015625, 448.0]

The arithmetic is that of the backends, rule 9 of the contract in `qrs.backends.reference`. There
are no scales here: `qrs.quantize` has them.
"""

from .anatomy import Format, Parts, decompose, decompose_code, table
from .convert import INT8, NAMES, decode, encode, format_name

__all__ = [
    "INT8",
    "NAMES",
    "Format",
    "Parts",
    "decode",
    "decompose",
    "decompose_code",
    "encode",
    "format_name",
    "table",
]
