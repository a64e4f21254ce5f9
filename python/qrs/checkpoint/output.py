"""A checkpoint to write: a folder laid out as its source is, or a single file.

Both appear whole or not at all (`qrs.formats.atomic`). What `-o OUT` means:

- OUT ends in .safetensors: one file, with the tensors of all shards.
- else a folder: model.safetensors, or shards of the same names and an index, and the companions
  of the source folder (config, tokenizer), but not other copies of the weights.
- A symbolic link is followed: what it points at is written or replaced, the link stays.
- What exists is replaced only with `overwrite`, a folder only if it is a checkpoint (or empty).
- A file may replace its own source, since the source stays readable until the rename. A folder
  may not: it must neither be, hold, nor lie inside its source, nor hold the working directory.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..errors import QrsError, StorageError, bad
from ..formats.atomic import as_path, atomic_folder, atomic_write_bytes, storage_errors
from ..formats.shards import INDEX, SINGLE
from ..formats.strict_json import quote
from .source import Checkpoint, Shard

SUFFIX = ".safetensors"
Destination = tuple[Path, tuple[Shard, ...]]


def output_path(path: str | os.PathLike[str]) -> Path:
    """The path of an output as a Path, which drops the slash of a folder.

    >>> output_path("q/").name
    'q'
    >>> output_path("q.safetensors/")
    Traceback (most recent call last):
    ...
    qrs.errors.ArgValueError: output: got 'q.safetensors/', expected a folder's name or a file's
    """
    place = as_path(path, "output")
    text = os.fspath(path)
    if place.name.endswith(SUFFIX) and os.path.basename(text) != place.name:
        raise bad("output", f"got {quote(text)}", text, "a folder's name or a file's")
    return place


@dataclass(frozen=True)
class Output:
    """Where a checkpoint goes, checked: see `check`."""

    source: Checkpoint
    path: Path
    overwrite: bool = False

    @property
    def is_file(self) -> bool:
        """Whether everything goes into one file."""
        return self.path.name.endswith(SUFFIX)

    @property
    def companions(self) -> list[str]:
        """Files that are carried along, as paths within the folder."""
        return [name for name, carried in self._companions if carried]

    @property
    def skipped(self) -> list[str]:
        """Files of the source folder that stay behind."""
        return [name for name, carried in self._companions if not carried]

    @cached_property
    def _companions(self) -> list[tuple[str, bool]]:
        return [] if self.is_file else list(self.source.companions())

    def check(self, nbytes: int) -> None:
        """Raise before any work: StorageError (errno) or ArgValueError.

        `nbytes` is what will be written. Whether files can be made in the folder shows when the
        first is made, also before any work.
        """
        with storage_errors(self.path):
            target = Path(os.path.realpath(self.path))
            status = os.statvfs(target.parent)
            if not target.parent.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            self._check_existing(target)
        self._check_apart(target)
        for reason, number in (
            (status.f_flag & os.ST_RDONLY, errno.EROFS),
            (not os.access(target.parent, os.W_OK | os.X_OK), errno.EACCES),
            (status.f_blocks and nbytes > status.f_bavail * status.f_frsize, errno.ENOSPC),
        ):
            if reason:
                raise StorageError(number, os.strerror(number), self.path)

    def _check_existing(self, target: Path) -> None:
        if not os.path.lexists(target):
            return
        if self.is_file and target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not self.is_file and not target.is_dir():
            number = errno.ENOTDIR
            raise NotADirectoryError(number, f"{os.strerror(number)}, and no name in {SUFFIX}")
        if not self.is_file and os.path.ismount(target):
            raise OSError(errno.EBUSY, "A mount point, which cannot be replaced")
        if not self.is_file and not os.listdir(target):
            return
        if not self.overwrite:
            raise FileExistsError(errno.EEXIST, "Exists already (overwrite replaces it)")
        if not self.is_file and not any((target / name).exists() for name in (SINGLE, INDEX)):
            raise FileExistsError(errno.EEXIST, "Not a checkpoint folder, so it is not replaced")

    def _check_apart(self, target: Path) -> None:
        """The output must not destroy its source, nor become part of it."""
        files = {Path(os.path.realpath(shard.path)) for shard in self.source.shards}
        if self.is_file:
            if target in files and len(files) > 1:
                raise self._overlap("is one of the shards that are read")
            return
        # A shell in a folder that is replaced would go on in the old one, which is gone.
        with suppress(FileNotFoundError):  # it can be gone already
            if Path.cwd().is_relative_to(target):
                raise self._overlap("is, or holds, the working directory")
        folder = self.source.folder
        places = files if folder is None else files | {Path(os.path.realpath(folder))}
        if any(place.is_relative_to(target) for place in places):
            raise self._overlap("is, or holds, the checkpoint that is read")
        if folder is not None and target.is_relative_to(os.path.realpath(folder)):
            raise self._overlap("lies inside the checkpoint folder that is read")

    def _overlap(self, problem: str) -> QrsError:
        return bad("output", f"{self.path} {problem}", str(self.path), "another place")

    @contextmanager
    def files(self) -> Iterator[list[Destination]]:
        """Each file to write with the shards that go into it; whole when the block ends.

        The companions are copied before the block: a folder that cannot be written fails early.
        """
        shards = self.source.shards
        if self.is_file:
            yield [(self.path, shards)]
            return
        with atomic_folder(self.path, overwrite=self.overwrite) as folder, named(folder, self.path):
            for name in self.companions:
                assert self.source.folder is not None
                copy_file(self.source.folder / name, folder / name)
            if self.source.is_sharded:
                yield [(folder / shard.path.name, (shard,)) for shard in shards]
            else:
                yield [(folder / SINGLE, shards)]

    def write_index(self, folder: Path, weight_map: Mapping[str, str], total: int) -> None:
        """The index of a sharded output: the file of each stored tensor, and their bytes in all."""
        metadata = {**self.source.index_metadata, "total_size": total}
        index = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
        text = json.dumps(index, indent=2, ensure_ascii=False) + "\n"
        atomic_write_bytes(folder / INDEX, text.encode())


@contextmanager
def named(temporary: Path, final: Path) -> Iterator[None]:
    """Errors name a file by where it was going to be, not by its temporary place."""
    try:
        yield
    except StorageError as error:
        place = Path(error.filename or "")
        if not place.is_relative_to(temporary):
            raise
        path = final / place.relative_to(temporary)
        raise StorageError(error.errno or 0, error.strerror or "", path) from error


def copy_file(source: Path, target: Path) -> None:
    """Copy the bytes of a file that fits into memory; its mode is that of a new file."""
    with storage_errors(source):
        data = source.read_bytes()
    with storage_errors(target):
        if not target.parent.is_dir():
            os.makedirs(target.parent)
        target.write_bytes(data)
