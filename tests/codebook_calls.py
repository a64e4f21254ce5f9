"""Call the codebook operations of any backend with the same arguments; the twin of `kernel_calls`.

What an operation needs from earlier ones comes from the reference, whoever is called.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kernel_calls import REFERENCE
from qrs.backends.reference import Reference
from qrs.codebooks import LSQ_FACTORS, TABLES, half_even_thresholds, ranked, thresholds
from qrs.errors import KernelFault


@dataclass(frozen=True)
class BookRule:
    """The parameters of a codebook scheme, as kernels take them.

    `table` is a tuple of levels by code, or the number of levels that are learned.
    """

    table: tuple[float, ...] | int
    scale_dtype: str | None = "float32"
    books: str = "one"
    offset: float | None = None
    weighted: bool = False

    @property
    def levels(self) -> int:
        return self.table if isinstance(self.table, int) else len(self.table)

    @property
    def bits(self) -> int:
        return max((self.levels - 1).bit_length(), 2)


INT4 = tuple(float(q) for q in range(-7, 8))
UNEVEN = (-3.0, -0.5, 2.0)
BOOK_RULES = {
    "nf4": BookRule(TABLES["nf4"]),
    "nf4-f16-offset": BookRule(TABLES["nf4"], "float16", offset=0.37),
    "nf4-none": BookRule(TABLES["nf4"], None, weighted=True),
    "fp4": BookRule(TABLES["fp4"], "bfloat16", weighted=True),
    "dynamic8": BookRule(TABLES["dynamic8"], weighted=True),
    "dynamic8-none-offset": BookRule(TABLES["dynamic8"], None, offset=-1e-3),
    "learned-2-rows": BookRule(2, None, books="rows"),
    "learned-6-groups": BookRule(6, "float32", books="groups", weighted=True),
    "learned-16-groups-none": BookRule(16, None, books="groups"),
    "learned-40-rows": BookRule(40, "float16", books="rows", offset=0.0),
    "learned-200": BookRule(200, "bfloat16"),
    "uneven": BookRule(UNEVEN, weighted=True),
    "positive": BookRule((0.0, 0.5, 1.5), offset=-2.0),
    "int4": BookRule(INT4, "float16", weighted=True),
    "int8": BookRule(tuple(float(q) for q in range(-127, 128))),
}


class BookCase:
    """One array with its group size and rule, and what the reference makes of it on demand."""

    def __init__(self, x: np.ndarray, group_size: int, rule: BookRule) -> None:
        self.x, self.group_size, self.rule = x, group_size, rule
        self.dtype = x.dtype.name
        self._arguments: dict[str, tuple | KernelFault] = {}

    def arguments(self, op: str) -> tuple | KernelFault:
        """Those of `op`, made once; the fault, where the reference cannot."""
        if op not in self._arguments:
            try:
                self._arguments[op] = BOOK_ARGUMENTS[op](self)
            except KernelFault as fault:
                self._arguments[op] = fault
        return self._arguments[op]

    @cached_property
    def random(self):
        return np.random.default_rng((*self.x.shape, self.group_size, self.rule.levels))

    @cached_property
    def books(self) -> np.ndarray:
        """Ascending levels, some of them repeated where they are learned."""
        rows, cols = self.x.shape
        groups = rows * -(-cols // self.group_size)
        count = {"one": 1, "rows": rows, "groups": groups}[self.rule.books]
        levels = self.random.standard_normal((count, self.rule.levels)).astype(np.float32)
        repeats = self.random.random((count, self.rule.levels)) < 0.2
        levels[repeats] = levels[:, :1].repeat(self.rule.levels, 1)[repeats]
        return np.sort(levels, axis=1)

    @cached_property
    def table(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Ascending levels, thresholds and codes."""
        table = self.rule.table
        if isinstance(table, int):
            return self.books, thresholds(self.books), None
        levels, limits, codes = ranked(table)
        if np.array_equal(np.diff(levels), np.ones(len(levels) - 1)):
            limits = half_even_thresholds(int(levels[0]), int(levels[-1]))
        return levels[None], limits[None], codes

    @property
    def by_code(self) -> np.ndarray:
        table = self.rule.table
        return self.books if isinstance(table, int) else np.array(table, np.float32)[None]

    @property
    def ends(self) -> tuple[float, float]:
        levels = self.table[0]
        return (float(levels.min()), float(levels.max())) if levels.size else (-1.0, 1.0)

    @property
    def offset(self) -> np.ndarray | None:
        offset = self.rule.offset
        return None if offset is None else np.full((1, 1), offset, np.float32)

    @cached_property
    def weights(self) -> np.ndarray | None:
        """Some are 0, and some so small or large that sums of products underflow or overflow."""
        if not self.rule.weighted:
            return None
        weights = self.random.exponential(1, self.x.shape).astype(np.float32)
        weights[self.random.random(self.x.shape) < 0.1] = 0
        return weights * np.float32((1, 1e-35, 1e30)[self.x.shape[1] % 3])

    @cached_property
    def ranges(self):
        return REFERENCE.group_range(self.x, self.group_size)

    @cached_property
    def scale(self):
        """Those chosen; every fifth is negative."""
        if self.rule.scale_dtype is None:
            return None
        scale = REFERENCE.choose_scale_codebook(*self.ranges, *self.ends, self.rule.scale_dtype)
        scale.flat[::5] *= -1
        return scale

    @cached_property
    def codes(self):
        return REFERENCE.quantize_codebook(self.x, self.group_size, self.scale, *self.table[1:])

    @cached_property
    def packed(self):
        return REFERENCE.pack_bits(self.codes, self.rule.bits)


def lsq_arguments(c: BookCase) -> tuple:
    """The first book for all groups; starts of both signs."""
    levels, limits, _ = c.table
    if not len(levels):
        levels, limits = np.float32([[-1, 1]]), np.float32([[0]])
    dtype = c.rule.scale_dtype or "float32"
    low, high = float(levels[0].min()), float(levels[0].max())
    scale = REFERENCE.choose_scale_codebook(*c.ranges, low, high, dtype)
    factors = np.append(LSQ_FACTORS[::4], -LSQ_FACTORS[1::8])
    return c.x, c.group_size, c.weights, levels[0], limits[0], factors, scale, dtype


# op -> arguments without `out`.
BOOK_ARGUMENTS = {
    "choose_scale_codebook": lambda c: (*c.ranges, *c.ends, c.rule.scale_dtype or "float32"),
    "quantize_codebook": lambda c: (c.x, c.group_size, c.scale, *c.table[1:]),
    "dequantize_codebook": lambda c: (
        c.codes, c.group_size, c.scale, c.offset, c.by_code, c.dtype,
    ),
    "center_scales": lambda c: (c.ranges[1],),
    "choose_scale_lsq": lsq_arguments,
    "quantize_codebook_packed": lambda c: (
        c.x, c.group_size, c.rule.bits, c.ends, c.rule.scale_dtype, None, *c.table[1:],
    ),
    "dequantize_codebook_packed": lambda c: (
        c.packed, c.x.shape[1], c.group_size, c.rule.bits, c.scale, c.offset, c.by_code, c.dtype,
    ),
}  # fmt: skip
BOOKS_WITH_OUT = tuple(op for op in BOOK_ARGUMENTS if "quantize" in op)


def call_book(backend: Reference, op: str, case: BookCase, out: np.ndarray | None = None):
    """The arrays that an operation returns, or ("fault", reason, group)."""
    arguments = case.arguments(op)
    if isinstance(arguments, KernelFault):
        return "no arguments", arguments.reason, arguments.group
    try:
        result = getattr(backend, op)(*arguments, *([] if out is None else [out]))
    except KernelFault as fault:
        return "fault", fault.reason, fault.group
    return result if isinstance(result, tuple) else (result,)
