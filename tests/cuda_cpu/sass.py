"""What the assembler made of the kernels, read from cubins without a GPU.

    python tests/cuda_cpu/sass.py --write

rewrites kernels.json, which tests/test_cuda_build.py compares with, and the table in
docs/cuda-kernels.md. "Instructions per value" are those of the hot loops, counted as they stand,
rare branches included, over the values that a thread handles in a turn. The source of a kernel says
how many those are, in a line above its declaration:

    // values per thread and turn: 8 * V
"""

from __future__ import annotations

import ast
import json
import operator
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from qrs.backends import cuda, cupy, nvrtc
from qrs.backends.cubin_cache import cached_cubin

HERE = Path(__file__).resolve().parent
STORED = HERE / "kernels.json"
PAGE = HERE.parent.parent / "docs" / "cuda-kernels.md"
CUBINS = HERE.parent.parent / "build" / "cuda_cpu" / "cubins"
BEGIN, END = "<!-- kernels: begin -->", "<!-- kernels: end -->"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")

RESOURCES = re.compile(
    r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", re.MULTILINE
)
INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+|)([A-Z][\w.]*)([^;]*);", re.M)
VALUES = re.compile(
    r"// values per thread and turn: (.+)\n"
    r"(?:\s*template\s*<(.*)>\s*)?\s*__global__\s+(?:void\s+__launch_bounds__\([^)]*\)"
    r"|__launch_bounds__\([^)]*\)\s+void|void)\s+(\w+)\s*\("
)
SIZES = {"f16": 2, "bf16": 2, "half": 2, "float": 4, "f32": 4, "double": 8, "f64": 8}


@dataclass(frozen=True)
class Kernel:
    """One kernel on one architecture; widths of the widest global load and store are in bits."""

    registers: int
    spills: int
    shared: int
    load: int
    store: int
    per_value: float | None


@dataclass(frozen=True)
class Instruction:
    """A line of SASS: address, predicate, opcode such as "LDG.E.128", the rest."""

    address: int
    predicate: str
    opcode: str
    operands: str

    @property
    def ends(self) -> bool:
        """Whether what follows is not reached from here."""
        jumps = self.opcode.startswith(("EXIT", "RET", "BRX")) or self.opcode == "BRA"
        return jumps and not self.predicate and "," not in self.operands

    @property
    def target(self) -> int | None:
        """Where a branch goes to."""
        if not self.opcode.startswith("BRA"):
            return None
        found = re.search(r"0x([0-9a-f]+)\s*$", self.operands)
        return int(found[1], 16) if found else None

    @property
    def width(self) -> int:
        """Bits that a load or store moves."""
        for part in self.opcode.split(".")[1:]:
            if part in ("U8", "S8"):
                return 8
            if part in ("U16", "S16"):
                return 16
            if part in ("64", "128", "256"):
                return int(part)
        return 32


def analyse(cubin: Path, values: dict[str, int | None]) -> dict[str, Kernel]:
    """Each kernel of a cubin by its symbol; `values` are its values per thread and turn."""
    usage = {
        m[1]: [int(n) for n in m.groups()[1:]]
        for m in RESOURCES.finditer(_tool("-res-usage", cubin))
    }
    listing = _tool("-sass", cubin)
    kernels = {}
    for part in re.split(r"^\s+Function : ", listing, flags=re.M)[1:]:
        symbol = part.split()[0]
        code = [Instruction(int(a, 16), *rest) for a, *rest in INSTRUCTION.findall(part)]
        registers, stack, shared, local = usage[symbol]
        spilled = sum(i.opcode.startswith(("LDL", "STL")) for i in code)
        count = values[symbol]
        kernels[symbol] = Kernel(
            registers=registers,
            spills=spilled + stack + local,
            shared=shared,
            load=widest(code, "LDG"),
            store=widest(code, "STG"),
            per_value=round(hot_instructions(code) / count, 2) if count else None,
        )
    return kernels


def widest(code: Sequence[Instruction], opcode: str) -> int:
    """Bits of the widest access of a kind, 0 where there is none."""
    return max((i.width for i in code if i.opcode.startswith(opcode)), default=0)


def hot_instructions(code: Sequence[Instruction]) -> int:
    """Instructions of the innermost loops that hold the widest loads; of all, without loops.

    A kernel that reads its row twice has two such loops, and both count. Loops inside of them count
    once. Subroutines, such as the slow path of a division, stand behind the rest and do not count.
    """
    called = [int(c[1], 16) for i in code if (c := _call(i))]
    code = [i for i in code if i.address < min(called, default=2**63) and i.opcode != "NOP"]
    back = [(i.target, i.address) for i in code if i.target is not None and i.target < i.address]
    loops = [(a, b) for a, b in back if b in reachable(code, a)]
    width = widest(code, "LDG")
    hot = set()
    for load in code:
        if load.opcode.startswith("LDG") and load.width == width:
            around = [(a, b) for a, b in loops if a <= load.address <= b]
            if around:
                hot.add(min(around, key=lambda loop: loop[1] - loop[0]))
    ranges = hot or {(0, code[-1].address)}
    stops = {i.address for i in code if i.target == i.address}  # a branch to itself pads the end
    return sum(any(a <= i.address <= b for a, b in ranges) and i.address not in stops for i in code)


def reachable(code: Sequence[Instruction], start: int) -> set[int]:
    """Addresses that control may come to; code moved to the end jumps back without a loop."""
    following = {a.address: b.address for a, b in pairwise(code)}
    by_address = {i.address: i for i in code}
    seen, pending = set(), [start]
    while pending:
        address = pending.pop()
        if address in seen or address not in by_address:
            continue
        seen.add(address)
        instruction = by_address[address]
        if instruction.target is not None:
            pending.append(instruction.target)
        if not instruction.ends and address in following:
            pending.append(following[address])
    return seen


def _call(instruction: Instruction) -> re.Match[str] | None:
    if not instruction.opcode.startswith("CALL"):
        return None
    return re.search(r"0x([0-9a-f]+)\s*$", instruction.operands)


def values_per_turn(source: str, name: str) -> int | None:
    """What the comment above a kernel says, for one name expression; None without a comment."""
    kernel, _, arguments = name.partition("<")
    given = [a.strip() for a in arguments.rstrip("> ").split(",")] if arguments else []
    for expression, parameters, found in VALUES.findall(source):
        if found == kernel.strip():
            names = [p.split("=")[0].split()[-1] for p in parameters.split(",") if p.strip()]
            return _evaluate(expression, dict(zip(names, given, strict=False)))
    return None


def _evaluate(expression: str, given: dict[str, str]) -> int:
    """An expression of numbers, template parameters and sizeof(T)."""
    operators = {
        ast.Mult: operator.mul,
        ast.Div: operator.floordiv,
        ast.Add: operator.add,
        ast.Sub: operator.sub,
    }

    def value(node: ast.AST) -> int:
        if isinstance(node, ast.BinOp):
            return operators[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.Call):
            return SIZES[given[ast.unparse(node.args[0])]]
        return int(
            ast.unparse(node) if isinstance(node, ast.Constant) else given[ast.unparse(node)]
        )

    return value(ast.parse(expression.strip(), mode="eval").body)


@cache
def measure(family: str, arch: str) -> dict[str, Kernel]:
    """Each kernel of a family on one architecture, by its name expression."""
    return measure_source(cuda.source(family), names_of(family), arch)


def measure_source(source: str, names: Sequence[str], arch: str) -> dict[str, Kernel]:
    """The same for any source; cubins are kept with what else was built."""
    with patch.dict(os.environ, QRS_CACHE_DIR=str(CUBINS)):
        path, lowered = cached_cubin(source, names, arch)
    values = {lowered[name]: values_per_turn(source, name) for name in names}
    kernels = analyse(Path(path), values)
    return {name: kernels[lowered[name]] for name in names}


def names_of(family: str) -> tuple[str, ...]:
    """The name expressions that the host code uses."""
    kernels: dict[str, tuple[str, ...]] = getattr(cupy, "KERNELS", {})
    return kernels[family]


def everything() -> dict[str, dict[str, dict[str, object]]]:
    """All kernels on all architectures, as kernels.json has them."""
    return {
        name: {arch: asdict(measure(family, arch)[name]) for arch in ARCHITECTURES}
        for family in cuda.FAMILIES
        for name in names_of(family)
    }


def table(kernels: dict[str, dict[str, dict[str, object]]]) -> str:
    """The table of docs/cuda-kernels.md: one row for each kernel, architectures side by side."""
    head = ["kernel", "registers", "spills", "shared bytes", "load bits", "store bits", "per value"]
    columns = ("registers", "spills", "shared", "load", "store", "per_value")
    rows = [" | ".join(head), " | ".join(["---"] + ["---:"] * len(columns))]
    for name, by_arch in sorted(kernels.items()):
        cells = [f"`{name}`"]
        for column in columns:
            found = ["-" if k[column] is None else str(k[column]) for k in by_arch.values()]
            cells.append(found[0] if len(set(found)) == 1 else " / ".join(found))
        rows.append(" | ".join(cells))
    return "\n".join(f"| {row} |" for row in rows)


def page(kernels: dict[str, dict[str, dict[str, object]]]) -> str:
    """docs/cuda-kernels.md with its table as it should be."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    words = f"NVRTC {'.'.join(map(str, nvrtc.version()))}, {' / '.join(ARCHITECTURES)}:"
    return f"{before}{BEGIN}\n{words}\n\n{table(kernels)}\n\n{END}{rest.split(END)[1]}"


def stored() -> dict[str, dict]:
    """kernels.json: "limits", patterns of names and the most instructions per value; "kernels"."""
    return json.loads(STORED.read_text(encoding="utf-8"))


def _tool(option: str, cubin: Path) -> str:
    """What cuobjdump, of its wheel, prints; it finds nvdisasm on the PATH."""
    spec = find_spec("nvidia")
    folders = [Path(f, "cu13", "bin") for f in (spec.submodule_search_locations or ()) if spec]
    path = os.pathsep.join([*map(str, folders), os.environ.get("PATH", "")])
    command = ["cuobjdump", option, str(cubin)]
    environment = {**os.environ, "PATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
    return done.stdout


def as_text(content: dict[str, dict]) -> str:
    """kernels.json with one line for each architecture, so that a change is one line of a diff."""
    text = json.dumps(content, indent=1)
    return re.sub(r"\{\n\s+(\"registers\"[^}]*?)\n\s+\}", lambda m: _one_line(m[1]), text) + "\n"


def write() -> None:
    """Rewrite kernels.json, but for its limits, and the table in the docs."""
    limits = stored()["limits"] if STORED.exists() else {}
    kernels = everything()
    STORED.write_text(as_text({"limits": limits, "kernels": kernels}), encoding="utf-8")
    PAGE.write_text(page(kernels), encoding="utf-8")


def _one_line(fields: str) -> str:
    return "{" + re.sub(r"\s*\n\s*", " ", fields) + "}"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        write()
    else:
        print(table(everything()))
