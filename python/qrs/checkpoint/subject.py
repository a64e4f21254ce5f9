"""A tensor to look into: found by its name, checked against the headers, read in blocks of rows."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import backends
from ..constants import DTYPES
from ..errors import bad
from ..formats.header import dtype_name
from ..formats.qrs_file import Entry, QrsFile
from ..formats.strict_json import quote
from ..qtensor import QTensor
from ..schemes import Codebook, Scheme, as_scheme
from ..schemes.layout import layout_of
from .plan import TensorPlan, plan_tensor
from .report import ErrorSums
from .selection import FLOATS, refusal
from .source import Checkpoint, Shard
from .stream import add_errors, as_bytes, blocks_of, quantized_blocks, row_blocks, stored_blocks

Array = NDArray[Any]
Block = tuple[Array, QTensor | None]
"""Values, true or decoded, and the same rows quantized, where they are."""


@dataclass(frozen=True)
class Subject:
    """A tensor: `entry` says how it is quantized, `plan` that it will be, in memory.

    `row` is the one whose codebook is of interest where each has its own.
    """

    shard: Shard
    name: str
    entry: Entry | None
    plan: TensorPlan | None
    solver: str
    row: int

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the tensor."""
        return self.entry.shape if self.entry else tuple(self.shard.tensors[self.name].shape)

    @property
    def dtype(self) -> str:
        """The one that it has, or had before it was quantized, as files name it."""
        if self.entry is None:
            return self.shard.tensors[self.name].dtype
        return dtype_name(DTYPES[self.entry.dtype])


def subject_of(
    source: Checkpoint,
    tensor: str,
    *,
    scheme: Scheme | str | None = None,
    solver: str = "minmax",
    row: int | None = None,
) -> Subject:
    """Find a tensor by its name, and check what is asked for: see `qrs.checkpoint.look_into`."""
    shard = next((shard for shard in source.shards if tensor in shard.names), None)
    if shard is None:
        names = [name for each in source.shards for name in each.names]
        close = difflib.get_close_matches(tensor, names, 3, 0.5)
        expected = f"one of its {len(names)} tensors"
        expected += f", such as {', '.join(map(quote, close))}" if close else ""
        raise bad("tensor", f"{source.path} has no {quote(tensor)}", tensor, expected)
    entry, plan = shard.quantized.get(tensor), None
    if entry is None:
        info = shard.tensors[tensor]
        if info.dtype not in FLOATS:
            found = f"{quote(tensor)} has {info.dtype} values"
            raise bad("tensor", found, tensor, f"a tensor of {', '.join(FLOATS)}")
        if scheme is not None:
            refused = refusal(info.dtype, info.shape)
            if refused:
                found = f"got {scheme} for {quote(tensor)}, which is {refused}"
                raise bad("scheme", found, str(scheme), "a tensor of two or more axes")
            plan = plan_tensor(info, as_scheme(scheme), "", solver)
            entry = plan.entry
    elif scheme is not None:
        found = f"got {scheme} for {quote(tensor)}, which is {entry.scheme} already"
        raise bad("scheme", found, str(scheme), "a tensor that is not quantized")
    if row is not None:
        check_row(tensor, table_rows(entry), row)
    return Subject(shard, tensor, entry, plan, solver, row or 0)


def check_row(tensor: str, rows: int, row: int) -> None:
    """Raise ArgValueError unless the row has a codebook of its own."""
    if not rows:
        found = f"got {row} for {quote(tensor)}, whose rows have no codebooks of their own"
        raise bad("row", found, row, "None")
    if not 0 <= row < rows:
        raise bad("row", f"got {row} for {quote(tensor)}", row, f"0 to {rows - 1}")


def table_rows(entry: Entry | None) -> int:
    """How many rows have codebooks of their own; 0 where there is one for all, or none."""
    scheme = None if entry is None else entry.scheme
    if entry is None or not isinstance(scheme, Codebook) or not scheme.is_learned:
        return 0
    several = len(scheme.book_shape(entry.shape)) > 1
    return layout_of(scheme, entry.shape).rows if several else 0


def table_count(entry: Entry) -> int:
    """How many codebooks there are."""
    scheme = entry.scheme
    if not isinstance(scheme, Codebook) or not scheme.is_learned:
        return 1
    return math.prod(scheme.book_shape(entry.shape)) // scheme.levels


class Values:
    """The values of a subject, from its file; quantizes them first if that is planned.

    `errors` are those of quantizing. Values are the true ones, but for what is stored quantized.
    """

    def __init__(self, file: QrsFile, subject: Subject) -> None:
        self.file, self.subject = file, subject
        self.errors: ErrorSums | None = None
        self.qt: QTensor | None = None
        if subject.plan is not None:
            self.errors = ErrorSums()
            self.qt = self._quantized(subject.plan, self.errors)

    @property
    def are_true(self) -> bool:
        """Whether no value went through a scheme."""
        return self.qt is not None or self.subject.entry is None

    def _quantized(self, plan: TensorPlan, errors: ErrorSums) -> QTensor:
        """The whole tensor, as only its parts are held; what is lost is added to `errors`."""
        assert plan.entry is not None
        scheme, dtype, backend = plan.entry.scheme, plan.entry.dtype, backends.resolve(None).name
        pieces: dict[str, list[Array]] = {}
        for x, qt in quantized_blocks(self.file, plan, backend):
            add_errors(errors, x, qt, backend)
            for leaf, array in qt.to("numpy").leaves():
                pieces.setdefault(leaf, []).append(as_bytes(array))
        leaves = {
            leaf: np.concatenate(pieces.pop(leaf)).view(part_dtype).reshape(shape)
            for leaf, (part_dtype, shape) in scheme.part_specs(plan.shape).items()
        }
        return QTensor.from_leaves(scheme, plan.shape, dtype, leaves)

    def blocks(self) -> Iterator[Block]:
        """All values, in blocks of rows."""
        name, shape = self.subject.name, self.subject.shape
        if not math.prod(shape):
            return
        if not self.are_true:
            for part in stored_blocks(self.file, name):
                yield part.dequantize(), part
        elif not shape:
            yield self.file.read(name), None
        else:
            parts = None if self.qt is None else blocks_of(self.qt)
            for rows in row_blocks(shape):
                x = self.file.read_rows(name, rows.start, rows.stop)
                yield x, None if parts is None else next(parts)

    def around(self, row: int) -> tuple[Array, QTensor, int]:
        """Some rows of the leading axis with a row of the kernels: values, the same quantized.

        The third of the three is where the row is among those that the kernels see of them.
        """
        name, shape, entry = self.subject.name, self.subject.shape, self.subject.entry
        assert entry is not None
        if len(shape) == 1:
            ((x, part),) = self.blocks()
            assert part is not None
            return x, part, row
        start, stop = 0, shape[0]
        if entry.scheme.granularity.is_rowwise(len(shape)):
            each = layout_of(entry.scheme, shape).rows // shape[0]
            start = row // each // 8 * 8
            stop, row = min(start + 8, stop), row - start * each
        if self.qt is not None:
            return self.file.read_rows(name, start, stop), self.qt[start:stop], row
        part = self.file.load_rows(name, start, stop)
        return part.dequantize(), part, row
