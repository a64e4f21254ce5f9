"""Compiled kernels are kept on disk, so that only the first use of a family waits for NVRTC.

The folder is QRS_CACHE_DIR, else `qrs` in the user's cache folder. Each entry is a cubin, as
`cupy.RawModule(path=...)` loads it, and a JSON file with its digest and the lowered names. Files
appear whole under their name or not at all, and what does not match its digest is compiled again:
so neither a crash nor two processes at once can do harm. Deleting the folder is always safe.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from hashlib import sha256

from ..errors import StorageError
from . import nvrtc

__all__ = ["cached_cubin", "folder"]


def cached_cubin(
    source: str, names: Sequence[str], arch: str, *, major: int | None = None
) -> tuple[str, dict[str, str]]:
    """The path of a cubin and its lowered names; compiled where the cache does not have it.

    Arguments and errors are those of `nvrtc.compile_cubin`. A folder that cannot be written to is
    no error: a temporary one, which ends with the process, takes its place. So callers keep what
    they have loaded.
    """
    made_of = [source, *names, arch, *nvrtc.OPTIONS, str(nvrtc.version(major))]
    key = sha256(json.dumps(made_of).encode()).hexdigest()
    lowered = _read(folder(), key)
    if lowered is not None and lowered.keys() == set(names):
        return _cubin(folder(), key), lowered
    program = nvrtc.compile_cubin(source, names, arch, major=major)
    try:
        place = folder()
        _write(place, key, program)
    except OSError:
        place = _temporary_folder()
        try:
            _write(place, key, program)
        except OSError as error:
            raise StorageError(error.errno or 0, error.strerror or "", place) from error
    return _cubin(place, key), program.lowered


def folder() -> str:
    """Where compiled kernels are kept; it may not exist yet."""
    chosen = os.environ.get("QRS_CACHE_DIR")
    if chosen:
        return os.path.abspath(chosen)
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(home, "qrs")


def _cubin(place: str, key: str) -> str:
    return os.path.join(place, f"{key}.cubin")


def _description(place: str, key: str) -> str:
    return os.path.join(place, f"{key}.json")


def _read(place: str, key: str) -> dict[str, str] | None:
    """The lowered names of an entry; None where there is none, or where it is damaged."""
    try:
        with open(_description(place, key), "rb") as file:
            description = json.loads(file.read())
        with open(_cubin(place, key), "rb") as file:
            digest = sha256(file.read()).hexdigest()
        lowered = description["lowered"]
        if description["sha256"] == digest and isinstance(lowered, dict):
            return {str(name): str(symbol) for name, symbol in lowered.items()}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass
    return None


def _write(place: str, key: str, program: nvrtc.Program) -> None:
    os.makedirs(place, mode=0o700, exist_ok=True)
    description = {"sha256": sha256(program.cubin).hexdigest(), "lowered": program.lowered}
    # The description last: until it is there, there is no entry.
    _replace(_cubin(place, key), program.cubin)
    _replace(_description(place, key), json.dumps(description).encode())


def _replace(path: str, data: bytes) -> None:
    """Put a whole file in place at once, under a name of its own until it is complete."""
    handle, unfinished = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".unfinished-")
    try:
        with open(handle, "wb") as file:
            file.write(data)
        os.replace(unfinished, path)
    except BaseException:
        os.unlink(unfinished)
        raise


@cache
def _temporary_folder() -> str:
    """A folder of this process, removed when it ends."""
    place = tempfile.mkdtemp(prefix="qrs-")
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place
