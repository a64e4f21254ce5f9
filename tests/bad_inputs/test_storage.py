"""Rows J01, J02, J03, J11, J12, J14 of the table of bad inputs, as far as they are the writer's."""

import errno
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from processes import unprivileged
from qrs.errors import StorageError
from qrs.formats.qrs_file import load, save
from qrs.formats.safetensors import CHUNK, SafetensorsFile, Writer
from raw_safetensors import entry, raw_file

ARRAYS = {"a": np.arange(1000.0), "b": np.ones((3, 5), np.float16)}
LAYOUT = [("a", "F64", (1000,)), ("b", "F16", (3, 5))]


def refused(path: Path, number: int) -> None:
    """Entering the Writer's block fails: nothing was computed yet, nothing is left behind."""
    with pytest.raises(StorageError) as caught, Writer(path, LAYOUT):
        pytest.fail("the body must not run")
    assert caught.value.errno == number
    assert caught.value.filename == str(path)
    assert isinstance(caught.value, OSError)


def test_J01_folder_is_missing(tmp_path: Path) -> None:
    refused(tmp_path / "nope" / "x.safetensors", errno.ENOENT)


def test_J01_folder_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    refused(tmp_path / "file" / "x.safetensors", errno.ENOTDIR)


def test_J01_output_is_a_folder(tmp_path: Path) -> None:
    refused(tmp_path, errno.EISDIR)
    assert os.listdir(tmp_path) == []


def test_J01_output_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", errno.EINVAL)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    refused(Path("/dev/null"), errno.EINVAL)


def test_J01_folder_is_not_writable() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        try:
            with unprivileged():
                refused(Path(folder) / "x.safetensors", errno.EACCES)
        finally:
            os.chmod(folder, 0o755)
        assert os.listdir(folder) == []


@pytest.mark.parametrize("number", [errno.EROFS, errno.EDQUOT, errno.EMFILE, errno.ENOSPC])
def test_J01_file_cannot_be_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", fail)
    refused(tmp_path / "x.safetensors", number)
    assert os.listdir(tmp_path) == []


def test_J01_symbolic_links_in_a_circle(tmp_path: Path) -> None:
    os.symlink("y", tmp_path / "x")
    os.symlink("x", tmp_path / "y")
    refused(tmp_path / "x", errno.ELOOP)


# ---- J02: the disk fills up, at every call in turn


class Fault:
    """Replace `os.<name>`: the call number `at` fails. `done`: it has its effect nevertheless."""

    def __init__(self, name: str, at: int, number: int = errno.ENOSPC, done: bool = False) -> None:
        self.real: Callable[..., Any] = getattr(os, name)
        self.at, self.number, self.done, self.calls = at, number, done, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls == self.at:
            if self.done:
                self.real(*args, **kwargs)
            raise OSError(self.number, os.strerror(self.number))
        return self.real(*args, **kwargs)


def calls_of(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often a save calls `os.<name>` when nothing fails."""
    with monkeypatch.context() as patch:
        fault = Fault(name, 0)
        patch.setattr(os, name, fault)
        save(folder / "counted", ARRAYS)
    return fault.calls


FUNCTIONS = ["pwrite", "posix_fallocate", "fsync", "close", "rename"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("exists", [True, False], ids=["replacing", "new"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_J02_every_call_may_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, exists: bool, number: int
) -> None:
    (tmp_path / "count").mkdir()
    count = calls_of(name, tmp_path / "count", monkeypatch)
    assert count == {"pwrite": 3, "posix_fallocate": 1, "fsync": 2, "close": 2, "rename": 1}[name]
    folder, old = tmp_path / "out", {"old": np.zeros(3)}
    folder.mkdir()
    path = folder / "x.safetensors"
    for at in range(1, count + 1):
        path.unlink(missing_ok=True)
        if exists:
            save(path, old)
        with monkeypatch.context() as patch:
            patch.setattr(os, name, Fault(name, at, number, done=name == "close"))
            with pytest.raises(StorageError) as caught:
                save(path, ARRAYS)
        assert (caught.value.errno, caught.value.filename) == (number, str(path))
        if name in ("fsync", "close") and at == 2:
            # The folder, after the rename: the new file is whole, and the error is told.
            assert load(path).keys() == ARRAYS.keys()
        else:
            assert os.listdir(folder) == (["x.safetensors"] if exists else [])
            assert not exists or load(path).keys() == old.keys()
        assert not [file for file in os.listdir(folder) if file.endswith(".tmp")]


def test_J02_disk_full_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    huge = [("a", "F32", (1 << 60,))]
    with pytest.raises(StorageError) as caught, Writer(path, huge):
        pytest.fail("the body must not run")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert os.listdir(tmp_path) == []


def test_J02_a_real_full_disk() -> None:
    code = """
import errno, os, sys
import numpy as np
from qrs.errors import StorageError
from qrs.formats.qrs_file import save
try:
    save(sys.argv[1] + "/x", {"a": np.zeros(200_000)})
except StorageError as error:
    print(errno.errorcode[error.errno], os.listdir(sys.argv[1]))
"""
    with tempfile.TemporaryDirectory() as folder:
        mount = 'mount -t tmpfs -o size=1m none "$4" && exec "$@"'
        command = [sys.executable, "-c", code, folder]
        out = subprocess.run(
            ["unshare", "--mount", "--map-root-user", "sh", "-c", mount, "sh", *command],
            capture_output=True,
            text=True,
        )
    if "unshare" in out.stderr or "mount" in out.stderr:
        pytest.skip(f"no private mounts here: {out.stderr.strip()}")
    assert out.stdout == "ENOSPC []\n", out.stderr


def test_J03_short_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:101], at))
    save(tmp_path / "x", ARRAYS)
    assert np.array_equal(load(tmp_path / "x")["a"], ARRAYS["a"])


# ---- J11: the same file under several names


def test_J11_input_is_the_output(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save(path, ARRAYS)
    with SafetensorsFile(path) as file, Writer(path, LAYOUT) as writer:
        for name in file.tensors:
            writer.write_chunks(name, file.chunks(name))
    assert np.array_equal(load(path)["a"], ARRAYS["a"])
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_J11_a_symbolic_link_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    real, link = tmp_path / "elsewhere" / "real", tmp_path / "link"
    save(real, {"old": np.zeros(3)})
    os.symlink("elsewhere/real", link)
    save(link, ARRAYS)
    assert os.readlink(link) == "elsewhere/real"
    assert load(real).keys() == ARRAYS.keys()
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "link"]
    assert os.listdir(tmp_path / "elsewhere") == ["real"]


def test_J11_a_link_to_nothing_makes_its_target(tmp_path: Path) -> None:
    os.symlink("real", tmp_path / "link")
    save(tmp_path / "link", ARRAYS)
    assert load(tmp_path / "real").keys() == ARRAYS.keys()
    assert os.path.islink(tmp_path / "link")


def test_J11_a_hard_link_keeps_the_old_content(tmp_path: Path) -> None:
    save(tmp_path / "x", {"old": np.zeros(3)})
    os.link(tmp_path / "x", tmp_path / "other")
    save(tmp_path / "x", ARRAYS)
    assert load(tmp_path / "x").keys() == ARRAYS.keys()
    assert load(tmp_path / "other").keys() == {"old"}


# ---- J12: modes


@pytest.mark.parametrize("umask", [0o077, 0o022, 0o002])
def test_J12_a_new_file_follows_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        save(tmp_path / "x", ARRAYS)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o444, 0o755])
def test_J12_a_replaced_file_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "x"
    save(path, {"old": np.zeros(3)})
    path.chmod(mode)
    before = os.umask(0o077)
    try:
        save(path, ARRAYS)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert load(path).keys() == ARRAYS.keys()


def test_J12_a_private_file_is_never_readable_by_others(tmp_path: Path) -> None:
    path = tmp_path / "x"
    save(path, {"old": np.zeros(3)})
    path.chmod(0o600)
    with Writer(path, LAYOUT) as writer:
        (temporary,) = (file for file in tmp_path.iterdir() if file != path)
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
        for name, array in ARRAYS.items():
            writer.write(name, array)


def acl(*entries: tuple[int, int, int]) -> bytes:
    """An access control list as Linux stores it: version 2, then (tag, permissions, id)."""
    pack = b"".join(
        tag.to_bytes(2, "little") + perm.to_bytes(2, "little") + who.to_bytes(4, "little")
        for tag, perm, who in entries
    )
    return (2).to_bytes(4, "little") + pack


def test_J12_a_replaced_file_keeps_its_access_control_list(tmp_path: Path) -> None:
    path, nobody = tmp_path / "x", 2**32 - 1
    save(path, {"old": np.zeros(3)})
    rights = acl((1, 6, nobody), (2, 4, 12345), (4, 4, nobody), (16, 6, nobody), (32, 0, nobody))
    try:
        os.setxattr(path, "system.posix_acl_access", rights)
    except OSError:
        pytest.skip("this file system has no access control lists")
    save(path, ARRAYS)
    assert os.getxattr(path, "system.posix_acl_access") == rights


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_J12_root_leaves_the_owner_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "x"
    save(path, {"old": np.zeros(3)})
    os.chown(path, 12345, 54321)
    save(path, ARRAYS)
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 54321)


# ---- J14: not enough memory

J14 = """
import resource, sys
from qrs.errors import QrsMemoryError
from qrs.formats.safetensors import SafetensorsFile

def limit(extra):
    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + extra, -1))

with SafetensorsFile(sys.argv[1]) as file:
    limit(1 << 30)
    for read in (lambda: file.read("large"), lambda: file.read_rows("large", 0, 3 << 28)):
        try:
            read()
        except QrsMemoryError as error:
            assert isinstance(error, MemoryError) and "large" in str(error)
            print(type(error).__name__, error.value)
    print(file.read("small").tolist(), len(next(file.chunks("large"))))
"""


def test_J14_a_tensor_larger_than_memory(tmp_path: Path) -> None:
    path, size = tmp_path / "x.safetensors", 3 << 30
    header = {"small": entry(0, 8, [2]), "large": entry(8, 8 + size, [size // 4])}
    path.write_bytes(raw_file(header, np.float32([1, 2]).tobytes()))
    os.truncate(path, path.stat().st_size + size)  # sparse: the disk holds none of it
    out = subprocess.run([sys.executable, "-c", J14, path], capture_output=True, text=True)
    refused = f"QrsMemoryError {size}"
    assert out.stdout.splitlines() == [refused, refused, f"[1.0, 2.0] {CHUNK}"], out.stderr
    assert out.returncode == 0


J14_HEADER = (
    J14.partition("with SafetensorsFile")[0]
    + """
limit(80 << 20)
try:
    SafetensorsFile(sys.argv[1])
except QrsMemoryError as error:
    print(type(error).__name__, error.value)
with SafetensorsFile(sys.argv[2]) as file:
    print(file.read("a").sum())
"""
)


def test_J14_a_header_larger_than_memory(tmp_path: Path) -> None:
    size = 60_000_000
    (tmp_path / "x").write_bytes(raw_file(b"{" + b" " * (size - 2) + b"}"))
    save(tmp_path / "y", {"a": np.ones(10)})
    out = subprocess.run(
        [sys.executable, "-c", J14_HEADER, tmp_path / "x", tmp_path / "y"],
        capture_output=True,
        text=True,
    )
    assert out.stdout.splitlines() == [f"QrsMemoryError {size}", "10.0"], out.stderr
