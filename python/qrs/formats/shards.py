"""The safetensors files of a checkpoint, as Hugging Face lays them out.

A checkpoint is one file, or a folder with `model.safetensors`, or a folder with several files and
an index, `model.safetensors.index.json`: `{"metadata": {...}, "weight_map": {tensor: file name}}`.
Where a folder has both, the single file counts, as it does for transformers.

The index names files, so it is read with care: a name is a plain file name within the folder, ends
in .safetensors, and is there; every tensor lies in the file that the index says, and only there.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any, NoReturn

from ..errors import FormatError
from . import strict_json
from .atomic import as_path, storage_errors
from .header import HEADER_LIMIT
from .safetensors import SafetensorsFile
from .strict_json import quote

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def shards(path: str | os.PathLike[str]) -> list[Path]:
    """The files of a checkpoint (a file or a folder), in the order of their names.

    Raises FormatError where the folder is no checkpoint or its index does not hold, and
    StorageError where `path` is missing or unreadable; ArgTypeError or ArgValueError for what is
    no path.
    """
    place = as_path(path)
    with storage_errors(place):
        if not stat.S_ISDIR(os.stat(place).st_mode):
            return [place]
        names = set(os.listdir(place))
    if SINGLE in names:
        return [place / SINGLE]
    if INDEX not in names:
        _fail(place, f"no {SINGLE} and no {INDEX} in this folder")
    weight_map = read_index(place / INDEX)
    files: dict[str, set[str]] = {}
    for tensor, file in weight_map.items():
        files.setdefault(file, set()).add(tensor)
    missing = sorted(files.keys() - names)
    if missing:
        _fail(place / INDEX, f"{len(missing)} shards are missing: {_first(missing)}", "weight_map")
    for file, tensors in files.items():
        _check_shard(place / file, tensors)
    return [place / file for file in sorted(files)]


def read_index(path: Path) -> dict[str, str]:
    """The `weight_map` of an index, tensor -> file name; every name is a plain one."""
    try:
        index = strict_json.loads(_read_text(path))
    except ValueError as error:
        if isinstance(error, FormatError):
            raise
        _fail(path, f"not JSON: {error}")
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        _fail(path, "weight_map: expected an object with at least one tensor", "weight_map")
    for tensor, file in weight_map.items():
        if not _is_plain_name(file):
            problem = f"weight_map: got {quote(file)}, expected the name of a file in this folder"
            _fail(path, f"{problem}, *.safetensors", "weight_map", tensor)
    return weight_map


def _is_plain_name(file: Any) -> bool:
    if not isinstance(file, str) or not file.endswith(".safetensors"):
        return False
    return file.isprintable() and not file.startswith(".") and not set(file) & set("/\\:")


def _read_text(path: Path) -> str:
    with storage_errors(path):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_size > HEADER_LIMIT:
                _fail(path, f"not a regular file of at most {HEADER_LIMIT} bytes")
            data = file.read(HEADER_LIMIT)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise FormatError(
            f"{path}: not UTF-8: {error.reason}", path=path, offset=error.start
        ) from None


def _check_shard(path: Path, tensors: set[str]) -> None:
    """The shard holds exactly the tensors that the index puts there."""
    with SafetensorsFile(path) as file:
        found = file.tensors.keys()
    for names, problem in (
        (tensors - found, "tensors of the index are not in this shard"),
        (found - tensors, "tensors of this shard are elsewhere, or nowhere, in the index"),
    ):
        if names:
            some = sorted(names)
            _fail(path, f"{len(some)} {problem}: {_first(some)}", "weight_map", some[0])


def _first(names: list[str]) -> str:
    more = ", ..." if len(names) > 5 else ""
    return ", ".join(quote(name) for name in names[:5]) + more


def _fail(
    path: Path, problem: str, field: str | None = None, tensor: str | None = None
) -> NoReturn:
    place = f"{path}: " if tensor is None else f"{path}: tensor {quote(tensor)}: "
    raise FormatError(place + problem, path=path, tensor=tensor, field=field)
