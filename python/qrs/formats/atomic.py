"""Outputs that appear whole or not at all.

A file is written under a temporary name in the folder of its target, synced, closed and renamed
over the target; then the folder is synced. Until the rename the target is what it was, and after
any exception (KeyboardInterrupt too) the temporary file is gone. A folder is built beside its
target in the same way.

- Mode: a new file gets 0666 & ~umask; a replaced one keeps its mode, its ACL and, where the process
  may set them, its owner and group.
- A symbolic link is followed: the file it points at is replaced, the link stays.
- A hard link is cut: the other names keep the old content.
- Only regular files are replaced: never a device, a pipe or a socket.
- If the last step fails, the sync of the folder after the rename, the error is raised although the
  target is already the new, complete file: a power cut could still bring the old one back.

Linux and other POSIX systems. A process killed outright leaves its temporary file behind:
`.NAME.<16 hex digits>.tmp`.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import StorageError

_NO_FALLOCATE = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENODEV}
_PIECE = 1 << 30  # some systems refuse to write 2 GiB or more in one call
_ACL = "system.posix_acl_access"


@contextmanager
def storage_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an OSError of the body into a StorageError with its errno that names `path`."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        number = error.errno or errno.EIO
        raise StorageError(number, error.strerror or str(error), os.fspath(path)) from error


def write_all(fd: int, data: Any, offset: int) -> int:
    """Write a whole C-contiguous buffer at `offset`, however short each write; the end's offset.

    EINTR needs no care: Python repeats the call itself (PEP 475).
    """
    view = memoryview(data)
    if not view.nbytes:
        return offset  # a view with an axis of 0 cannot be cast
    view = view.cast("B")
    while view:
        written = os.pwrite(fd, view[:_PIECE], offset)
        if not written:
            raise OSError(errno.EIO, "nothing could be written")
        view, offset = view[written:], offset + written
    return offset


@contextmanager
def atomic_file(path: str | os.PathLike[str], size: int = 0) -> Iterator[int]:
    """Open a file for writing that replaces `path` when the body ends, and never after an error.

    Yields a file descriptor. `size` bytes are set aside first, so that a full disk is known before
    any work is done; the body must write them all. Raises StorageError; exceptions of the body pass
    unchanged.
    """
    with storage_errors(path):
        target = _target(path)
        old = _replaced_file(target)
    temporary = _sibling(target, "tmp")
    fd = -1
    try:
        with storage_errors(path):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            fd = os.open(temporary, flags, 0o666 if old is None else old.st_mode & 0o777)
            if old is not None:
                _inherit(fd, target, old)
            _reserve(fd, size)
        yield fd
        with storage_errors(path):
            os.fsync(fd)
            closing, fd = fd, -1  # after a failed close the descriptor is gone as well
            os.close(closing)
            os.rename(temporary, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        if fd >= 0:
            with suppress(OSError):
                os.close(fd)
        raise
    with storage_errors(path):
        sync(os.path.dirname(target))


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a small file atomically: JSON sidecars, manifests. Raises StorageError."""
    with atomic_file(path, len(data)) as fd, storage_errors(path):
        write_all(fd, data, 0)


@contextmanager
def atomic_folder(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Build a folder that becomes `path` when the body ends, and never after an error.

    Yields a temporary folder beside the target. Everything in it is synced before the rename.

    Raises StorageError, before the body runs, if `path` exists and is not an empty folder (EEXIST;
    ENOTDIR if it is no folder). With `overwrite=True` an existing folder is moved aside, replaced,
    and then removed *with all it holds*; if the replacement fails it is put back.
    """
    with storage_errors(path):
        target = _target(path)
        old = _replaced_folder(target, overwrite)
    temporary = _sibling(target, "tmp")
    try:
        with storage_errors(path):
            os.mkdir(temporary)
            if old is not None:
                os.chmod(temporary, stat.S_IMODE(old.st_mode))
        yield Path(temporary)
        with storage_errors(path):
            _sync_tree(temporary)
            _replace_folder(temporary, target, overwrite=overwrite)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    with storage_errors(path):
        sync(os.path.dirname(target))


def sync(path: str | os.PathLike[str]) -> None:
    """fsync a file or a folder by name. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network file systems cannot sync a folder; nothing more can be done there.
        if error.errno != errno.EINVAL or not os.path.isdir(path):
            raise
    finally:
        os.close(fd)


def _target(path: str | os.PathLike[str]) -> str:
    """The path with links followed, its folder known to exist."""
    target = os.path.realpath(os.fspath(path))
    os.stat(os.path.dirname(target))
    return target


def _sibling(target: str, suffix: str) -> str:
    """A new name in the folder of `target`, for a name of any legal length."""
    folder, name = os.path.split(target)
    short = os.fsdecode(os.fsencode(name)[:200])
    return os.path.join(folder, f".{short}.{secrets.token_hex(8)}.{suffix}")


def _replaced_file(target: str) -> os.stat_result | None:
    """What `target` is now, None if it is not there."""
    try:
        old = os.stat(target)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(old.st_mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(old.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    return old


def _replaced_folder(target: str, overwrite: bool) -> os.stat_result | None:
    try:
        old = os.stat(target)
    except FileNotFoundError:
        return None
    if os.listdir(target) and not overwrite:  # a file here is ENOTDIR
        raise OSError(errno.EEXIST, "Folder exists and is not empty")
    return old


def _inherit(fd: int, target: str, old: os.stat_result) -> None:
    """Give a new file the owner, mode and ACL of the one that it replaces."""
    new = os.fstat(fd)
    if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
        with suppress(OSError):  # only root may give files away
            os.fchown(fd, old.st_uid, old.st_gid)
    os.fchmod(fd, old.st_mode & 0o777)
    if hasattr(os, "getxattr"):
        with suppress(OSError):  # no ACL, or a file system without them
            os.setxattr(fd, _ACL, os.getxattr(target, _ACL))


def _reserve(fd: int, size: int) -> None:
    """Set `size` bytes aside, or raise OSError(ENOSPC) now rather than after hours of work."""
    if not size:
        return
    free = os.fstatvfs(fd)
    if free.f_blocks and size > free.f_bavail * free.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno not in _NO_FALLOCATE:
            raise


def _sync_tree(folder: str) -> None:
    for place, _, files in os.walk(folder, topdown=False):
        for name in files:
            file = os.path.join(place, name)
            if not os.path.islink(file):
                sync(file)
        sync(place)


def _replace_folder(temporary: str, target: str, *, overwrite: bool) -> None:
    aside = _sibling(target, "old")
    moved = overwrite and os.path.isdir(target)
    if moved:
        os.rename(target, aside)
    try:
        os.rename(temporary, target)  # replaces an empty folder, and nothing else
    except BaseException as error:
        if moved:
            os.rename(aside, target)
        if isinstance(error, OSError) and error.errno == errno.ENOTEMPTY:
            raise OSError(errno.EEXIST, "Folder exists and is not empty") from error
        raise
    if moved:
        shutil.rmtree(aside, ignore_errors=True)
