"""Outputs appear whole or not at all, whatever fails and whenever."""

import errno
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from qrs.errors import ArgValueError, StorageError
from qrs.formats import atomic
from qrs.formats.atomic import atomic_file, atomic_folder, atomic_write_bytes, write_all


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_the_file_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with atomic_file(path) as fd:
        write_all(fd, b"half", 0)
        assert not path.exists()
        (name,) = names(tmp_path)
        assert name.startswith(".x.json.") and name.endswith(".tmp")
    assert path.read_bytes() == b"half"
    assert names(tmp_path) == ["x.json"]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("old", [None, b"old"])
def test_any_exception_leaves_what_was_there(
    tmp_path: Path, kind: type[BaseException], old: bytes | None
) -> None:
    path = tmp_path / "x"
    if old is not None:
        path.write_bytes(old)
    with pytest.raises(kind), atomic_file(path) as fd:
        write_all(fd, b"half", 0)
        raise kind
    assert names(tmp_path) == ([] if old is None else ["x"])
    assert old is None or path.read_bytes() == old


def test_errors_of_the_body_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, atomic_file(tmp_path / "x"):
        open(tmp_path / "nope").close()
    assert not isinstance(caught.value, StorageError)
    with pytest.raises(ArgValueError), atomic_file(tmp_path / "x"):
        raise ArgValueError("no")


def test_write_bytes(tmp_path: Path) -> None:
    for data in (b"", b"{}", bytes(range(256)) * 10_000):
        atomic_write_bytes(tmp_path / "x", data)
        assert (tmp_path / "x").read_bytes() == data


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:7], at))
    atomic_write_bytes(tmp_path / "x", bytes(range(100)))
    assert (tmp_path / "x").read_bytes() == bytes(range(100))


def test_a_write_that_never_progresses_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pwrite", lambda *_: 0)
    with pytest.raises(StorageError) as caught:
        atomic_write_bytes(tmp_path / "x", b"data")
    assert caught.value.errno == errno.EIO
    assert names(tmp_path) == []


def test_a_longest_name_and_a_name_that_is_no_text(tmp_path: Path) -> None:
    for name in ("n" * 255, os.fsdecode(b"\xff\xfe.bin"), "\N{SNOWMAN}" * 85):
        atomic_write_bytes(tmp_path / name, b"data")
        assert names(tmp_path) == [name]
        os.unlink(tmp_path / name)


def test_file_systems_without_fallocate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", missing)
    atomic_write_bytes(tmp_path / "x", b"data")
    assert (tmp_path / "x").read_bytes() == b"data"


def test_a_folder_that_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def only_files(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(fd)

    monkeypatch.setattr(os, "fsync", only_files)
    atomic_write_bytes(tmp_path / "x", b"data")
    assert (tmp_path / "x").read_bytes() == b"data"


# ---- Folders


def fill(folder: Path, text: str) -> None:
    (folder / "sub").mkdir()
    (folder / "config.json").write_text(text)
    (folder / "sub" / "deep").write_text(text)


def test_the_folder_appears_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with atomic_folder(target) as folder:
        fill(folder, "new")
        assert not target.exists() and folder.parent == tmp_path
    assert (target / "sub" / "deep").read_text() == "new"
    assert names(tmp_path) == ["model"]


def test_an_empty_folder_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir(mode=0o750)
    with atomic_folder(target) as folder:
        fill(folder, "new")
    assert (target / "config.json").read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o750


def test_a_full_folder_is_kept_unless_told(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    fill(target, "old")
    with pytest.raises(StorageError) as caught, atomic_folder(target):
        pytest.fail("the body must not run")
    assert (caught.value.errno, caught.value.filename) == (errno.EEXIST, str(target))
    assert (target / "config.json").read_text() == "old"
    with atomic_folder(target, overwrite=True) as folder:
        (folder / "config.json").write_text("new")
        assert (target / "config.json").read_text() == "old"
    assert names(target) == ["config.json"]
    assert names(tmp_path) == ["model"]


def test_a_folder_that_fills_up_meanwhile_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with pytest.raises(StorageError) as caught, atomic_folder(target) as folder:
        fill(folder, "new")
        target.mkdir()
        fill(target, "theirs")
    assert caught.value.errno == errno.EEXIST
    assert (target / "config.json").read_text() == "theirs"
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_no_folder(tmp_path: Path, overwrite: bool) -> None:
    target = tmp_path / "model"
    target.write_text("a file")
    with pytest.raises(StorageError) as caught, atomic_folder(target, overwrite=overwrite):
        pytest.fail("the body must not run")
    assert caught.value.errno == errno.ENOTDIR
    assert target.read_text() == "a file"


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failed_folder_leaves_the_old_one(
    tmp_path: Path, kind: type[BaseException], overwrite: bool
) -> None:
    target = tmp_path / "model"
    if overwrite:
        target.mkdir()
        fill(target, "old")
    with pytest.raises(kind), atomic_folder(target, overwrite=overwrite) as folder:
        fill(folder, "new")
        raise kind
    assert names(tmp_path) == (["model"] if overwrite else [])
    assert not overwrite or (target / "sub" / "deep").read_text() == "old"


def no_exchange(one: str, other: str) -> bool:
    """A system or a file system whose folders cannot change places in one step."""
    return False


@pytest.mark.parametrize(("failing", "expected"), [(1, 1), (2, 3), (3, 5)])
def test_a_failed_replacement_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, expected: int
) -> None:
    target = tmp_path / "model"
    target.mkdir()
    fill(target, "old")
    real, calls = os.rename, []

    def rename(source: str, to: str) -> None:
        calls.append(source)
        if len(calls) == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, to)

    monkeypatch.setattr(atomic, "_exchange", no_exchange)
    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(StorageError) as caught, atomic_folder(target, overwrite=True) as folder:
        fill(folder, "new")
    assert caught.value.errno == errno.ENOSPC
    assert len(calls) == expected
    assert (target / "sub" / "deep").read_text() == "old"
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("at", [1, 2, 3])
def test_ctrl_c_between_the_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    target = tmp_path / "model"
    target.mkdir()
    fill(target, "old")
    real, calls = os.rename, []

    def rename(source: str, to: str) -> None:
        real(source, to)
        calls.append(source)
        if len(calls) == at:
            raise KeyboardInterrupt

    monkeypatch.setattr(atomic, "_exchange", no_exchange)
    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(KeyboardInterrupt), atomic_folder(target, overwrite=True) as folder:
        fill(folder, "new")
    assert names(tmp_path) == ["model"]
    assert (target / "sub" / "deep").read_text() == ("new" if at == 3 else "old")


def test_folders_are_replaced_without_exchange_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "model"
    target.mkdir()
    fill(target, "old")
    monkeypatch.setattr(atomic, "_exchange", no_exchange)
    with atomic_folder(target, overwrite=True) as folder:
        fill(folder, "new")
    assert (target / "sub" / "deep").read_text() == "new"
    assert names(tmp_path) == ["model"]


KILLED = """
import os, shutil, sys
from qrs.formats import atomic
target, at, calls = sys.argv[1], int(sys.argv[2]), 0
def deadly(real):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == at:
            os._exit(9)
        return real(*args, **kwargs)
    return call
for module, name in ((os, "rename"), (os, "fsync"), (atomic, "_exchange"), (shutil, "rmtree")):
    setattr(module, name, deadly(getattr(module, name)))
with atomic.atomic_folder(target, overwrite=True) as folder:
    for name in ("a", "b"):
        (folder / name).write_text("new")
"""


def test_a_folder_is_there_whenever_the_process_is_killed(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    if not atomic._exchange(str(tmp_path / "one"), str(tmp_path / "other")):
        pytest.skip("folders cannot change places here")
    target, seen = tmp_path / "model", []
    for at in range(1, 20):
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for name in ("a", "b"):
            (target / name).write_text("old")
        command = [sys.executable, "-c", KILLED, str(target), str(at)]
        code = subprocess.run(command).returncode
        (text,) = {(target / name).read_text() for name in names(target)}
        assert names(target) == ["a", "b"]
        seen.append(text)
        if code == 0:
            break
        assert code == 9
    assert seen == sorted(seen, reverse=True) and set(seen) == {"old", "new"}


def test_files_in_a_replaced_folder_keep_their_modes(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    fill(target, "old")
    (target / "config.json").chmod(0o600)
    (target / "sub" / "deep").chmod(0o640)
    with atomic_folder(target, overwrite=True) as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700  # nobody else looks in meanwhile
        fill(folder, "new")
        (folder / "more").write_text("new")
    modes = {name: stat.S_IMODE((target / name).stat().st_mode) for name in names(target)}
    umask = os.umask(0o022)
    os.umask(umask)
    assert modes["config.json"] == 0o600 and modes["more"] == 0o666 & ~umask
    assert stat.S_IMODE((target / "sub" / "deep").stat().st_mode) == 0o640


def test_a_mode_is_not_taken_from_what_a_link_points_at(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (tmp_path / "elsewhere").write_text("secret")
    (tmp_path / "elsewhere").chmod(0o777)
    (target / "config.json").symlink_to(tmp_path / "elsewhere")
    with atomic_folder(target, overwrite=True) as folder:
        (folder / "config.json").write_text("new")
    assert stat.S_IMODE((target / "config.json").stat().st_mode) != 0o777
    assert (tmp_path / "elsewhere").read_text() == "secret"


def test_everything_in_a_folder_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, synced = os.fsync, []

    def fsync(fd: int) -> None:
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_folder(tmp_path / "model") as folder:
        fill(folder, "new")
    assert {"config.json", "deep", "sub", folder.name, tmp_path.name} == set(synced)
    assert synced[-1] == tmp_path.name  # the rename itself, last
