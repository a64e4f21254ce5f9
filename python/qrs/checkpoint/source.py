"""A checkpoint to read: its files, the headers of all of them, and what else lies in its folder.

Where the tensors are: `qrs.formats.shards`. Nothing is written here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import FormatError, bad
from ..formats import strict_json
from ..formats.atomic import as_path, storage_errors
from ..formats.header import TensorInfo
from ..formats.qrs_file import METADATA_KEY, Entry, QrsFile
from ..formats.shards import INDEX, SINGLE, shards

CARRIED_LIMIT = 64 << 20
"""Files of a checkpoint folder beside its shards are carried along up to this size in bytes."""

# fmt: off
WEIGHT_SUFFIXES = frozenset([
    ".bin", ".ckpt", ".ggml", ".gguf", ".h5", ".llamafile", ".mlmodel", ".msgpack", ".npy", ".npz",
    ".onnx", ".onnx_data", ".ot", ".pb", ".pdparams", ".pickle", ".pkl", ".pt", ".pth",
    ".safetensors", ".tflite",
])
# fmt: on
"""Other people's weight files: the same model once more, in full size."""


@dataclass(frozen=True)
class Shard:
    """The header of one file; `tensors`, `quantized` and `names` as in QrsFile."""

    path: Path
    tensors: Mapping[str, TensorInfo]
    quantized: Mapping[str, Entry]
    names: tuple[str, ...]
    metadata: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> Shard:
        """Open the file, keep its header, close it."""
        with QrsFile(path) as file:
            return cls(path, file.tensors, file.quantized, tuple(file.names), file.metadata)

    @property
    def own_metadata(self) -> dict[str, str]:
        """The metadata without the entry of qrs."""
        return {key: text for key, text in self.metadata.items() if key != METADATA_KEY}

    def open(self) -> QrsFile:
        """The file again, which has to be the one that was planned for."""
        file = QrsFile(self.path)
        if file.tensors != self.tensors or file.metadata != self.metadata:
            file.close()
            raise FormatError(f"{self.path}: changed while it was in use", path=self.path)
        return file


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose headers have been read; `folder` is None where it is a file by itself."""

    path: Path
    folder: Path | None
    shards: tuple[Shard, ...]

    @property
    def tensors(self) -> list[TensorInfo]:
        """Every tensor of every shard."""
        return [info for shard in self.shards for info in shard.tensors.values()]

    @property
    def is_quantized(self) -> bool:
        """Whether qrs wrote quantized tensors into it."""
        return any(shard.quantized for shard in self.shards)

    def check_plain(self) -> None:
        """Raise ArgValueError where tensors are quantized already."""
        count = sum(len(shard.quantized) for shard in self.shards)
        if count:
            found = f"{self.path} holds {count} quantized tensors already"
            raise bad("model", found, str(self.path), "one without (dequantize it first)")

    @property
    def is_sharded(self) -> bool:
        """Whether an index ties several files together."""
        return self.folder is not None and self.shards[0].path.name != SINGLE

    @cached_property
    def index_metadata(self) -> dict[str, Any]:
        """The `metadata` of the index, which is free text but for `total_size`."""
        if not self.is_sharded or self.folder is None:
            return {}
        path = self.folder / INDEX
        with storage_errors(path):
            metadata = strict_json.loads(path.read_text(encoding="utf-8")).get("metadata")
        return metadata if isinstance(metadata, dict) else {}

    def companions(self) -> Iterator[tuple[str, bool]]:
        """The other files of the folder, sorted: (path within it, whether it is carried along).

        Carried along are regular files that hold no weights and are not large; links are followed
        to files but not to folders. Hidden files and folders are not looked at.
        """
        if self.folder is None:
            return
        ours = {shard.path.name for shard in self.shards} | {INDEX}

        def fail(error: OSError) -> None:
            raise error

        with storage_errors(self.folder):
            for place, folders, files in os.walk(self.folder, onerror=fail):
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                top = Path(place) == self.folder
                for name in sorted(files):
                    if not name.startswith(".") and not (top and name in ours):
                        path = Path(place, name)
                        yield str(path.relative_to(self.folder)), is_carried(path)
                for name in [name for name in folders if Path(place, name).is_symlink()]:
                    yield str(Path(place, name).relative_to(self.folder)), False


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read the headers of a checkpoint: a folder, a .safetensors file, or an index.

    Raises FormatError for what is none, StorageError for what cannot be read.
    """
    place = as_path(path, "model")
    if place.name == INDEX:
        if os.path.exists(place.parent / SINGLE):
            found = f"{place.parent} has {SINGLE} as well as {INDEX}, and the single file counts"
            raise bad("model", found, str(place), "the folder, or only one of the two in it")
        place = place.parent
    folder = place if os.path.isdir(place) else None
    return Checkpoint(place, folder, tuple(Shard.read(file) for file in shards(place)))


def is_carried(path: Path) -> bool:
    """Whether a file beside the shards belongs into the output as well."""
    if path.suffix.lower() in WEIGHT_SUFFIXES or path.name.lower().endswith(".index.json"):
        return False
    try:
        return path.is_file() and path.stat().st_size <= CARRIED_LIMIT
    except OSError:  # a link to nowhere, a loop of links
        return False
