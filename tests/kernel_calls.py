"""Call any kernel operation of any backend with the same arguments.

`call` runs one operation and returns its arrays, or the fault it raised; what an operation needs
from earlier ones (scales, codes, bytes) comes from the reference, whoever is called.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from qrs import _qrs
from qrs.backends.reference import Reference
from qrs.errors import KernelFault

REFERENCE = Reference()


def available_levels() -> list[str]:
    """The SIMD levels of this CPU, found by asking for each."""
    before, found = _qrs.simd_level(), []
    for name in ("baseline", "avx2", "avxvnni", "avx512", "amx"):
        try:
            _qrs.set_simd_level(name)
        except ValueError:
            continue
        found.append(name)
    _qrs.set_simd_level(before)
    return found


LEVELS = available_levels()


@dataclass(frozen=True)
class Rule:
    """The parameters of an affine scheme, as kernels take them."""

    bits: int
    qmin: int
    qmax: int
    symmetric: bool
    scale_dtype: str = "float32"

    @property
    def signed(self) -> bool:
        return self.qmin < 0


RULES = {
    "int8": Rule(8, -127, 127, True),
    "int8-full-f16": Rule(8, -128, 127, True, "float16"),
    "int8-asym": Rule(8, -128, 127, False),
    "uint8": Rule(8, 0, 255, False),
    "int4": Rule(4, -7, 7, True),
    "int4-full-bf16": Rule(4, -8, 7, True, "bfloat16"),
    "int4-asym-f16": Rule(4, -8, 7, False, "float16"),
    "uint4": Rule(4, 0, 15, False),
    "int3": Rule(3, -3, 3, True),
    "uint5-bf16": Rule(5, 0, 31, False, "bfloat16"),
    "int6-asym": Rule(6, -32, 31, False),
    "uint7": Rule(7, 0, 127, False),
    "int2": Rule(2, -1, 1, True),
    "uint2-f16": Rule(2, 0, 3, False, "float16"),
}


class Case:
    """One array with its group size and rule, and what the reference makes of it on demand."""

    def __init__(self, x: np.ndarray, group_size: int, rule: Rule) -> None:
        self.x, self.group_size, self.rule = x, group_size, rule
        self.dtype = x.dtype.name
        self._faults: dict[str, KernelFault | None] = {}

    @cached_property
    def ranges(self):
        return REFERENCE.group_range(self.x, self.group_size)

    @cached_property
    def qparams(self):
        rule = self.rule
        return REFERENCE.choose_qparams_affine(
            *self.ranges, rule.qmin, rule.qmax, rule.symmetric, rule.scale_dtype
        )

    @cached_property
    def codes(self):
        rule = self.rule
        return REFERENCE.quantize_affine(
            self.x, self.group_size, *self.qparams, rule.qmin, rule.qmax
        )

    @cached_property
    def packed(self):
        return REFERENCE.pack_bits(self.codes, self.rule.bits)

    def prepare(self, op: str) -> KernelFault | None:
        """Compute what `op` needs, once; the fault, where the reference cannot."""
        if op not in self._faults:
            self._faults[op] = None
            try:
                getattr(self, NEEDS.get(op, "x"))
            except KernelFault as fault:
                self._faults[op] = fault
        return self._faults[op]


# What an operation takes from earlier ones.
NEEDS = {
    "choose_qparams_affine": "ranges",
    "quantize_affine": "qparams",
    "dequantize_affine": "codes",
    "pack_bits": "codes",
    "unpack_bits": "packed",
    "dequantize_affine_packed": "packed",
}
# op -> arguments without `out`. The fused operations choose their own scales here; with scales
# given they are the "given" variants.
ARGUMENTS = {
    "group_range": lambda c: (c.x, c.group_size),
    "choose_qparams_affine": lambda c: (
        *c.ranges, c.rule.qmin, c.rule.qmax, c.rule.symmetric, c.rule.scale_dtype,
    ),
    "quantize_affine": lambda c: (c.x, c.group_size, *c.qparams, c.rule.qmin, c.rule.qmax),
    "dequantize_affine": lambda c: (c.codes, c.group_size, *c.qparams, c.dtype),
    "pack_bits": lambda c: (c.codes, c.rule.bits),
    "unpack_bits": lambda c: (c.packed, c.rule.bits, c.x.shape[1], c.rule.signed),
    "quantize_affine_packed": lambda c: (
        c.x, c.group_size, c.rule.bits, c.rule.qmin, c.rule.qmax, c.rule.symmetric,
        c.rule.scale_dtype, None, None,
    ),
    "dequantize_affine_packed": lambda c: (
        c.packed, c.x.shape[1], c.group_size, c.rule.bits, c.rule.signed, *c.qparams, c.dtype,
    ),
    "fake_quantize_affine": lambda c: (
        c.x, c.group_size, c.rule.qmin, c.rule.qmax, c.rule.symmetric, c.rule.scale_dtype,
        None, None,
    ),
}  # fmt: skip
WITH_OUT = tuple(op for op in ARGUMENTS if op not in ("group_range", "choose_qparams_affine"))


def call(backend: Reference, op: str, case: Case, out: np.ndarray | None = None):
    """The arrays that an operation returns, or ("fault", reason, group)."""
    if fault := case.prepare(op):
        return "fault", fault.reason, fault.group
    arguments = ARGUMENTS[op](case)
    try:
        result = getattr(backend, op)(*arguments, *([] if out is None else [out]))
    except KernelFault as fault:
        return "fault", fault.reason, fault.group
    return result if isinstance(result, tuple) else (result,)


def call_given(backend: Reference, op: str, case: Case):
    """A fused operation with scales known beforehand."""
    arguments = list(ARGUMENTS[op](case))
    arguments[-2:] = case.qparams
    result = getattr(backend, op)(*arguments)
    return result if isinstance(result, tuple) else (result,)


def bits_of(result: tuple) -> tuple:
    """What must be equal: dtypes, shapes and bytes of all arrays, or the fault."""
    return tuple(
        (part.dtype.name, part.shape, part.tobytes()) if isinstance(part, np.ndarray) else part
        for part in result
    )
