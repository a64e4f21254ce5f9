"""The second witness: PTX, what NVRTC really made of a kernel, turned line by line into C++.

The C++ runs over the same shim as the source does. So what the compiler may have contracted,
flushed or reordered shows as other bits, and an instruction that ptx_opcodes.py does not know
is a KeyError.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

from cuda_cpu.cpu_module import EXPORT, CpuModule, library
from cuda_cpu.ptx_opcodes import C_TYPES, RULES
from qrs.backends import nvrtc

SPECIAL = {"tid": "threadIdx", "ntid": "blockDim", "ctaid": "blockIdx", "nctaid": "gridDim"}
# Where a load or store may go, and what does not matter on a CPU.
SPACES = {"global", "shared", "local", "const"}
HINTS = {"nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "relaxed", "gpu", "sys", "cta", "volatile"}
HINT = re.compile(r"(L1|L2)::\w+")
VARIABLE = re.compile(
    r"\.(const|global|shared|local)\s+\.align\s+(\d+)\s+\.(\w+)\s+([\w$]+)(?:\[(\d+)\])?"
    r"(?:\s*=\s*\{([^}]*)\})?\s*;"
)
ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)[^{]*(?=\{)")
PARAM = re.compile(
    r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+(?:\.ptr[^,]*?\s)?([\w$]+)(?:\[(\d+)\])?"
)
REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.+)")


class PtxModule(CpuModule):
    """The kernels of a family, or of any source text, as NVRTC's PTX for compute_80 says them."""

    def __init__(
        self, family_or_source: str, names: Sequence[str], order: int | None = None
    ) -> None:
        self._prepare(family_or_source, names, order)
        self._library = library(_translated(self.source, self.names), "ptx_cpu.h")


@cache
def _translated(source: str, names: tuple[str, ...]) -> str:
    program = nvrtc.compile_ptx(source, names)
    return translate(program.ptx, [program.lowered[name] for name in names])


def translate(ptx: str, entries: Sequence[str]) -> str:
    """C++ over the shim for the named entries of a PTX module, exported in their order."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", ptx, flags=re.S)
    variables = Variables(text)
    bodies = {match[1]: match for match in ENTRY.finditer(text)}
    shared = f"alignas(256) __shared__ unsigned char shared_space[{variables.shared_end}];"
    parts = [EXPORT, shared, *variables.definitions]
    for i, name in enumerate(entries):
        match = bodies[name]
        entry = Entry(match[2], variables)
        line = text[: match.end()].count("\n") + 1
        parts += [f"static void kernel_{i}(void** args) {{", *entry.body(text[match.end() :], line)]
        parts += [
            "}",
            f'EXPORT const char* qrs_signature_{i}() {{ return "{" ".join(entry.kinds)}"; }}',
            f"EXPORT const char* qrs_launch_{i}(unsigned* grid, unsigned* block, void** args,"
            " unsigned order, char* stacks) {"
            f" auto kernel = [=] {{ kernel_{i}(args); }};"
            " return cuda_cpu::run_grid(grid, block, order, stacks, kernel); }",
        ]
    return "\n".join(parts) + "\n"


class Variables:
    """The variables of a module: what each name stands for as an operand."""

    def __init__(self, text: str) -> None:
        self.address: dict[str, str] = {}
        self.definitions: list[str] = []
        self.shared_end = 256  # SHARED_NULL of ptx_cpu.h
        for space, align, kind, name, length, values in VARIABLE.findall(text):
            count, c = int(length or 1), C_TYPES[kind]
            size = count * (int(kind[1:]) // 8)
            if space == "shared":
                offset = -(-self.shared_end // int(align)) * int(align)
                self.address[name] = f"uint64_t({offset})"
                self.shared_end = offset + size
                continue
            self.address[name] = f"uint64_t(V_{name})".replace("$", "_")
            if space != "local":  # those are in their function
                values = values if "0f" not in values else _float_values(values)
                name = f"V_{name.replace('$', '_')}[{count}]"
                self.definitions.append(f"alignas({align}) static {c} {name} = {{{values}}};")


def _float_values(values: str) -> str:
    return ", ".join(f"qrs_bits<float>(0x{v.strip()[2:]}u)" for v in values.split(","))


@dataclass
class Entry:
    """One kernel: its parameters, its registers, and its statements as C++."""

    params: str
    variables: Variables
    kinds: list[str] = field(default_factory=list)
    _index: dict[str, int] = field(default_factory=dict)
    _classes: dict[str, str] = field(default_factory=dict)  # "%r" -> "uint32_t"
    _scopes: list[dict[str, str]] = field(default_factory=list)  # of inline PTX
    _declared: dict[str, str] = field(default_factory=dict)  # C++ names of registers
    _tables: dict[str, list[str]] = field(default_factory=dict)
    _scope_count: int = 0

    def __post_init__(self) -> None:
        for kind, name, length in PARAM.findall(self.params):
            self._index[name] = len(self.kinds)
            self.kinds.append(_kind(kind, length))

    def body(self, text: str, line: int) -> list[str]:
        """C++ for what is between the braces that `text` begins with."""
        lines, local = [], []
        for number, statement in statements(text, line):
            if statement == "{":
                self._scope_count += 1
                self._scopes.append({})
            elif statement == "}":
                self._scopes.pop()
            elif statement.endswith(":"):
                lines.append(f"{_label(statement[:-1])}:;")
            elif statement.startswith(".local"):
                _, align, kind, name, length, _ = VARIABLE.findall(statement + ";")[0]
                name = name.replace("$", "_")
                local.append(f"alignas({align}) {C_TYPES[kind]} V_{name}[{length}];")
            elif statement.startswith(".reg"):
                self._declare(statement)
            elif not statement.startswith((".shared", ".pragma", ".loc")):
                lines.append(self.statement(statement, number))
        registers = [f"{c} {name}{{}};" for name, c in self._declared.items()]
        return [*registers, *local, *lines]

    def _declare(self, statement: str) -> None:
        match = REGISTERS.fullmatch(statement)
        assert match is not None, statement
        c = {"float": "uint32_t", "double": "uint64_t"}.get(C_TYPES[match[1]], C_TYPES[match[1]])
        for name in (n.strip() for n in match[2].split(",")):
            if "<" in name:
                self._classes[name.split("<")[0]] = c
                continue
            unique = f"L{self._scope_count}_{re.sub(r'[^0-9a-zA-Z_]', '_', name)}"
            self._scopes[-1][name] = self._declared.setdefault(unique, c) and unique

    def statement(self, text: str, line: int) -> str:
        """One instruction, with its predicate."""
        guard = ""
        if text.startswith("@"):
            predicate, text = text.split(None, 1)
            guard = f"if ({self.raw(predicate[1:])}) "
        opcode, _, rest = text.partition(" ")
        code = self.instruction(opcode, split_operands(rest), line)
        return f"{guard}{{ {code} }}"

    def instruction(self, opcode: str, operands: list[str], line: int) -> str:
        rule = RULES.get(opcode)
        if rule is not None:
            values = zip(rule.operands, operands[1:], strict=True)
            call = ", ".join(self.typed(c, operand) for c, operand in values)
            return f"ptx::set({self.raw(operands[0])}, {rule.result}({rule.call}({call})));"
        name, *modifiers = opcode.split(".")
        special = getattr(self, f"_{name}", None)
        if special is None:
            raise KeyError(opcode)
        return special(opcode, modifiers, operands, line)

    # ---- Operands

    def raw(self, operand: str) -> str:
        """The bits of an operand, as C++; of a register, what can be assigned to."""
        if operand.startswith("!"):
            return f"!{self.raw(operand[1:])}"
        for scope in reversed(self._scopes):
            if operand in scope:
                return scope[operand]
        if match := re.fullmatch(r"(%[a-zA-Z]+)(\d+)", operand):
            name = f"R_{match[1][1:]}{match[2]}"
            self._declared.setdefault(name, self._classes[match[1]])
            return name
        if match := re.fullmatch(r"%(\w+)\.([xyz])", operand):
            return f"{SPECIAL[match[1]]}.{match[2]}"
        if match := re.fullmatch(r"0([fFdD])([0-9a-fA-F]+)", operand):
            return f"uint{32 if match[1] in 'fF' else 64}_t(0x{match[2]}ull)"
        if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)U?", operand):
            return f"int64_t({operand.rstrip('U')}{'ull' if operand[0] != '-' else 'll'})"
        if operand in ("%SP", "%SPL"):
            self._declared.setdefault(f"R_{operand[1:]}", "uint64_t")
            return f"R_{operand[1:]}"
        if operand == "%laneid":
            return "cuda_cpu::lane_id()"
        return self.variables.address[operand]

    def typed(self, c: str, operand: str) -> str:
        return f"ptx::as<{c}>({self.raw(operand)})"

    def address(self, operand: str) -> str:
        base, _, offset = operand.strip("[] ").partition("+")
        if base.lstrip("-").isdigit():
            return f"uint64_t({base})"
        return f"(uint64_t({self.raw(base)}) + uint64_t({offset or 0}ll))"

    def pointer(self, modifiers: list[str], c: str, count: int, operand: str) -> str:
        """A typed pointer to what a load, store or atomic names, its alignment checked."""
        address = self.address(operand)
        if "shared" in modifiers:
            size = f"{count} * sizeof({c})"
            address = f"ptx::from_shared(shared_space, {address}, {size})"
        return f"ptx::aligned<{c}, {count}>({address})"

    # ---- Instructions whose operands are no plain values

    def _ld(self, opcode: str, modifiers: list[str], operands: list[str], line: int) -> str:
        registers = vector(operands[0])
        c = access_type(opcode, modifiers, len(registers))
        if "param" in modifiers:
            name, _, offset = operands[1].strip("[] ").partition("+")
            first = f"reinterpret_cast<const char*>(args[{self._index[name]}]) + {offset or 0}"
            pointer = f"reinterpret_cast<const {c}*>({first})"
        else:
            pointer = self.pointer(modifiers, c, len(registers), operands[1])
        sets = [f"ptx::set({self.raw(r)}, p[{i}]);" for i, r in enumerate(registers) if r != "_"]
        return f"auto p = {pointer}; {' '.join(sets)}"

    def _st(self, opcode: str, modifiers: list[str], operands: list[str], line: int) -> str:
        values = vector(operands[1])
        c = access_type(opcode, modifiers, len(values))
        pointer = self.pointer(modifiers, c, len(values), operands[0])
        stores = [f"p[{i}] = {self.typed(c, v)};" for i, v in enumerate(values)]
        return f"auto p = {pointer}; {' '.join(stores)}"

    def _atom(self, opcode: str, modifiers: list[str], operands: list[str], line: int) -> str:
        call = self._atomic(opcode, modifiers, operands[1:])
        return f"ptx::set({self.raw(operands[0])}, {call});"

    def _red(self, opcode: str, modifiers: list[str], operands: list[str], line: int) -> str:
        return f"{self._atomic(opcode, modifiers, operands)};"

    def _atomic(self, opcode: str, modifiers: list[str], operands: list[str]) -> str:
        *places, operation, kind = modifiers
        calls = {"add", "min", "max", "and", "or", "xor", "exch", "cas"}
        if operation not in calls or kind in ("f32", "f64") or set(places) - SPACES - HINTS:
            raise KeyError(opcode)
        c = C_TYPES[kind]
        name = "atomicCAS" if operation == "cas" else f"atomic{operation.capitalize()}"
        values = ", ".join(self.typed(c, operand) for operand in operands[1:])
        return f"{name}({self.pointer(places, c, 1, operands[0])}, {values})"

    def _mov(self, opcode: str, modifiers: list[str], operands: list[str], line: int) -> str:
        (kind,) = modifiers
        to, of = vector(operands[0]), vector(operands[1])
        if len(to) == len(of) == 1:
            return f"ptx::set({self.raw(to[0])}, {self.typed(C_TYPES[kind], of[0])});"
        bits = int(kind[1:]) // max(len(to), len(of))
        if len(to) == 1:
            parts = [
                f"uint64_t(uint{bits}_t({self.raw(v)})) << {bits * i}" for i, v in enumerate(of)
            ]
            return f"ptx::set({self.raw(to[0])}, uint{kind[1:]}_t({' | '.join(parts)}));"
        sets = [
            f"ptx::set({self.raw(r)}, uint{bits}_t(v >> {bits * i}));"
            for i, r in enumerate(to)
            if r != "_"
        ]
        return f"const uint64_t v = uint{kind[1:]}_t({self.raw(of[0])}); {' '.join(sets)}"

    def _cvta(self, opcode: str, modifiers: list[str], operands: list[str], line: int) -> str:
        value = f"uint64_t({self.raw(operands[1])})"
        if "shared" in modifiers and "to" in modifiers:
            value = f"{value} - uint64_t(shared_space)"
        elif "shared" in modifiers:
            value = f"ptx::from_shared(shared_space, {value}, 0)"
        return f"ptx::set({self.raw(operands[0])}, {value});"

    def _bra(self, opcode: str, modifiers: list[str], operands: list[str], line: int) -> str:
        return f"goto {_label(operands[0])};"

    def _ret(self, opcode: str, modifiers: list[str], operands: list[str], line: int) -> str:
        return "return;"

    _exit = _ret

    def _trap(self, opcode: str, modifiers: list[str], operands: list[str], line: int) -> str:
        return "__trap();"

    def _membar(self, opcode: str, modifiers: list[str], operands: list[str], line: int) -> str:
        return ""

    _fence = _membar

    # ---- Barriers and warp operations

    def _bar(self, opcode: str, modifiers: list[str], operands: list[str], line: int) -> str:
        if opcode == "bar.warp.sync":
            return f"ptx::bar_warp({self.typed('uint32_t', operands[0])}, {line});"
        if opcode in ("bar.red.or.pred", "bar.red.and.pred") and operands[1] == "0":
            call = f"ptx::bar_{modifiers[1]}({self.typed('bool', operands[2])}, {line})"
            return f"ptx::set({self.raw(operands[0])}, {call});"
        if opcode not in ("bar.sync", "barrier.sync") or operands != ["0"]:
            raise KeyError(f"{opcode} {operands}")
        return f"ptx::bar({line});"

    _barrier = _bar

    def _shfl(self, opcode: str, modifiers: list[str], operands: list[str], line: int) -> str:
        kind = {"idx": "i", "bfly": "x", "up": "u", "down": "d"}[modifiers[1]]
        to, _, inside = operands[0].partition("|")
        values = ", ".join(self.typed("uint32_t", operand) for operand in operands[1:])
        code = f"bool p; const uint32_t v = ptx::shfl('{kind}', {values}, &p, {line});"
        code += f" {self.raw(to)} = v;"
        return f"{code} {self.raw(inside)} = p;" if inside else code

    def _vote(self, opcode: str, modifiers: list[str], operands: list[str], line: int) -> str:
        call = {"any": "any", "all": "all", "ballot": "ballot"}[modifiers[1]]
        values = f"{self.typed('bool', operands[1])}, {self.typed('uint32_t', operands[2])}"
        return f"ptx::set({self.raw(operands[0])}, ptx::{call}({values}, {line}));"

    def _match(self, opcode: str, modifiers: list[str], operands: list[str], line: int) -> str:
        c = {"match.any.sync.b32": "uint32_t", "match.any.sync.b64": "uint64_t"}[opcode]
        values = f"{self.typed('uint32_t', operands[2])}, {self.typed(c, operands[1])}"
        return f'ptx::set({self.raw(operands[0])}, __match_any_sync({values}, "ptx", {line}));'

    def _redux(self, opcode: str, modifiers: list[str], operands: list[str], line: int) -> str:
        c = {"u32": "uint32_t", "s32": "int32_t", "b32": "uint32_t"}[modifiers[2]]
        values = f"{self.typed('uint32_t', operands[2])}, {self.typed(c, operands[1])}"
        call = f'__reduce_{modifiers[1]}_sync({values}, "ptx", {line})'
        return f"ptx::set({self.raw(operands[0])}, {call});"

    def _activemask(self, opcode: str, modifiers: list[str], operands: list[str], line: int) -> str:
        return f"ptx::set({self.raw(operands[0])}, __activemask());"


def statements(text: str, line: int) -> Iterator[tuple[int, str]]:
    """Line and text of each statement, label and brace of a body, without the outer braces."""
    depth, at = 0, 0
    token = re.compile(r"\s*([{}]|[\w$]+:|[^;{}]*(?:\{[^}]*\}[^;{}]*)*;)", re.S)
    while match := token.match(text, at):
        number = line + text.count("\n", 0, match.start(1))
        at, word = match.end(), match[1]
        depth += (word == "{") - (word == "}")
        if depth == 0:
            return
        if depth > 1 or word not in "{}":
            yield number, " ".join(word.rstrip(";").split())
    raise ValueError(f"line {line}: a body without an end")


def split_operands(text: str) -> list[str]:
    """Operands between commas, those of a vector kept together."""
    return [part.strip() for part in re.findall(r"(?:\{[^}]*\}|[^,{])+", text) if part.strip()]


def vector(operand: str) -> list[str]:
    """The registers of `{%r1, %r2}`, or the one there is."""
    return [part.strip() for part in operand.strip("{} ").split(",")]


def access_type(opcode: str, modifiers: list[str], count: int) -> str:
    """The C type of one element of a load or store; KeyError for what is not known."""
    *others, kind = modifiers
    known = SPACES | HINTS | {"param", f"v{count}"}
    if any(m not in known and not HINT.fullmatch(m) for m in others) or kind not in C_TYPES:
        raise KeyError(opcode)
    return C_TYPES[kind]


def _label(name: str) -> str:
    return name.replace("$", "_")


def _kind(kind: str, length: str) -> str:
    """The kind of a parameter for `cpu_module.arguments`: PTX does not tell pointers from u64."""
    if length:
        return f"s{length}"
    if kind in ("u64", "b64", "s64"):
        return "q8"
    return ("f" if kind in ("f32", "f64") else "i") + str(int(kind[1:]) // 8)
