"""What lies in a checkpoint, quantized by qrs or not, from its headers."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

from ..constants import DTYPES
from ..formats.header import dtype_name
from .source import open_checkpoint


@dataclass(frozen=True)
class Stored:
    """One tensor of a checkpoint: `scheme` is None where it is stored as it is.

    `dtype` (as files name it: "BF16") and `shape` are those of the tensor itself, before it was
    quantized.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    scheme: str | None
    nbytes: int
    file: str

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bits_per_weight(self) -> float:
        """Bits stored per element; nan without elements."""
        return 8 * self.nbytes / self.size if self.size else math.nan


@dataclass(frozen=True)
class Contents:
    """All tensors of a checkpoint and its metadata without the entry of qrs."""

    tensors: tuple[Stored, ...]
    metadata: dict[str, str]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.nbytes for t in self.tensors)

    @property
    def quantized(self) -> tuple[Stored, ...]:
        """The tensors that have a scheme."""
        return tuple(t for t in self.tensors if t.scheme is not None)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "tensors": [
                {
                    "name": t.name,
                    "dtype": t.dtype,
                    "shape": list(t.shape),
                    "scheme": t.scheme,
                    "nbytes": t.nbytes,
                    "bits_per_weight": t.bits_per_weight if t.size else None,
                    "file": t.file,
                }
                for t in self.tensors
            ],
            "metadata": self.metadata,
            "nbytes": self.nbytes,
            "quantized": len(self.quantized),
        }


def inspect_checkpoint(model: str | os.PathLike[str]) -> Contents:
    """List a checkpoint: a folder, a .safetensors file, or an index. Raises FormatError."""
    tensors: list[Stored] = []
    metadata: dict[str, str] = {}
    for shard in open_checkpoint(model).shards:
        metadata = {**shard.own_metadata, **metadata}
        for name in shard.names:
            entry, file = shard.quantized.get(name), shard.path.name
            if entry is None:
                info = shard.tensors[name]
                tensors.append(Stored(name, info.dtype, info.shape, None, info.nbytes, file))
                continue
            parts = [shard.tensors[leaf].nbytes for leaf, _, _ in entry.layout(name)]
            dtype = dtype_name(DTYPES[entry.dtype])
            fields = (dtype, entry.shape, str(entry.scheme), sum(parts))
            tensors.append(Stored(name, *fields, file))
    return Contents(tuple(tensors), metadata)
