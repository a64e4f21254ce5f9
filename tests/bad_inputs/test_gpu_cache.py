"""Row U10 of the table of bad inputs: the compiler's errors, and a cache not as it was left.

NVRTC needs no GPU, so these run everywhere.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from processes import clean_environment, unprivileged
from qrs.backends import cubin_cache, nvrtc
from qrs.backends.cubin_cache import cached_cubin
from qrs.errors import DeviceError

SOURCE = "template <int N> __global__ void add(int* x) { x[threadIdx.x] += N; }"
NAMES = ("add<1>", "add<2>")
ARCH = "sm_80"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QRS_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The architectures that NVRTC was asked for, one for each time it ran."""
    calls: list[str] = []
    compile_cubin = nvrtc.compile_cubin

    def counted(source, names, arch, *, major=None):
        calls.append(arch)
        return compile_cubin(source, names, arch, major=major)

    monkeypatch.setattr(nvrtc, "compile_cubin", counted)
    return calls


def fill(folder: Path) -> tuple[Path, Path]:
    path, _ = cached_cubin(SOURCE, NAMES, ARCH)
    assert Path(path).parent == folder
    return Path(path), Path(path).with_suffix(".json")


def check(path: str, lowered: dict[str, str]) -> None:
    expected = nvrtc.compile_cubin(SOURCE, NAMES, ARCH)
    assert Path(path).read_bytes() == expected.cubin
    assert lowered == expected.lowered


def test_the_cache_answers_the_second_time(folder: Path, compiled: list[str]) -> None:
    first, second = (cached_cubin(SOURCE, NAMES, ARCH) for _ in range(2))
    assert first == second
    assert compiled == [ARCH]
    check(*second)
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda: cached_cubin(SOURCE + " ", NAMES, ARCH),
        lambda: cached_cubin(SOURCE, NAMES[:1], ARCH),
        lambda: cached_cubin(SOURCE, NAMES, "sm_90"),
    ],
    ids=["source", "names", "arch"],
)
def test_whatever_the_bits_depend_on_is_in_the_key(folder, compiled, change) -> None:
    fill(folder)
    change()
    assert len(compiled) == 2


def test_options_and_version_are_in_the_key(folder, compiled, monkeypatch) -> None:
    fill(folder)
    monkeypatch.setattr(nvrtc, "OPTIONS", (*nvrtc.OPTIONS, "-lineinfo"))
    fill(folder)
    monkeypatch.setattr(nvrtc, "version", lambda major=None: (99, 0))
    fill(folder)
    assert len(compiled) == 3


def test_U10_source_that_does_not_compile(folder: Path) -> None:
    with pytest.raises(DeviceError, match=r"qrs\.cu\(1\): error: .*nonsense") as caught:
        cached_cubin("__global__ void f() { nonsense; }", ["f"], ARCH)
    assert caught.value.value == ARCH
    assert not folder.exists()


def test_U10_architecture_that_nvrtc_does_not_know(folder: Path) -> None:
    with pytest.raises(DeviceError, match="sm_1"):
        cached_cubin(SOURCE, NAMES, "sm_1")


def test_U10_nvrtc_is_missing(folder: Path) -> None:
    with pytest.raises(DeviceError, match=r"pip install 'qrs-quant\[cuda11\]'"):
        cached_cubin(SOURCE, NAMES, ARCH, major=11)


DAMAGES = {
    "truncated cubin": lambda cubin, note: cubin.write_bytes(cubin.read_bytes()[:-7]),
    "empty cubin": lambda cubin, note: cubin.write_bytes(b""),
    "garbage in the cubin": lambda cubin, note: cubin.write_bytes(b"\0" * len(cubin.read_bytes())),
    "no cubin": lambda cubin, note: cubin.unlink(),
    "no description": lambda cubin, note: note.unlink(),
    "truncated description": lambda cubin, note: note.write_text(note.read_text()[:-9]),
    "description that is not UTF-8": lambda cubin, note: note.write_bytes(b"\xff\xfe\xfd"),
    "description that is no object": lambda cubin, note: note.write_text("[1]"),
    "wrong digest": lambda cubin, note: note.write_text(
        '{"sha256": "00", "lowered": {"add<1>": "a", "add<2>": "b"}}'
    ),
    "deep description": lambda cubin, note: note.write_text("[" * 200_000),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_U10_damaged_entry_is_compiled_again(folder: Path, compiled: list[str], damage) -> None:
    damage(*fill(folder))
    check(*cached_cubin(SOURCE, NAMES, ARCH))
    cached_cubin(SOURCE, NAMES, ARCH)
    assert len(compiled) == 3  # first, after the damage, and check() itself; then repaired


def test_U10_a_folder_where_the_file_belongs(folder: Path) -> None:
    cubin, _ = fill(folder)
    cubin.unlink()
    cubin.mkdir()
    path, lowered = cached_cubin(SOURCE, NAMES, ARCH)
    assert Path(path).parent != folder
    check(path, lowered)


def test_U10_the_cache_folder_is_a_file(folder: Path) -> None:
    folder.write_text("a file")
    path, lowered = cached_cubin(SOURCE, NAMES, ARCH)
    check(path, lowered)


@pytest.fixture
def readable(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder that other users can reach, which pytest's own folders are not."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        monkeypatch.setenv("QRS_CACHE_DIR", f"{name}/cache")
        cubin_cache._temporary_folder.cache_clear()  # another user's, if there is one
        yield Path(name, "cache")
        cubin_cache._temporary_folder.cache_clear()


@pytest.mark.parametrize("filled", [False, True])
def test_U10_read_only_folder(readable: Path, compiled: list[str], filled: bool) -> None:
    readable.mkdir()
    cubin, note = fill(readable)
    cubin.chmod(0o644)
    note.chmod(0o644)
    if not filled:
        cubin.unlink()
    readable.chmod(0o555)
    with unprivileged():
        path, lowered = cached_cubin(SOURCE, NAMES, ARCH)
        assert (Path(path) == cubin) is filled
        check(path, lowered)
    assert len(compiled) == (2 if filled else 3)  # one of them by check()


MANY = f"""
import sys
from pathlib import Path
from qrs.backends.cubin_cache import cached_cubin
for n in range(8):
    path, lowered = cached_cubin({SOURCE!r} + "// %d" % n, {NAMES!r}, {ARCH!r})
    assert Path(path).read_bytes()[:4] == b"\\x7fELF" and len(lowered) == 2
print("done")
"""


def test_U10_two_processes_fill_the_cache(folder: Path, compiled: list[str]) -> None:
    environment = {**clean_environment(), "QRS_CACHE_DIR": str(folder)}
    command = [sys.executable, "-c", MANY]
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in running:
        out, err = process.communicate(timeout=120)
        assert out.strip() == b"done", err.decode()
    for n in range(8):
        cached_cubin(f"{SOURCE}// {n}", NAMES, ARCH)
    assert compiled == []
    assert not [p for p in folder.iterdir() if p.name.startswith(".unfinished")]


def test_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QRS_CACHE_DIR", str(tmp_path / "own"))
    assert cubin_cache.folder() == str(tmp_path / "own")
    monkeypatch.delenv("QRS_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cubin_cache.folder() == str(tmp_path / "xdg" / "qrs")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cubin_cache.folder() == str(tmp_path / ".cache" / "qrs")
