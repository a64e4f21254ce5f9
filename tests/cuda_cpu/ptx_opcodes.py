"""The PTX instructions that are known, each with what its operands are and the C++ that does it.

An instruction that is not here is an error: what flushes subnormals (`.ftz`) or approximates
(`.approx`) is left out on purpose, and so is arithmetic that the assembler may fuse (`add.f32`
without `.rn`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

UNSIGNED = {f"u{n}": f"uint{n}_t" for n in (8, 16, 32, 64)}
SIGNED = {f"s{n}": f"int{n}_t" for n in (8, 16, 32, 64)}
BITS = {f"b{n}": f"uint{n}_t" for n in (8, 16, 32, 64)}
FLOATS = {"f32": "float", "f64": "double"}
C_TYPES = {**UNSIGNED, **SIGNED, **BITS, **FLOATS, "pred": "bool", "f16": "uint16_t"}
INTEGERS = {k: v for k, v in {**UNSIGNED, **SIGNED}.items() if not k.endswith("8")}
WORDS = {k: v for k, v in BITS.items() if k != "b8"}

COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
UNORDERED = ("equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan")
UNSIGNED_NAMES = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}


@dataclass(frozen=True)
class Rule:
    """`result = call(operands)`, each operand read as the C type at its place."""

    call: str
    result: str
    operands: tuple[str, ...]


def _integer_rules() -> dict[str, Rule]:
    rules = {}
    for t, c in INTEGERS.items():
        wide = f"ptx::Wide<{c}>"
        for name in ("add", "sub", "div", "rem", "min", "max"):
            rules[f"{name}.{t}"] = Rule(f"ptx::{name}<{c}>", c, (c, c))
        for name in ("mul.lo", "mul.hi"):
            rules[f"{name}.{t}"] = Rule(f"ptx::{name.replace('.', '_')}<{c}>", c, (c, c))
        rules[f"mad.lo.{t}"] = Rule(f"ptx::mad_lo<{c}>", c, (c, c, c))
        if not t.endswith("64"):
            rules[f"mul.wide.{t}"] = Rule(f"ptx::mul_wide<{c}>", wide, (c, c))
            rules[f"mad.wide.{t}"] = Rule(f"ptx::mad_wide<{c}>", wide, (c, c, wide))
        if t in SIGNED:
            rules[f"neg.{t}"] = Rule(f"ptx::neg<{c}>", c, (c,))
            rules[f"abs.{t}"] = Rule(f"ptx::abs<{c}>", c, (c,))
        rules[f"shr.{t}"] = Rule(f"ptx::shr<{c}>", c, (c, "uint32_t"))
        if not t.endswith("16"):
            rules[f"bfe.{t}"] = Rule(f"ptx::bfe<{c}>", c, (c, "uint32_t", "uint32_t"))
    return rules


def _bit_rules() -> dict[str, Rule]:
    rules = {}
    for t, c in {**WORDS, "pred": "bool"}.items():
        for name in ("and", "or", "xor"):
            rules[f"{name}.{t}"] = Rule(f"ptx::{name}_<{c}>", c, (c, c))
        rules[f"not.{t}"] = Rule(f"ptx::not_<{c}>", c, (c,))
    for t, c in WORDS.items():
        rules[f"shl.{t}"] = Rule(f"ptx::shl<{c}>", c, (c, "uint32_t"))
        rules[f"shr.{t}"] = Rule(f"ptx::shr<{c}>", c, (c, "uint32_t"))
    u = "uint32_t"
    for t, c, suffix in (("b32", u, ""), ("b64", "uint64_t", "ll")):
        rules[f"popc.{t}"] = Rule(f"__popc{suffix}", u, (c,))
        rules[f"clz.{t}"] = Rule(f"__clz{suffix}", u, (c,))
        rules[f"bfi.{t}"] = Rule(f"ptx::bfi<{c}>", c, (c, c, u, u))
    rules["brev.b32"] = Rule("__brev", u, (u,))
    rules["bfind.u32"] = Rule("ptx::bfind", u, (u,))
    rules["bfind.shiftamt.u32"] = Rule("ptx::bfind_shiftamt", u, (u,))
    rules["prmt.b32"] = Rule("__byte_perm", u, (u, u, u))
    rules["lop3.b32"] = Rule("ptx::lop3", u, (u, u, u, u))
    rules["shf.l.wrap.b32"] = Rule("ptx::shf_l", u, (u, u, u))
    rules["shf.r.wrap.b32"] = Rule("ptx::shf_r", u, (u, u, u))
    return rules


def _float_rules() -> dict[str, Rule]:
    rules = {}
    for t, c in FLOATS.items():
        for name in ("add.rn", "sub.rn", "mul.rn", "div.rn"):
            rules[f"{name}.{t}"] = Rule(f"ptx::{name.replace('.', '_')}<{c}>", c, (c, c))
        for name in ("rcp.rn", "sqrt.rn"):
            rules[f"{name}.{t}"] = Rule(f"ptx::{name.replace('.', '_')}<{c}>", c, (c,))
        rules[f"fma.rn.{t}"] = Rule(f"ptx::fma_rn<{c}>", c, (c, c, c))
        for name in ("min", "max"):
            rules[f"{name}.{t}"] = Rule(f"ptx::{name}_f<{c}>", c, (c, c))
        for name in ("abs", "neg"):
            rules[f"{name}.{t}"] = Rule(f"ptx::{name}_f<{c}>", c, (c,))
        rules[f"copysign.{t}"] = Rule(f"ptx::copysign<{c}>", c, (c, c))
    for name in ("min", "max"):
        rules[f"{name}.NaN.f32"] = Rule(f"ptx::{name}_nan<float>", "float", ("float", "float"))
    return rules


def _half_rules() -> dict[str, Rule]:
    rules = {}
    for t, kind in (("f16", "ptx::F16"), ("bf16", "ptx::BF16")):
        for pair, c in (("", "uint16_t"), ("x2", "uint32_t")):
            two = pair and "2"
            for name, nan in product(("min", "max"), ("", ".NaN")):
                flags = f"{str(name == 'max').lower()}, {str(bool(nan)).lower()}"
                call = f"ptx::extreme{two}<{kind}, {flags}>"
                rules[f"{name}{nan}.{t}{pair}"] = Rule(call, c, (c, c))
            for name in ("abs", "neg"):
                rules[f"{name}.{t}{pair}"] = Rule(f"ptx::{name}_half{two}", c, (c,))
        rules[f"cvt.rn.{t}.f32"] = Rule(f"ptx::to_{t}", "uint16_t", ("float",))
        rules[f"cvt.rn.{t}x2.f32"] = Rule(f"ptx::to_{t}x2", "uint32_t", ("float", "float"))
    rules["cvt.f32.f16"] = Rule("ptx::from_f16", "float", ("uint16_t",))
    return rules


def _conversion_rules() -> dict[str, Rule]:
    rules = {}
    integers = {**UNSIGNED, **SIGNED}
    for (to, c_to), (of, c_of) in product(integers.items(), integers.items()):
        rules[f"cvt.{to}.{of}"] = Rule(f"ptx::convert<{c_to}, {c_of}>", c_to, (c_of,))
    for (f, c_f), (i, c_i) in product(FLOATS.items(), integers.items()):
        rules[f"cvt.rn.{f}.{i}"] = Rule(f"ptx::convert<{c_f}, {c_i}>", c_f, (c_i,))
        for mode in ("rni", "rzi", "rmi", "rpi"):
            if i[1:] in ("32", "64"):
                call = f"ptx::to_integer_{mode}<{c_i}, {c_f}>"
                rules[f"cvt.{mode}.{i}.{f}"] = Rule(call, c_i, (c_f,))
    for f, c in FLOATS.items():
        for mode in ("rni", "rzi", "rmi", "rpi"):
            rules[f"cvt.{mode}.{f}.{f}"] = Rule(f"ptx::{mode}<{c}>", c, (c,))
    rules["cvt.f64.f32"] = Rule("ptx::convert<double, float>", "double", ("float",))
    rules["cvt.rn.f32.f64"] = Rule("ptx::convert<float, double>", "float", ("double",))
    return rules


def _choice_rules() -> dict[str, Rule]:
    rules = {}
    for t, c in {**INTEGERS, **WORDS, **FLOATS}.items():
        rules[f"selp.{t}"] = Rule(f"ptx::selp<{c}>", c, (c, c, "bool"))
        names = {name: name for name in COMPARISONS}
        if t in FLOATS:
            names |= {name: name for name in UNORDERED}
        if t in UNSIGNED:
            names |= UNSIGNED_NAMES
        for name, call in names.items():
            rules[f"setp.{name}.{t}"] = Rule(f"ptx::{call}<{c}>", "bool", (c, c))
    return rules


def _dot_rules() -> dict[str, Rule]:
    u = "uint32_t"
    flags = {"u32": "false", "s32": "true"}
    return {
        f"dp4a.{a}.{b}": Rule(f"ptx::dp4a<{flags[a]}, {flags[b]}>", u, (u, u, u))
        for a, b in product(flags, flags)
    }


RULES = {
    **_integer_rules(),
    **_bit_rules(),
    **_float_rules(),
    **_half_rules(),
    **_conversion_rules(),
    **_choice_rules(),
    **_dot_rules(),
}
