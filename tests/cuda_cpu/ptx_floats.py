"""Which float instructions may stand in PTX: exact or correctly rounded ones, no others."""

from __future__ import annotations

import re

from cuda_cpu.ptx_cpu import ENTRY, statements

FLOAT = re.compile(r"\.(f16|f16x2|bf16|bf16x2|f32|f64)\b")
ALLOWED = re.compile(
    r"(abs|neg|min|max|min\.NaN|max\.NaN|copysign|selp|mov)\.\w+"
    r"|(add|sub|mul|fma|div|rcp|sqrt)\.rn\.(f32|f64)"
    r"|setp\.(eq|ne|lt|le|gt|ge|equ|neu|ltu|leu|gtu|geu|num|nan)\.\w+"
    r"|cvt\.(rn|rni|rzi|rmi|rpi)\.\w+\.\w+|cvt\.(f32\.b?f16|f64\.f32)"
    r"|(ld|st)\.[\w.:]+"
)


def opcodes(ptx: str) -> list[tuple[int, str]]:
    """Line and opcode of each instruction of a module."""
    text = re.sub(r"//[^\n]*", "", ptx)
    found = []
    for entry in ENTRY.finditer(text):
        line = text[: entry.end()].count("\n") + 1
        for number, statement in statements(text[entry.end() :], line):
            opcode = re.sub(r"^@!?%?\w+ ", "", statement).split(" ")[0]
            if opcode not in "{}" and not opcode.startswith(".") and not opcode.endswith(":"):
                found.append((number, opcode))
    return found


def forbidden(ptx: str) -> list[str]:
    """The float instructions that the whitelist lacks, as "line: opcode"."""
    return [
        f"{line}: {opcode}"
        for line, opcode in opcodes(ptx)
        if FLOAT.search(opcode) and not ALLOWED.fullmatch(opcode)
    ]
