"""A check by hand that the hot loops are vectors: python benches/check_asm.py LIBRARY_OR_BENCHMARK

Disassembles a release build (the extension module, or the binary of `cargo bench --no-run`) with
objdump, and for every copy of a hot kernel compiled for AVX2 or AVX-512 counts the innermost loops
that compute on its wide registers. Exits with 1 if a copy has none, or if one of them calls
something (loops that only move blocks may: they call memcpy). Symbols must not be stripped.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass, field

KERNELS = ("encode_part", "decode_block", "encode_decode_part", "range_groups", "pack_rows",
           "unpack_rows", "cast_block", "choose_quotients", "choose_powers_of_two")  # fmt: skip
LEVELS = {"avx2": "ymm", "avx512": "zmm"}
COPY = re.compile(rf"qrs::\w+::({'|'.join(KERNELS)})::({'|'.join(LEVELS)})\b")


# Computing on vectors, as against moving them.
WORK = re.compile(r"v(div|mul|add|sub|min|max)ps|vp(max|min|sll|srl|and|or|ternlog|shuf|multi)")


@dataclass
class Function:
    """Instructions of one compiled copy: address, text."""

    name: str
    kernel: str
    level: str
    code: list[tuple[int, str]] = field(default_factory=list)

    def loops(self) -> list[list[str]]:
        """Innermost loops: from the target of a backward jump to the jump, with none inside."""
        where = {address: index for index, (address, _) in enumerate(self.code)}
        spans = []
        for index, (address, text) in enumerate(self.code):
            jump = re.match(r"j\w+\s+([0-9a-f]+)", text)
            if jump and int(jump[1], 16) <= address and int(jump[1], 16) in where:
                spans.append((where[int(jump[1], 16)], index))
        inner = [
            (a, b) for a, b in spans
            if not any((c, d) != (a, b) and a <= c and d <= b for c, d in spans)
        ]  # fmt: skip
        return [[text for _, text in self.code[a : b + 1]] for a, b in inner]


def disassemble(path: str) -> list[Function]:
    """The copies of hot kernels in a binary."""
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", "-C", path],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    functions: list[Function] = []
    current: Function | None = None
    for line in listing.splitlines():
        if head := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            copy = COPY.search(head[1])
            current = Function(head[1], copy[1], copy[2]) if copy else None
            if current:
                functions.append(current)
        elif current and (text := re.match(r"\s*([0-9a-f]+):\s+(.*)", line)):
            current.code.append((int(text[1], 16), text[2]))
    return functions


def main() -> int:
    """Prints a line for each copy; 1 if any is at fault."""
    functions = disassemble(sys.argv[1])
    if not functions:
        print("no kernels found: is the binary stripped?")
        return 1
    bad = 0
    for function in functions:
        register = LEVELS[function.level]
        wide = [
            loop
            for loop in function.loops()
            if any(WORK.match(text) and register in text for text in loop)
        ]
        calls = [text for loop in wide for text in loop if text.startswith("call")]
        divisions = sum("vdivps" in text and register in text for loop in wide for text in loop)
        bad += not wide or bool(calls)
        verdict = "ok " if wide and not calls else "BAD"
        print(
            f"{verdict} {function.kernel:<20} {function.level:<7} {len(wide):>3} {register} loops, "
            f"{divisions} vector divisions, calls in them: {calls or 'none'}"
        )
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
