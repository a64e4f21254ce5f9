"""Rows J01 and J11: paths that are none, places not to replace, files that cannot be read."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import qrs
from qrs import checkpoint
from qrs.checkpoint import quantize_checkpoint
from qrs.errors import ArgTypeError, ArgValueError, StorageError


@pytest.mark.parametrize(
    ("path", "kind"),
    [("a\0b", ArgValueError), (None, ArgTypeError), (b"x", ArgTypeError), (3, ArgTypeError)],
)
def test_J01_what_is_no_path(model: Path, path: Any, kind: type[qrs.QrsError]) -> None:
    calls: dict[str, Callable[[], object]] = {
        "path": lambda: qrs.load(path),
        "model": lambda: checkpoint.inspect_checkpoint(path),
        "output": lambda: quantize_checkpoint(model, path),
    }
    for arg, call in {**calls, "path ": lambda: qrs.save(path, {})}.items():
        with pytest.raises(kind) as caught:
            call()
        assert (caught.value.arg, caught.value.value) == (arg.strip(), path)
        assert str(caught.value.expected) in str(caught.value)


@pytest.mark.parametrize("content", [[1], None, "w", {1, 2}])
def test_what_is_no_dictionary_of_tensors(tmp_path: Path, content: Any) -> None:
    with pytest.raises(ArgTypeError) as caught:
        qrs.save(tmp_path / "x", content)
    assert caught.value.arg == "tensors" and os.listdir(tmp_path) == []


def test_J11_the_working_directory_is_not_replaced(
    tmp_path: Path, model: Path, no_work: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "deep").mkdir(parents=True)
    (tmp_path / "here" / "model.safetensors").write_bytes(b"")
    for place, outputs in {"here": [".", tmp_path / "here"], "here/deep": ["..", "."]}.items():
        monkeypatch.chdir(tmp_path / place)
        before = os.stat(".").st_ino
        for output in outputs:
            with pytest.raises(ArgValueError, match="is, or holds, the working directory"):
                quantize_checkpoint(model, output, overwrite=True)
        assert os.stat(tmp_path / place).st_ino == before


def test_J01_a_mount_point_is_not_replaced(model: Path, no_work: None) -> None:
    with pytest.raises(StorageError) as caught:
        quantize_checkpoint(model, "/proc")
    assert caught.value.errno == errno.EBUSY


def test_J01_a_companion_that_cannot_be_read_is_named(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if path.name == "tokenizer.json":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    with pytest.raises(StorageError) as caught:
        quantize_checkpoint(model, tmp_path / "q")
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(model / "tokenizer.json"))
    assert not (tmp_path / "q").exists()
