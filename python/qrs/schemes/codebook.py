"""Codebooks: a code is an index into a table of levels, which is fixed or learned.

NF4 and FP4 have fixed tables and a scale per block; k-means has tables of its own for the tensor,
each row or each group, and no scales; a learned codebook has both. The tables are in
`qrs.codebooks`, the arithmetic is rule 8 of the contract in `qrs.backends.reference`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import backends, codebooks
from ..backends.reference import Reference
from ..checks import checked_integer
from ..errors import ArgTypeError, KernelFault, QrsError, bad
from ..granularity import Granularity, PerTensor, Unscaled, granularity_of
from ..qtensor import QTensor
from . import checks, codebook_checks, codebook_names, codebook_parts, scales, sparse
from .base import Array, PartSpecs, Scheme, Shape, ValueSet, from_dict
from .layout import layout_of, unpacked_bits

Float32 = NDArray[np.float32]


@dataclass(frozen=True, init=False, repr=False)
class Codebook(Scheme, family="codebook"):
    """Indices of 2 to 8 bits into a table of levels.

    Parameters
    ----------
    table : the levels by code, 4, 8, ... or 256 finite numbers in any order; or the name of a
        table of `qrs.codebooks`; or that many levels as an integer, to be learned from the data.
    book_granularity : who shares a learned table; `PerTensor()` by default. Beside scales it is
        that, and without scales it is `granularity`.
    book_dtype : how learned tables are stored: "float16", "bfloat16" or "float32".
    axis, group_size, granularity, ragged, flat : who shares a scale, as in `Int`.
    scale_dtype : "float32", "float16" or "bfloat16"; None for no scales; or a scheme, by which the
        flattened scales are quantized.
    centered : subtract the mean of all values first, and store it (`offset`).
    outlier_fraction : without scales, this part of each row, the largest magnitudes, is stored
        apart in compressed sparse rows; what is left of them after decoding is added back.

    x_hat = table[code] * scale. Scales are max(hi / highest level, lo / lowest level) of a group.
    Raises `ArgTypeError` and `ArgValueError`, which name the argument. The short forms are `NF4`,
    `FP4`, `KMeans` and `LearnedCodebook`.

    >>> import qrs
    >>> qt = qrs.quantize([[-2.0, 0.1, 1.2, 2.0]], Codebook((-1.0, 0.0, 0.5, 1.0), group_size=4))
    >>> qt.codes.tolist(), qt.dequantize().tolist()
    ([[0, 1, 2, 3]], [[-2.0, 0.0, 1.0, 2.0]])
    """

    bits: int
    table: tuple[float, ...] | None
    book_granularity: Granularity | None
    book_dtype: str
    granularity: Granularity
    scale_dtype: str | Scheme | None
    centered: bool
    outlier_fraction: float

    def __init__(
        self,
        table: Sequence[float] | str | int,
        *,
        book_granularity: Granularity | None = None,
        book_dtype: str = "float16",
        axis: int | None = None,
        group_size: int | None = None,
        granularity: Granularity | None = None,
        scale_dtype: str | Scheme | None = "float32",
        centered: bool = False,
        outlier_fraction: float = 0.0,
        ragged: bool = False,
        flat: bool = False,
    ) -> None:
        for name, flag in {"centered": centered, "ragged": ragged, "flat": flat}.items():
            if not isinstance(flag, (bool, np.bool_)):
                raise bad(name, f"got {flag!r}", flag, "True or False", ArgTypeError)
        levels, bits = codebook_checks.table_of(table)
        scaled = scale_dtype is not None
        if levels is None:
            book_granularity = book_granularity or PerTensor()
        if not scaled and granularity is None and axis is None and group_size is None:
            granularity = Unscaled() if levels else book_granularity
        fields: dict[str, Any] = {
            "bits": bits,
            "table": levels,
            "book_granularity": book_granularity,
            "book_dtype": book_dtype,
            "granularity": granularity_of(axis, group_size, granularity, bool(ragged), bool(flat)),
            "scale_dtype": scale_dtype,
            "centered": bool(centered),
            "outlier_fraction": outlier_fraction,
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        codebook_checks.check_fields(self)

    @property
    def is_learned(self) -> bool:
        """Whether the table is stored, one for the tensor or several."""
        return self.table is None

    @property
    def inner(self) -> Scheme | None:
        """The scheme of the scales, where they have one."""
        return self.scale_dtype if isinstance(self.scale_dtype, Scheme) else None

    @property
    def levels(self) -> int:
        """How many there are."""
        return 1 << self.bits

    def __str__(self) -> str:
        return codebook_names.spelled(self)

    def __repr__(self) -> str:
        return f"Codebook({self})"  # and not all the levels

    @classmethod
    def parse(cls, text: str) -> Codebook | None:
        found = codebook_names.parsed(text)
        return None if found is None else SHORT_FORMS[found[0]](**found[1])

    def to_dict(self) -> dict[str, Any]:
        inner, book = self.inner, self.book_granularity
        names = {table: name for name, table in codebooks.TABLES.items()}
        return {
            "family": self.family,
            "table": self.levels if self.table is None else names.get(self.table, self.table),
            "book_granularity": None if book is None else asdict(book),
            "book_dtype": self.book_dtype,
            **asdict(self.granularity),
            "scale_dtype": self.scale_dtype if inner is None else inner.to_dict(),
            "centered": self.centered,
            "outlier_fraction": self.outlier_fraction,
        }

    @classmethod
    def _from_dict(cls, fields: Mapping[str, Any]) -> Codebook:
        fields = dict(fields)
        if isinstance(fields.get("scale_dtype"), Mapping):
            fields["scale_dtype"] = from_dict(fields["scale_dtype"])
        book = fields.get("book_granularity")
        if isinstance(book, Mapping):
            fields["book_granularity"] = codebook_checks.granularity_from(book)
        return cls._built(fields)

    def is_rowwise(self, ndim: int) -> bool:
        shared = self.inner is not None or (self.is_learned and self.scale_dtype is not None)
        return not shared and not self.outlier_fraction and super().is_rowwise(ndim)

    @property
    def loads_by_rows(self) -> bool:
        return self.inner is None and not self.outlier_fraction

    def with_granularity(self, granularity: Granularity) -> Scheme:
        if not self.is_learned or self.scale_dtype is not None:
            return super().with_granularity(granularity)
        before = asdict(self.granularity)
        fields = {name: value for name, value in self.to_dict().items() if name not in before}
        return from_dict({**fields, "book_granularity": asdict(granularity)})

    def nested(self, shape: Shape) -> dict[str, tuple[Scheme, Shape]]:
        if self.inner is None:
            return {}
        return {"scale": (self.inner, (layout_of(self, shape).groups_in_all,))}

    def book_shape(self, shape: Shape) -> Shape:
        """The shape of what is stored of the tables for an array of `shape`."""
        assert self.book_granularity is not None
        return (*self.book_granularity.scale_shape(shape), self.levels)

    def part_specs(self, shape: Shape) -> PartSpecs:
        layout = layout_of(self, shape)
        specs: PartSpecs = {"packed": ("uint8", layout.packed_shape)}
        if self.is_learned:
            specs["codebook"] = (self.book_dtype, self.book_shape(shape))
        if self.inner is not None:
            inner = self.inner.part_specs((layout.groups_in_all,))
            specs |= {f"scale.{path}": spec for path, spec in inner.items()}
        elif self.scale_dtype is not None:
            specs["scale"] = (str(self.scale_dtype), layout.scale_shape)
        if self.centered:
            specs["offset"] = ("float32", ())
        if self.outlier_fraction:
            specs |= sparse.part_specs(shape, self.outlier_fraction, self.book_dtype)
        return specs

    def value_set(self) -> ValueSet | None:
        if self.table is None or self.scale_dtype is None:
            return None
        levels, thresholds, _ = codebooks.ranked(self.table)
        return ValueSet(levels, thresholds)

    def quantize(
        self,
        x: Array,
        backend: Reference,
        scale: Any = None,
        zero_point: Any = None,
        out: QTensor | None = None,
        weights: Any = None,
    ) -> QTensor:
        if zero_point is not None:
            raise bad("zero_point", f"given for {self}, which has none", zero_point, "None")
        if weights is not None and not self.is_learned:
            raise checks.useless(self, "weights", weights)
        if scale is not None:
            scale = codebook_checks.given_scale(self, x.shape, scale)
            checks.check_nonzero(scale)
            scale = scales.moved_like(scale, x)
        return codebook_parts.quantize(self, x, backend, scale, weights, out)

    def quantize_with(
        self, x: Array, backend: Reference, scale: Any, out: QTensor | None = None
    ) -> QTensor:
        return codebook_parts.quantize(self, x, backend, scale, None, out)

    def dequantize(
        self, qt: QTensor, dtype: str, backend: Reference, out: Array | None = None
    ) -> Array:
        return codebook_parts.dequantize(self, qt, dtype, backend, out)

    def from_codes(
        self, shape: Shape, codes: Any, scale: Any, zero_point: Any, codebook: Any = None
    ) -> QTensor:
        return codebook_checks.from_codes(self, shape, codes, scale, zero_point, codebook)

    def check_parts(self, qt: QTensor) -> None:
        codebook_checks.check_parts(self, qt)

    def explain(self, fault: KernelFault, x: Array) -> QrsError:
        def needed(lo: Array, hi: Array) -> Array:
            low, high = (min(self.table), max(self.table)) if self.table else (-1.0, 1.0)
            # float64, since it may be beyond float32.
            up = hi.astype(np.float64) / high if high > 0 else hi * 0.0
            down = lo.astype(np.float64) / low if low < 0 else lo * 0.0
            return np.maximum(up, down)

        return checks.explain(self, fault, x, needed)

    def codes(self, qt: QTensor) -> Array:
        stored = layout_of(self, qt.shape).stored_shape
        return unpacked_bits(qt.packed, self.bits, False, stored).reshape(qt.shape)

    def codebook(self, qt: QTensor) -> Float32:
        return codebook_parts.codebook(self, qt, backends.of(qt.packed))

    def scale(self, qt: QTensor, backend: Reference | None = None) -> Any:
        scale = super().scale(qt, backend)
        return scale if scale is None else scale.reshape(layout_of(self, qt.shape).scale_shape)

    def zero_point(self, qt: QTensor, backend: Reference | None = None) -> Array | None:
        return None

    def select(self, qt: QTensor, index: Any) -> QTensor:
        return codebook_parts.select(self, qt, index)


def NF4(
    group_size: int = 64,
    double_quant: bool = False,
    scale_dtype: str = "float32",
    *,
    ragged: bool = False,
    flat: bool = False,
) -> Codebook:
    """The 4-bit NormalFloat of QLoRA: 16 quantiles of the normal distribution, a scale per group.

    With `double_quant` the scales are quantized to 8 bits too, in groups of 256, minus their mean:
    4.127 bits per weight. Codes and scales are those of bitsandbytes where the group divides the
    last axis. Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023.

    >>> import qrs
    >>> qt = qrs.quantize([[0.5, -1.0, 0.1, 0.0]], NF4(group_size=4))
    >>> qt.codes.tolist(), qt.scale.tolist(), str(NF4(double_quant=True))
    ([[12, 0, 8, 7]], [[1.0]], 'nf4-g64-dq')
    """
    return _blocks("nf4", group_size, double_quant, scale_dtype, ragged, flat)


def FP4(
    group_size: int = 64,
    double_quant: bool = False,
    scale_dtype: str = "float32",
    *,
    ragged: bool = False,
    flat: bool = False,
) -> Codebook:
    """The 4-bit float of bitsandbytes, otherwise as `NF4`; "e2m1" is the one of OCP.

    >>> import qrs
    >>> qrs.quantize([[12.0, -6.9, 0.03, 0.0]], FP4(group_size=4)).codes.tolist()
    [[3, 13, 8, 0]]
    """
    return _blocks("fp4", group_size, double_quant, scale_dtype, ragged, flat)


def _blocks(
    table: str, group_size: int, double_quant: bool, scale_dtype: str, ragged: bool, flat: bool
) -> Codebook:
    if not isinstance(double_quant, (bool, np.bool_)):
        found = f"got {double_quant!r}"
        raise bad("double_quant", found, double_quant, "True or False", ArgTypeError)
    stored: str | Scheme = scale_dtype
    if double_quant:
        if scale_dtype != "float32":
            found = f"got {scale_dtype!r} beside double_quant, which stores 8 bits"
            raise bad("scale_dtype", found, scale_dtype, "'float32'")
        stored = Codebook("dynamic8", group_size=256, ragged=True, centered=True)
    return Codebook(table, group_size=group_size, scale_dtype=stored, ragged=ragged, flat=flat)


def KMeans(
    bits: int,
    *,
    axis: int | None = None,
    group_size: int | None = None,
    book_dtype: str = "float16",
    outlier_fraction: float = 0.0,
    ragged: bool = False,
    flat: bool = False,
) -> Codebook:
    """2**bits levels that are the optimal k-means centers of a tensor, row or group.

    `qrs.quantize(..., weights=)` weighs the squared errors, by the diagonal of a Hessian or Fisher
    information; `info["subnormal_tables"]` counts tables of numbers too small for `book_dtype`;
    with `outlier_fraction` the largest values are stored apart (Kim et al.,
    "SqueezeLLM: Dense-and-Sparse Quantization", 2024).

    >>> import qrs
    >>> qt = qrs.quantize([[1.0, 1.1, 5.0, 5.1], [0.0, 0.5, 0.75, 2.0]], KMeans(2, axis=0))
    >>> qt.codes.tolist(), qt.codebook[1].tolist(), str(qt.scheme)
    ([[0, 1, 2, 3], [0, 1, 2, 3]], [0.0, 0.5, 0.75, 2.0], 'kmeans2-axis0')
    """
    bits = codebook_checks.checked_bits(bits)
    shared = granularity_of(axis, group_size, None, bool(ragged), bool(flat))
    return Codebook(
        1 << bits,
        book_granularity=shared,
        book_dtype=book_dtype,
        scale_dtype=None,
        outlier_fraction=outlier_fraction,
    )


def LearnedCodebook(
    bits: int = 4,
    group_size: int = 32,
    scale_bits: int = 6,
    *,
    book_dtype: str = "float16",
    ragged: bool = False,
    flat: bool = False,
) -> Codebook:
    """One table for the tensor, learned together with a scale of few bits for each group.

    The table and the scales take turns in lowering the squared error; the scales, which may be
    negative, are integers of 6 or 8 bits with one float32 for 256 consecutive ones, or float16 with
    `scale_bits=16`. With the defaults a Gaussian takes 4.19 bits at 22.6 dB. docs/codebooks.md
    shows the bytes. Integers divide a range evenly: beside a group that is 30 times as large as
    the others among its 256, 6 bits are too few (8 or 16 then), and what becomes zero is counted in
    `info["underflow_groups"]`. Magnitudes beyond about 1e19 are learned worse.

    >>> import numpy as np, qrs
    >>> x = np.random.default_rng(7).standard_normal((8, 1024), np.float32)
    >>> qt = qrs.quantize(x, LearnedCodebook(group_size=32))
    >>> str(qt.scheme), qt.codebook.shape, qrs.metrics.sqnr_db(x, qt.dequantize()) > 22
    ('learned4-g32-s6', (16,), True)
    """
    from .int import Int

    bits, scale_bits = codebook_checks.checked_bits(bits), checked_integer(scale_bits, "scale_bits")
    if scale_bits not in (6, 8, 16):
        raise bad("scale_bits", f"got {scale_bits}", scale_bits, "6, 8 or 16")
    few = scale_bits < 16
    return Codebook(
        1 << bits,
        book_dtype=book_dtype,
        group_size=group_size,
        scale_dtype=Int(scale_bits, group_size=256, ragged=True) if few else "float16",
        ragged=ragged,
        flat=flat,
    )


SHORT_FORMS: dict[str, Callable[..., Codebook]] = {
    "nf4": NF4,
    "fp4": FP4,
    "kmeans": KMeans,
    "learned": LearnedCodebook,
}
"""What strings spell -> the function that makes it."""
