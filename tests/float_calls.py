"""Call the float operations of any backend with the same arguments; the twin of `kernel_calls`.

What an operation needs from earlier ones comes from the reference, whoever is called.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kernel_calls import REFERENCE
from qrs.backends.reference import Reference
from qrs.errors import KernelFault
from qrs.float_formats import FORMATS


@dataclass(frozen=True)
class FloatRule:
    """The parameters of a float scheme, as kernels take them."""

    format: str
    scale_dtype: str | None
    saturate: bool = False
    scale_format: str = "e4m3"


def rules() -> dict[str, FloatRule]:
    """Every format with every kind of scale; saturation and scale formats take turns."""
    kinds = (None, "float32", "float16", "bfloat16", "e8m0")
    found = {}
    for i, format in enumerate(FORMATS):
        for k, kind in enumerate(kinds):
            nested = ("e4m3", "e5m2", "bf16", "f16")[(i + k) % 4]
            found[f"{format}-{kind}"] = FloatRule(format, kind, (i + k) % 2 == 0, nested)
    return found


FLOAT_RULES = rules()


class FloatCase:
    """One array with its group size and rule, and what the reference makes of it on demand."""

    def __init__(self, x: np.ndarray, group_size: int, rule: FloatRule) -> None:
        self.x, self.group_size, self.rule = x, group_size, rule
        self.dtype = x.dtype.name
        self._arguments: dict[str, tuple | KernelFault] = {}

    def arguments(self, op: str) -> tuple | KernelFault:
        """Those of `op`, made once; the fault, where the reference cannot."""
        if op not in self._arguments:
            try:
                self._arguments[op] = FLOAT_ARGUMENTS[op](self)
            except KernelFault as fault:
                self._arguments[op] = fault
        return self._arguments[op]

    @cached_property
    def ranges(self):
        return REFERENCE.group_range(self.x, self.group_size)

    @cached_property
    def encoded(self):
        return REFERENCE.encode_float(self.x, self.rule.format, self.rule.saturate)

    @cached_property
    def scale(self):
        if self.rule.scale_dtype is None:
            return None
        return REFERENCE.choose_scale_float(*self.ranges, self.rule.format, self.rule.scale_dtype)

    @cached_property
    def codes(self):
        return REFERENCE.quantize_float(self.x, self.group_size, self.rule.format, self.scale)

    @cached_property
    def packed(self):
        return REFERENCE.quantize_float_packed(
            self.x, self.group_size, self.rule.format, None, self.scale
        )[0]


# op -> arguments without `out`.
FLOAT_ARGUMENTS = {
    "encode_float": lambda c: (c.x, c.rule.format, c.rule.saturate),
    "decode_float": lambda c: (c.encoded, c.rule.format, c.dtype),
    "choose_scale_float": lambda c: (*c.ranges, c.rule.format, c.rule.scale_dtype or "float32"),
    "choose_scale_float_nested": lambda c: (*c.ranges, c.rule.format, c.rule.scale_format),
    "quantize_float": lambda c: (c.x, c.group_size, c.rule.format, c.scale),
    "dequantize_float": lambda c: (c.codes, c.group_size, c.rule.format, c.scale, c.dtype),
    "quantize_float_packed": lambda c: (
        c.x, c.group_size, c.rule.format, c.rule.scale_dtype, None,
    ),
    "dequantize_float_packed": lambda c: (
        c.packed, c.x.shape[1], c.group_size, c.rule.format, c.scale, c.dtype,
    ),
}  # fmt: skip
FLOATS_WITH_OUT = tuple(op for op in FLOAT_ARGUMENTS if not op.startswith("choose"))


def call_float(backend: Reference, op: str, case: FloatCase, out: np.ndarray | None = None):
    """The arrays that an operation returns, or ("fault", reason, group)."""
    arguments = case.arguments(op)
    if isinstance(arguments, KernelFault):
        return "no arguments", arguments.reason, arguments.group
    try:
        result = getattr(backend, op)(*arguments, *([] if out is None else [out]))
    except KernelFault as fault:
        return "fault", fault.reason, fault.group
    return result if isinstance(result, tuple) else (result,)
