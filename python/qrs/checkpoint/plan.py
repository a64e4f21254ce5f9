"""What a run will do with each tensor, from headers alone: no weight is read, nothing is computed.

A scheme that needs groups does not fit every shape. `fit` finds the one to use for a tensor, in
this order: groups along the last axis, if `group_size` divides it; for more than two axes
(convolutions) groups along the flattened trailing axes `(in, kh, kw)` (`flat=True`), if
`group_size` divides those; else a shorter last group in each row (`ragged=True`). The plan lists
every tensor that does not get the scheme that was asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .. import backends
from ..errors import ArgValueError, bad
from ..formats.header import TensorInfo
from ..formats.header import nbytes as file_nbytes
from ..formats.qrs_file import Entry, FileLayout, check_names
from ..formats.strict_json import quote
from ..granularity import PerAxis, PerGroup, PerTensor
from ..schemes import Codebook, Scheme, as_scheme
from ..schemes.codebook_learning import SAMPLE
from ..solvers import as_solver, check_solver
from .known import KnownStatistics, as_known, layer_for, missing, needs_statistics
from .recipe import KEEP as KEEP_SCHEME
from .recipe import Recipe, Rule
from .selection import EMBEDDING, KEEP, Selection, source_dtype

MIB = 1 << 20
BLOCK_BYTES = 8 * MIB
"""Tensors are read, copied, quantized and measured in pieces of about this size."""

PROCESS_BYTES = 96 * MIB
"""What the interpreter, numpy and the pieces take beside the largest tensor, roughly."""

REFERENCE_BYTES = 24
"""What the reference backend holds per element that it quantizes at once: its float32 copies, then
the bits of the codes, one in each byte."""

KMEANS_BYTES = 64
"""What k-means holds at most per distinct value that it works on at once."""

TABLE_BYTES = 32
"""What learning a table beside scales or outliers holds per value: copies, products, codes."""

MOMENTS_BYTES = 48
"""What solvers hold per pair of inputs: float64 moments as given, in order, damped, factorized."""

SOLVING_BYTES = 40
"""What they hold per weight: float32 copies, errors in float64, codes."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class TensorPlan:
    """What will happen to one tensor; `scheme` is None where it stays as it is.

    `dtype` is the file's name of it ("BF16"), `nbytes` what it takes in the source; `nbytes_after`
    counts every part, `reason` says why in words, `fallback` why the scheme asked for does not fit
    as it is (or an empty string).
    """

    name: str
    dtype: str
    shape: Shape
    nbytes: int
    scheme: Scheme | None
    nbytes_after: int
    reason: str
    fallback: str = ""
    solver: str = "minmax"
    layer: str = ""
    """Whose statistics it is quantized with, if with any."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def is_rowwise(self) -> bool:
        """Whether rows of the leading axis have scales of their own: blocks give the same bits.

        Not so where moments are factorized, which is done once for all rows.
        """
        by_rows = self.scheme is not None and self.scheme.is_rowwise(len(self.shape))
        return by_rows and not needs_statistics(self.solver)

    def working_bytes(self, backend: str) -> int:
        """What is held at once while this tensor is quantized, beside blocks of some MiB."""
        if self.scheme is None:
            return 0
        rows = self.shape[0]
        at_once = min(8, rows) if self.is_rowwise else rows
        learning = self._learning_bytes() + self._solving_bytes()
        if backend == "reference":
            of_all = 2 * self.nbytes + REFERENCE_BYTES * self.size
            return self.nbytes_after + at_once * of_all // rows + learning
        if self.is_rowwise:
            return self.nbytes_after + at_once * 2 * self.nbytes // rows + learning
        # Columns are brought together first: a copy of the tensor, and one of the codes.
        copies = 1 + isinstance(self.scheme.granularity, PerAxis)
        as_float32 = self.size * 4 if self.dtype == "F64" else 0
        # The scale search holds a trial and its errors beside them.
        searched = 0 if self.solver == "minmax" else 2 * self.nbytes
        return copies * (self.nbytes + self.nbytes_after) + as_float32 + searched + learning

    def _solving_bytes(self) -> int:
        """What is held while codes are chosen by second moments: these, and copies of both."""
        if not needs_statistics(self.solver):
            return 0
        inputs = self.size // self.shape[0]
        return MOMENTS_BYTES * inputs**2 + SOLVING_BYTES * self.size

    @property
    def is_learned(self) -> bool:
        """Whether tables are learned for it."""
        return isinstance(self.scheme, Codebook) and self.scheme.is_learned

    def _learning_bytes(self) -> int:
        """What is held while tables are learned; 16 bits tell at most 65536 values apart."""
        scheme = self.scheme
        if not isinstance(scheme, Codebook) or not scheme.is_learned:
            return 0
        a_block = max(BLOCK_BYTES // 4, self.size // self.shape[0] * 8)
        values = min(self.size, a_block) if self.is_rowwise else self.size
        tables = math.prod(scheme.book_shape(self.shape)) // scheme.levels
        distinct = min(values, tables << 16) if self.dtype in ("F16", "BF16") else values
        if scheme.scale_dtype is not None:
            distinct = min(values, SAMPLE)
        plain = scheme.scale_dtype is None and not scheme.outlier_fraction
        return KMEANS_BYTES * distinct + (0 if plain else TABLE_BYTES * values)

    @property
    def entry(self) -> Entry | None:
        """What the file will say of it, None where it stays as it is."""
        if self.scheme is None:
            return None
        return Entry(self.scheme, self.shape, source_dtype(self.dtype))

    @property
    def layout(self) -> FileLayout:
        """What will be written: (name, dtype in the file, shape) of each part."""
        return self.entry.layout(self.name) if self.entry else [(self.name, self.dtype, self.shape)]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values; the scheme as its string."""
        fields = asdict(replace(self, scheme=None))
        return {**fields, "scheme": None if self.scheme is None else str(self.scheme)}


@dataclass(frozen=True)
class Plan:
    """The plan of a run: one `TensorPlan` for each tensor, in the order of the source.

    `backend` is the name of the one that will compute, `solver` that of the one that will choose.
    """

    tensors: tuple[TensorPlan, ...]
    backend: str = "rust"
    solver: str = "minmax"
    statistics: KnownStatistics | None = field(default=None, compare=False, repr=False)

    @property
    def quantized(self) -> tuple[TensorPlan, ...]:
        """The tensors that get a scheme."""
        return tuple(t for t in self.tensors if t.scheme is not None)

    @property
    def fallbacks(self) -> tuple[TensorPlan, ...]:
        """The tensors that the scheme asked for does not fit as it is."""
        return tuple(t for t in self.tensors if t.fallback)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors before."""
        return sum(t.nbytes for t in self.tensors)

    @property
    def nbytes_after(self) -> int:
        """Bytes of all tensors after, headers not counted."""
        return sum(t.nbytes_after for t in self.tensors)

    @property
    def kept_share(self) -> float:
        """The share of the source's bytes that stays as it is, 0 to 1."""
        kept = sum(t.nbytes for t in self.tensors if t.scheme is None)
        return kept / self.nbytes if self.nbytes else 0.0

    @property
    def bits_per_weight(self) -> float:
        """Bits stored per quantized weight, scales included; nan if there is none."""
        size = sum(t.size for t in self.quantized)
        return 8 * sum(t.nbytes_after for t in self.quantized) / size if size else math.nan

    @property
    def memory_bound(self) -> int:
        """Bytes that the run never exceeds: `streaming_bound`, but where whole tensors take more.

        The reference backend and the scale search make several copies of a tensor where a scale
        spans rows, and k-means needs a multiple of what it works on at once.
        """

        def takes_more(t: TensorPlan) -> bool:
            spans = t.solver != "minmax" and not t.is_rowwise
            return self.backend == "reference" or t.is_learned or spans

        of_these = (t for t in self.tensors if takes_more(t))
        held = max((t.working_bytes(self.backend) for t in of_these), default=0)
        return max(self.streaming_bound, held + 256 * MIB)

    @property
    def streaming_bound(self) -> int:
        """Three times the largest tensor, before or after, whichever is more, + 256 MiB."""
        largest = max((max(t.nbytes, t.nbytes_after) for t in self.tensors), default=0)
        return 3 * largest + 256 * MIB

    @property
    def memory_estimate(self) -> int:
        """Bytes that the run is expected to hold at its peak."""
        return self._held + PROCESS_BYTES

    @property
    def _held(self) -> int:
        return max((t.working_bytes(self.backend) for t in self.tensors), default=0)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "tensors": [t.to_dict() for t in self.tensors],
            "nbytes": self.nbytes,
            "nbytes_after": self.nbytes_after,
            "kept_share": self.kept_share,
            "bits_per_weight": finite(self.bits_per_weight),
            "backend": self.backend,
            "solver": self.solver,
            "memory_bound": self.memory_bound,
            "memory_estimate": self.memory_estimate,
        }


def make_plan(
    tensors: Iterable[TensorInfo],
    scheme: Scheme | str = "int8-axis0",
    *,
    embeddings: Scheme | str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    solver: str = "minmax",
    statistics: Any = None,
    recipe: Recipe | None = None,
    backend: str | None = None,
) -> Plan:
    """Decide for each tensor.

    Parameters
    ----------
    tensors : as the headers of a checkpoint have them, in any order.
    scheme : for the weights.
    embeddings : a scheme for the embeddings, which stay as they are without it. "int8" and its
        kin, which would be one scale for the whole table, mean one scale per row here.
    include, exclude : name patterns, see `qrs.checkpoint.selection`.
    solver : how scales and codes will be chosen, as in `qrs.quantize`.
    statistics : of the inputs of layers: a file of `qrs calibrate --hessian`, a `Calibration`, or a
        mapping; the tensor `fc.weight` takes those of layer `fc`.
    recipe : schemes and solvers by tensor; what it says comes before `scheme` and `solver`.
    backend : who will compute, as in `qrs.quantize`; only the memory depends on it.

    Raises `ArgValueError` for a pattern that matches nothing, for a scheme that does not fit a
    tensor or the solver, for statistics that are missing or have another size, and for stored
    names that would collide; `DeviceError` for a backend that is missing.
    """
    check_solver(solver)
    known = as_known(statistics)
    tensors = list(tensors)
    rule = Selection(tuple(include), tuple(exclude))
    rule.check((t.name, t.dtype, t.shape) for t in tensors)
    if recipe is not None:
        recipe.check(t.name for t in tensors)
    computing = backends.resolve(backend).name
    weights = as_scheme(scheme)
    asked = None if embeddings is None else as_scheme(embeddings)
    for_embeddings = None if asked is None else per_row(asked)
    each_row = "" if for_embeddings == asked else f": {asked} is one scale per row here"
    if rule.include and for_embeddings is None:
        for_embeddings = weights  # asked for by name
    plans = []
    for t in tensors:
        kind, reason = rule.choose(t.name, t.dtype, t.shape)
        chosen = {KEEP: None, EMBEDDING: for_embeddings}.get(kind, weights)
        reason += each_row if kind == EMBEDDING else ""
        if recipe is not None and kind == KEEP:
            recipe.check_kept(t.name, reason)
        elif recipe is not None:
            said = recipe.rule(t.name, with_default=kind != EMBEDDING)
            chosen, reason = (as_said(said, chosen), f"{reason}: by the recipe")
            plans.append(plan_tensor(t, chosen, reason, said.solver or solver, known))
            continue
        plans.append(plan_tensor(t, chosen, reason, solver, known))
    check_statistics(plans, known)
    check_names((t.name for t in tensors), [t.name for t in plans if t.scheme])
    return Plan(tuple(plans), computing, solver, known)


def plan_tensor(
    t: TensorInfo,
    scheme: Scheme | None,
    reason: str,
    solver: str = "minmax",
    known: KnownStatistics | None = None,
) -> TensorPlan:
    """The plan of one tensor with this scheme, or without one."""
    shape = tuple(t.shape)
    if scheme is None:
        return TensorPlan(t.name, t.dtype, shape, t.nbytes, None, t.nbytes, reason)
    try:
        check_solver(solver, scheme)
        scheme, fallback = fit(scheme, shape)
        scheme = getattr(as_solver(solver), "stored_scheme", lambda same: same)(scheme)
        layer = layer_for(known, t.name, shape)
        parts = Entry(scheme, shape, source_dtype(t.dtype)).layout(t.name)
    except ArgValueError as error:
        message = f"tensor {quote(t.name)}: {error}"
        raise ArgValueError(
            message, arg=error.arg, value=error.value, expected=error.expected
        ) from None
    nbytes_after = sum(file_nbytes(dtype, part) for _, dtype, part in parts)
    return TensorPlan(
        t.name, t.dtype, shape, t.nbytes, scheme, nbytes_after, reason, fallback, solver, layer
    )


def as_said(rule: Rule, otherwise: Scheme | None) -> Scheme | None:
    """The scheme of a recipe's rule, None to keep the tensor."""
    if rule.scheme is None:
        return otherwise
    return None if rule.scheme == KEEP_SCHEME else as_scheme(rule.scheme)


def check_statistics(plans: Sequence[TensorPlan], known: KnownStatistics | None) -> None:
    """Raise where a solver lacks statistics, and where there are some that nobody takes."""
    quantized = [t for t in plans if t.scheme is not None]
    lacking = [t for t in quantized if needs_statistics(t.solver) and not t.layer]
    if lacking:
        raise missing([t.name for t in lacking], lacking[0].solver)
    if known is not None and quantized and not any(t.layer for t in quantized):
        found = f"{len(known.layers)} layers, of which no tensor takes any"
        expected = "the layers of this model, and a solver that looks at them"
        raise bad("statistics", found, known.layers[:8], expected)


def fit(scheme: Scheme, shape: Shape) -> tuple[Scheme, str]:
    """The scheme that a tensor is stored with, and why if not as asked.

    >>> g32 = as_scheme("int4-g32")
    >>> fit(g32, (64, 128)) == (g32, "")
    True
    >>> scheme, why = fit(g32, (64, 32, 3, 3))
    >>> str(scheme), why
    ('int4-g32-flat', 'group_size=32 does not divide 3: groups run along the flattened (32, 3, 3)')
    >>> scheme, why = fit(g32, (64, 100))
    >>> str(scheme), why
    ('int4-g32-ragged', 'group_size=32 does not divide 100: the last group of a row has 4')
    """
    granularity = scheme.granularity
    if not isinstance(granularity, PerGroup) or shape[-1] % granularity.group_size == 0:
        return scheme, ""
    size, changes, why = granularity.group_size, {}, []
    if len(shape) > 2 and not granularity.flat:
        changes["flat"] = True
        why.append(f"groups run along the flattened {shape[1:]}")
    rest = math.prod(shape[1:]) % size
    if rest and not granularity.ragged:
        changes["ragged"] = True
        why.append(f"the last group of a row has {rest}")
    if not changes:
        return scheme, ""
    last = math.prod(shape[1:]) if granularity.flat else shape[-1]
    reason = f"group_size={size} does not divide {last}: {', and '.join(why)}"
    return scheme.with_granularity(replace(granularity, **changes)), reason


def per_row(scheme: Scheme) -> Scheme:
    """One scale per row where the scheme would have one for the whole tensor.

    >>> [str(per_row(as_scheme(text))) for text in ("int8", "int4-g32", "kmeans4")]
    ['int8-axis0', 'int4-g32', 'kmeans4']
    """
    whole = isinstance(scheme.granularity, PerTensor) and scheme.scale_dtype is not None
    return scheme.with_granularity(PerAxis(0)) if whole else scheme


def finite(value: float) -> float | None:
    """The value, or None where JSON has no number for it."""
    return value if math.isfinite(value) else None
