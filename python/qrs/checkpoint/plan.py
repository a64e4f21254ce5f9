"""What a run will do with each tensor, from headers alone: no weight is read, nothing is computed.

A scheme that needs groups does not fit every shape. `fit` finds the way to store a tensor, in this
order: groups along the last axis, if `group_size` divides it; for more than two axes (convolutions)
groups along the flattened trailing axes `(in, kh, kw)`, if `group_size` divides those; else the
flattened axes with a shorter last group in each row (`ragged=True`). The plan lists every tensor
that did not get the first. A flattened tensor is stored as a matrix; its own shape is in the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..errors import ArgValueError
from ..formats.header import TensorInfo
from ..formats.header import nbytes as file_nbytes
from ..formats.qrs_file import Entry, Layout, check_names
from ..granularity import PerAxis, PerGroup, PerTensor
from ..schemes import Int, Scheme, as_scheme
from .selection import EMBEDDING, KEEP, Selection, source_dtype

MIB = 1 << 20
BLOCK_BYTES = 8 * MIB
"""Tensors are read, copied, quantized and measured in pieces of about this size."""

PROCESS_BYTES = 96 * MIB
"""What the interpreter, numpy and the pieces take beside the largest tensor, roughly."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class TensorPlan:
    """What will happen to one tensor; `scheme` is None where it stays as it is.

    `dtype` is the file's name of it ("BF16"), `nbytes` what it takes in the source, `stored_shape`
    the shape of the QTensor (flattened to two axes where groups need it); `nbytes_after` counts
    every part, `reason` says why in words, `fallback` why the scheme asked for does not fit as it
    is (or an empty string).
    """

    name: str
    dtype: str
    shape: Shape
    nbytes: int
    scheme: Scheme | None
    stored_shape: Shape
    nbytes_after: int
    reason: str
    fallback: str = ""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def is_rowwise(self) -> bool:
        """Whether rows of the stored matrix have scales of their own: blocks give the same bits."""
        granularity = getattr(self.scheme, "granularity", None)
        if isinstance(granularity, PerAxis):
            return granularity.axis % len(self.stored_shape) == 0
        return isinstance(granularity, PerGroup)

    @property
    def working_bytes(self) -> int:
        """What is held at once while this tensor is quantized, beside blocks of some MiB."""
        if self.scheme is None:
            return 0
        if self.is_rowwise:
            return self.nbytes_after + min(8, self.shape[0]) * 2 * self.nbytes // self.shape[0]
        # Columns are brought together first: a copy of the tensor, and one of the codes.
        copies = 1 + isinstance(getattr(self.scheme, "granularity", None), PerAxis)
        as_float32 = self.size * 4 if self.dtype == "F64" else 0
        return copies * (self.nbytes + self.nbytes_after) + as_float32

    @property
    def entry(self) -> Entry | None:
        """What the file will say of it, None where it stays as it is."""
        if self.scheme is None:
            return None
        source_shape = None if self.stored_shape == self.shape else self.shape
        return Entry(self.scheme, self.stored_shape, source_dtype(self.dtype), source_shape)

    @property
    def layout(self) -> Layout:
        """What will be written: (name, dtype in the file, shape) of each part."""
        return self.entry.layout(self.name) if self.entry else [(self.name, self.dtype, self.shape)]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values; the scheme as its string."""
        fields = asdict(replace(self, scheme=None))
        return {**fields, "scheme": None if self.scheme is None else str(self.scheme)}


@dataclass(frozen=True)
class Plan:
    """The plan of a run: one `TensorPlan` for each tensor, in the order of the source."""

    tensors: tuple[TensorPlan, ...]

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
        """Bytes that the run never exceeds: three times the largest tensor + 256 MiB.

        A tensor counts with what it takes before or after, whichever is more.
        """
        largest = max((max(t.nbytes, t.nbytes_after) for t in self.tensors), default=0)
        return 3 * largest + 256 * MIB

    @property
    def memory_estimate(self) -> int:
        """Bytes that the run is expected to hold at its peak."""
        return max((t.working_bytes for t in self.tensors), default=0) + PROCESS_BYTES

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "tensors": [t.to_dict() for t in self.tensors],
            "nbytes": self.nbytes,
            "nbytes_after": self.nbytes_after,
            "kept_share": self.kept_share,
            "bits_per_weight": self.bits_per_weight,
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
) -> Plan:
    """Decide for each tensor.

    Parameters
    ----------
    tensors : as the headers of a checkpoint have them, in any order.
    scheme : for the weights.
    embeddings : a scheme for the embeddings, which stay as they are without it. "int8" and its
        kin, which would be one scale for the whole table, mean one scale per row here.
    include, exclude : name patterns, see `qrs.checkpoint.selection`.

    Raises `ArgValueError` for a pattern that matches nothing, for a scheme that does not fit a
    tensor, and for stored names that would collide.
    """
    tensors = list(tensors)
    rule = Selection(tuple(include), tuple(exclude))
    rule.check((t.name, t.dtype, t.shape) for t in tensors)
    weights = as_scheme(scheme)
    for_embeddings = None if embeddings is None else per_row(as_scheme(embeddings))
    if rule.include and for_embeddings is None:
        for_embeddings = weights  # asked for by name
    plans = []
    for t in tensors:
        kind, reason = rule.choose(t.name, t.dtype, t.shape)
        chosen = {KEEP: None, EMBEDDING: for_embeddings}.get(kind, weights)
        plans.append(plan_tensor(t, chosen, reason))
    check_names((t.name for t in tensors), [t.name for t in plans if t.scheme])
    return Plan(tuple(plans))


def plan_tensor(t: TensorInfo, scheme: Scheme | None, reason: str) -> TensorPlan:
    """The plan of one tensor with this scheme, or without one."""
    shape = tuple(t.shape)
    if scheme is None:
        return TensorPlan(t.name, t.dtype, shape, t.nbytes, None, shape, t.nbytes, reason)
    try:
        scheme, stored, fallback = fit(scheme, shape)
        nbytes_after = sum(
            file_nbytes(dtype, part)
            for _, dtype, part in Entry(scheme, stored, source_dtype(t.dtype)).layout(t.name)
        )
    except ArgValueError as error:
        message = f"tensor {t.name!r}: {error}"
        raise ArgValueError(
            message, arg=error.arg, value=error.value, expected=error.expected
        ) from None
    return TensorPlan(
        t.name, t.dtype, shape, t.nbytes, scheme, stored, nbytes_after, reason, fallback
    )


def fit(scheme: Scheme, shape: Shape) -> tuple[Scheme, Shape, str]:
    """The scheme and the shape that a tensor is stored with, and why if not as asked.

    >>> g32 = Int(4, group_size=32)
    >>> fit(g32, (64, 128)) == (g32, (64, 128), "")
    True
    >>> fit(g32, (64, 32, 3, 3))[1:]
    ((64, 288), 'group_size=32 does not divide 3: groups run along the flattened (32, 3, 3)')
    >>> scheme, stored, why = fit(g32, (64, 100))
    >>> str(scheme), stored
    ('int4-g32-ragged', (64, 100))
    >>> why
    'group_size=32 does not divide 100: the last group of a row has 4'
    """
    granularity = getattr(scheme, "granularity", None)
    if not isinstance(granularity, PerGroup) or shape[-1] % granularity.group_size == 0:
        return scheme, shape, ""
    size, last = granularity.group_size, shape[-1]
    flat = (shape[0], math.prod(shape[1:]))
    why = f"group_size={size} does not divide {last}: "
    if len(shape) > 2:
        why += f"groups run along the flattened {shape[1:]}"
    if flat[1] % size == 0:
        return scheme, flat, why
    why += ", and " * (len(shape) > 2) + f"the last group of a row has {flat[1] % size}"
    assert isinstance(scheme, Int)
    return replace(scheme, granularity=PerGroup(size, ragged=True)), flat, why


def per_row(scheme: Scheme) -> Scheme:
    """One scale per row where the scheme would have one for the whole tensor."""
    if isinstance(scheme, Int) and isinstance(scheme.granularity, PerTensor):
        return replace(scheme, granularity=PerAxis(0))
    return scheme
