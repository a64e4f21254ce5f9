"""Outputs that appear whole or not at all.

A file is written under a temporary name in the folder of its target, synced, closed and renamed
over the target; then the folder is synced. Until the rename the target is what it was, and after
any exception (KeyboardInterrupt too) the temporary file is gone. A folder is built beside its
target in the same way, and changes places with an old one in one step (renameat2 of Linux).

- Mode: a new file gets 0666 & ~umask; a replaced one keeps its mode, its ACL and, where the process
  may set them, its owner and group. So does a file in a replaced folder that held one of its name.
- A symbolic link is followed: the file it points at is replaced, the link stays.
- A hard link is cut: the other names keep the old content.
- Only regular files are replaced: never a device, a pipe or a socket.
- If the last step fails, the sync of the folder after the rename, the error is raised although the
  target is already the new, complete file: a power cut could still bring the old one back.

Linux and other POSIX systems. A process killed outright leaves its temporary file or folder behind,
`.NAME.<16 hex digits>.tmp`. Where two folders cannot change places in one step (a system or file
system without it, such as NFS), one killed between the renames leaves the old folder at
`.NAME.<16 hex digits>.old` and none at its own name.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import ArgTypeError, StorageError, bad
from .strict_json import quote

_NO_FALLOCATE = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENODEV}
_PIECE = 1 << 30  # some systems refuse to write 2 GiB or more in one call
_ACL = "system.posix_acl_access"
_NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of <fcntl.h> and <stdio.h>


def as_path(path: str | os.PathLike[str], arg: str = "path") -> Path:
    """The path as a Path. Raises ArgTypeError for what is none, ArgValueError for a NUL in it.

    >>> as_path("a\\0b")
    Traceback (most recent call last):
    ...
    qrs.errors.ArgValueError: path: got 'a\\x00b', expected a path without NUL
    """
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str):
        raise bad(arg, f"got {quote(path)}", path, "a string or os.PathLike", ArgTypeError)
    if not text:
        raise bad(arg, "got ''", text, "a path")
    if "\0" in text:
        raise bad(arg, f"got {quote(text)}", text, "a path without NUL")
    return Path(text)


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

    Yields a temporary folder beside the target, which nobody else may read until it is whole.
    Everything in it is synced before the rename.

    Raises StorageError, before the body runs, if `path` exists and is not an empty folder (EEXIST;
    ENOTDIR if it is no folder). With `overwrite=True` an existing folder is replaced and then
    removed *with all it holds*; if the replacement fails it stays.
    """
    with storage_errors(path):
        target = _target(path)
        old = _replaced_folder(target, overwrite)
    temporary = _sibling(target, "tmp")
    try:
        with storage_errors(path):
            os.mkdir(temporary)
            mode = os.stat(temporary).st_mode if old is None else old.st_mode
            os.chmod(temporary, 0o700)
        yield Path(temporary)
        with storage_errors(path):
            _inherit_all(temporary, target)
            os.chmod(temporary, stat.S_IMODE(mode))
            _sync_tree(temporary)
            _replace_folder(temporary, target, overwrite=overwrite)
            sync(os.path.dirname(target))
    finally:
        # After an error what was built, after an exchange what was replaced, else nothing.
        shutil.rmtree(temporary, ignore_errors=True)


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


def _inherit_all(folder: str, old: str) -> None:
    """`_inherit` for every file of `folder` that replaces one of the same name in `old`."""
    for place, _, files in os.walk(folder):
        for name in files:
            file = os.path.join(place, name)
            replaced = os.path.join(old, os.path.relpath(file, folder))
            try:
                status = os.lstat(replaced)
            except (FileNotFoundError, NotADirectoryError):
                continue
            if stat.S_ISREG(status.st_mode):
                fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    _inherit(fd, replaced, status)
                finally:
                    os.close(fd)


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
    try:
        if overwrite and os.path.isdir(target):
            _swap(temporary, target)
        else:
            os.rename(temporary, target)  # replaces an empty folder, and nothing else
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise OSError(errno.EEXIST, "Folder exists and is not empty") from error
        raise


def _swap(new: str, old: str) -> None:
    """Let two folders change places; after any exception they are where they were, or have."""
    if _exchange(new, old):
        return
    aside = _sibling(old, "old")
    try:
        os.rename(old, aside)
        os.rename(new, old)
        os.rename(aside, new)
    except BaseException:
        if os.path.lexists(aside):
            if os.path.lexists(old):
                os.rename(old, new)
            os.rename(aside, old)
        raise


def _exchange(one: str, other: str) -> bool:
    """Exchange two names in one step; False where the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # glibc 2.28
    if renameat2 is None:
        return False
    renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p) * 2 + (ctypes.c_uint,)
    names = os.fsencode(one), os.fsencode(other)
    if renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number))
