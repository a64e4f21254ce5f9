"""Rows P13, J01, J02, J11, J12 and S12 of the table of bad inputs, for whole checkpoints."""

import errno
import os
import shutil
import stat
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import qrs
from checkpoints import assert_same, digests, save_model, save_sharded, small_model
from qrs import checkpoint
from qrs.checkpoint import dequantize_checkpoint, quantize_checkpoint
from qrs.cli.commands import app
from qrs.errors import ArgValueError, StorageError
from qrs.formats import atomic

# ---- P13: the command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quantize", "MODEL", "-o", "OUT", "--frobnicate"], "No such option: --frobnicate"),
        (["quantize", "MODEL", "-o", "OUT", "--schema", "int8"], "No such option: --schema"),
        (["quantise", "MODEL", "-o", "OUT"], "No such command 'quantise'"),
        (["quantize", "MODEL", "-o", "OUT", "extra"], "unexpected extra argument"),
        (["quantize", "-o", "OUT"], "Missing argument 'MODEL'"),
        (["quantize", "MODEL"], "-o OUT is missing"),
        (["dequantize", "MODEL"], "-o OUT is missing"),
        (["quantize", "MODEL", "-o"], "requires an argument"),
        (["quantize", "MODEL", "-o", "OUT", "-o", "OUT2"], "--output is given 2 times"),
        (["quantize", "MODEL", "-o", "OUT", "--output", "OUT"], "--output is given 2 times"),
        (
            ["quantize", "MODEL", "-o", "OUT", "--scheme", "int4", "--scheme=int8"],
            "--scheme is given 2 times",
        ),
        (
            ["quantize", "MODEL", "-o", "OUT", "--overwrite", "--overwrite"],
            "--overwrite is given 2 times",
        ),
        (["inspect", "MODEL", "--json", "--json"], "--json is given 2 times"),
        (["doctor", "--json", "--json"], "--json is given 2 times"),
        (
            ["quantize", "MODEL", "-o", "OUT", "--dry-run", "--overwrite"],
            "--dry-run and --overwrite contradict each other",
        ),
        (["quantize", "MODEL", "-o", "OUT", "--scheme", "int9"], "bits: got 9"),
        (["quantize", "MODEL", "-o", "OUT", "--scheme", "int4g32"], "cannot read 'int4g32'"),
        (["quantize", "MODEL", "-o", "OUT", "--embeddings", "?"], "cannot read '?'"),
        (["quantize", "MODEL", "-o", "OUT", "--backend", "cuda"], "backend: got 'cuda'"),
        (["quantize", "MODEL", "-o", "OUT", "--include", "nix*"], "pattern 'nix*' matches no"),
        (["quantize", "MODEL", "-o", "OUT", "--exclude", "nix*"], "pattern 'nix*' matches no"),
        (["quantize", "MODEL", "-o", "OUT", "--scheme", "int8-axis7"], "axis: got 7"),
        (["dequantize", "MODEL", "-o", "OUT", "--dtype", "int8"], "dtype: got 'int8'"),
        (["quantize", "MODEL", "-o", ""], "output: got '', expected a path"),
        (["dequantize", "MODEL", "-o", ""], "output: got '', expected a path"),
        (["quantize", "MODEL", "-o", "x.safetensors/"], "output: got 'x.safetensors/'"),
        (["dequantize", "MODEL", "-o", "x.safetensors/."], "output: got 'x.safetensors/.'"),
    ],
)
def test_P13_wrong_command_line(
    tmp_path: Path, model: Path, no_work: None, arguments: list[str], message: str
) -> None:
    before = digests(tmp_path)
    places = {"MODEL": str(model), "OUT": str(tmp_path / "out"), "OUT2": str(tmp_path / "out2")}
    result = CliRunner().invoke(app, [places.get(word, word) for word in arguments])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") and message in result.stderr
    assert result.stderr.count("\n") == 1
    assert digests(tmp_path) == before


@pytest.mark.parametrize("command", ["quantize", "dequantize"])
def test_P13_what_files_hold_is_no_fault_of_the_command_line(
    tmp_path: Path, model: Path, command: str
) -> None:
    """Exit code 1 whatever the command: a model of the wrong kind, or an output that is in it."""
    other = {"quantize": "dequantize", "dequantize": "quantize"}[command]
    result = CliRunner().invoke(app, ["quantize", str(model), "-o", str(tmp_path / "q")])
    assert result.exit_code == 0
    places = {"quantize": model, "dequantize": tmp_path / "q"}
    for arguments, words in (
        ([places[other], "-o", tmp_path / "x"], "quantized tensors"),
        ([places[command], "-o", places[command] / "x"], "lies inside the checkpoint"),
        (["", "-o", tmp_path / "x"], "model: got '', expected a path"),
    ):
        result = CliRunner().invoke(app, [command, *map(str, arguments)])
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
        assert result.stderr.startswith("error: ") and words in result.stderr
    assert not (tmp_path / "x").exists()


def test_P13_paths_that_are_no_names(tmp_path: Path, model: Path, no_work: None) -> None:
    for path in ("", "x.safetensors/", f"{tmp_path}/x.safetensors//"):
        with pytest.raises(ArgValueError, match=r"output: got '.*', expected a"):
            quantize_checkpoint(model, path)
    with pytest.raises(ArgValueError, match="path: got '', expected a path"):
        qrs.load("")
    with pytest.raises(ArgValueError, match="path: got '', expected a path"):
        qrs.save("", {})


def test_P13_a_slash_at_the_end_is_a_folder(tmp_path: Path, model: Path) -> None:
    quantize_checkpoint(f"{model}/", f"{tmp_path}/q/")
    assert (tmp_path / "q" / "model.safetensors").is_file()


def test_P13_in_a_process_of_its_own(tmp_path: Path, model: Path) -> None:
    command = [sys.executable, "-m", "qrs", "quantize", model, "--no-such-option"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


# ---- J01: the output cannot be written, which is known before any work


def refused(model: Path, output: Path, number: int, **options: Any) -> None:
    with pytest.raises(StorageError) as caught:
        quantize_checkpoint(model, output, **options)
    assert caught.value.errno == number
    assert str(caught.value.filename).startswith(str(output))
    result = CliRunner().invoke(app, ["quantize", str(model), "-o", str(output)])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith(f"error: [Errno {number}]")


@pytest.mark.parametrize("name", ["q", "q.safetensors"])
def test_J01_folder_is_missing(tmp_path: Path, model: Path, no_work: None, name: str) -> None:
    refused(model, tmp_path / "missing" / name, errno.ENOENT)
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize("name", ["q", "q.safetensors"])
def test_J01_folder_is_a_file(tmp_path: Path, model: Path, no_work: None, name: str) -> None:
    (tmp_path / "file").write_text("x")
    refused(model, tmp_path / "file" / name, errno.ENOTDIR)


def test_J01_output_folder_is_a_file(tmp_path: Path, model: Path, no_work: None) -> None:
    (tmp_path / "file").write_text("x")
    refused(model, tmp_path / "file", errno.ENOTDIR)
    assert (tmp_path / "file").read_text() == "x"


def test_J01_output_file_is_a_folder(tmp_path: Path, model: Path, no_work: None) -> None:
    (tmp_path / "q.safetensors").mkdir()
    refused(model, tmp_path / "q.safetensors", errno.EISDIR)


@pytest.mark.parametrize("name", ["q", "q.safetensors"])
def test_J01_output_exists(tmp_path: Path, model: Path, name: str) -> None:
    quantize_checkpoint(model, tmp_path / name)
    before = digests(tmp_path)
    refused(model, tmp_path / name, errno.EEXIST)
    assert digests(tmp_path) == before
    quantize_checkpoint(model, tmp_path / name, "int4-g32", overwrite=True)
    assert qrs.load(tmp_path / name)["layer.0.half.weight"].scheme == qrs.parse("int4-g32")


def test_J01_only_a_checkpoint_folder_is_overwritten(
    tmp_path: Path, model: Path, no_work: None
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    refused(model, tmp_path / "home", errno.EEXIST, overwrite=True)
    assert (tmp_path / "home" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("name", ["q", "q.safetensors"])
def test_J01_folder_is_not_writable(
    tmp_path: Path, model: Path, no_work: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    if os.geteuid() == 0:  # root may write anywhere: let the system say what it says to others
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder)
    refused(model, folder / name, errno.EACCES)
    assert os.listdir(folder) == []


StatVfs = namedtuple("StatVfs", "f_flag f_blocks f_bavail f_frsize")


def test_J01_read_only_file_system(
    tmp_path: Path, model: Path, no_work: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = StatVfs(os.ST_RDONLY, 1 << 30, 1 << 30, 4096)
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    refused(model, tmp_path / "q", errno.EROFS)


# ---- J02: the disk is full


@pytest.mark.parametrize("name", ["q", "q.safetensors"])
def test_J02_full_at_the_start(
    tmp_path: Path, model: Path, no_work: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    needed = checkpoint.plan_checkpoint(model).nbytes_after
    full = StatVfs(0, 1 << 30, needed // 512, 512)
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    refused(model, tmp_path / name, errno.ENOSPC)
    assert os.listdir(tmp_path) == ["m"]


class Fault:
    """Replace `os.<name>`: the call number `at` fails as on a full disk."""

    def __init__(self, name: str, at: int) -> None:
        self.real: Callable[..., Any] = getattr(os, name)
        self.at, self.calls = at, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls == self.at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.real(*args, **kwargs)


@pytest.mark.parametrize("exists", [True, False], ids=["replacing", "new"])
@pytest.mark.parametrize("name", ["pwrite", "posix_fallocate", "fsync", "rename", "mkdir"])
@pytest.mark.parametrize("command", ["quantize", "dequantize"])
def test_J02_every_call_may_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, name: str, exists: bool
) -> None:
    source, old = save_sharded(tmp_path / "m", count=2), tmp_path / "old"
    run: Callable[..., object] = quantize_checkpoint
    if command == "dequantize":
        quantize_checkpoint(source, tmp_path / "source")
        source, run = tmp_path / "source", dequantize_checkpoint
    quantize_checkpoint(save_model(tmp_path / "small"), old, "int2")
    if name == "rename":  # as on a system where folders cannot change places in one step
        monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    if exists:
        shutil.copytree(old, tmp_path / "counted")
    with monkeypatch.context() as patch:
        count = Fault(name, 0)
        patch.setattr(os, name, count)
        run(source, tmp_path / "counted", overwrite=True)
    assert count.calls > 0
    place, before = tmp_path / "place", digests(old)
    for at in range(1, count.calls + 1):
        place.mkdir()
        if exists:
            shutil.copytree(old, place / "q")
        with monkeypatch.context() as patch:
            patch.setattr(os, name, Fault(name, at))
            with pytest.raises(StorageError) as caught:
                run(source, place / "q", overwrite=True)
        assert caught.value.errno == errno.ENOSPC
        assert str(caught.value.filename).startswith(str(place / "q"))
        if name == "fsync" and at == count.calls:
            # The folder around, after the rename: the new checkpoint is whole.
            assert digests(place / "q") == digests(tmp_path / "counted")
            assert os.listdir(place) == ["q"]
        else:
            assert os.listdir(place) == (["q"] if exists else [])
            assert not exists or digests(place / "q") == before
        shutil.rmtree(place)


# ---- J11 and S12: input and output meet


def test_S12_a_file_may_replace_itself(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    qrs.save(path, small_model())
    quantize_checkpoint(path, tmp_path / "expected.safetensors")
    with pytest.raises(StorageError) as caught:
        quantize_checkpoint(path, path)
    assert caught.value.errno == errno.EEXIST
    assert_same(qrs.load(path), small_model())
    quantize_checkpoint(path, path, overwrite=True)
    assert path.read_bytes() == (tmp_path / "expected.safetensors").read_bytes()
    dequantize_checkpoint(path, path, overwrite=True)
    assert qrs.load(path).keys() == small_model().keys()


def test_J11_a_folder_may_not_replace_itself(tmp_path: Path, model: Path, no_work: None) -> None:
    before = digests(tmp_path)
    (tmp_path / "link").symlink_to(model)
    for output in (model, tmp_path / "m" / ".." / "m", tmp_path / "link"):
        with pytest.raises(ArgValueError, match="is, or holds, the checkpoint that is read"):
            quantize_checkpoint(model, output, overwrite=True)
    (tmp_path / "link").unlink()
    assert digests(tmp_path) == before


def test_J11_output_inside_the_input(tmp_path: Path, model: Path, no_work: None) -> None:
    before = digests(tmp_path)
    for output in (model / "q", model / "1_Pooling" / "q"):
        with pytest.raises(ArgValueError, match="lies inside the checkpoint folder") as caught:
            quantize_checkpoint(model, output)
        assert caught.value.arg == "output"
    assert digests(tmp_path) == before


def test_J11_input_inside_the_output(tmp_path: Path, no_work: None) -> None:
    outer = save_model(tmp_path / "outer")
    inner = save_model(outer / "inner")
    for source in (inner, inner / "model.safetensors"):
        with pytest.raises(ArgValueError, match="is, or holds"):
            quantize_checkpoint(source, outer, overwrite=True)
    assert_same(qrs.load(inner), small_model())


def test_J11_one_file_inside_the_input_folder_is_fine(tmp_path: Path, model: Path) -> None:
    quantize_checkpoint(model, model / "int8.safetensors")
    assert_same(qrs.load(model), small_model())
    assert qrs.load(model / "int8.safetensors")["layer.0.half.weight"].scheme.bits == 8


def test_J11_a_shard_of_the_source_is_not_replaced(tmp_path: Path, no_work: None) -> None:
    model = save_sharded(tmp_path / "m")
    before = digests(model)
    shard = next(iter(sorted(model.glob("*.safetensors"))))
    with pytest.raises(ArgValueError, match="is one of the shards that are read"):
        quantize_checkpoint(model, shard, overwrite=True)
    assert digests(model) == before


def test_J11_a_link_to_the_output_is_followed_and_stays(tmp_path: Path, model: Path) -> None:
    (tmp_path / "real").mkdir()
    for name in ("q", "q.safetensors"):
        (tmp_path / name).symlink_to(tmp_path / "real" / name)
        quantize_checkpoint(model, tmp_path / name)
        assert (tmp_path / name).is_symlink()
        assert not (tmp_path / "real" / name).is_symlink()
        assert_same(qrs.load(tmp_path / "real" / name), qrs.load(tmp_path / name))
        quantize_checkpoint(model, tmp_path / name, "int4-g32", overwrite=True)
        assert (tmp_path / name).is_symlink()
        tensor = qrs.load(tmp_path / "real" / name)["layer.0.half.weight"]
        assert tensor.scheme == qrs.parse("int4-g32")


def test_J11_a_link_to_the_input_is_read(tmp_path: Path, model: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (model / "model.safetensors").rename(tmp_path / "blobs" / "abc")
    (model / "model.safetensors").symlink_to(tmp_path / "blobs" / "abc")
    quantize_checkpoint(model, tmp_path / "q")
    assert not (tmp_path / "q" / "model.safetensors").is_symlink()
    assert qrs.load(tmp_path / "q").keys() == small_model().keys()


def test_J11_a_hard_link_of_the_output_keeps_the_source(tmp_path: Path, model: Path) -> None:
    os.link(model / "model.safetensors", tmp_path / "q.safetensors")
    before = digests(model)
    quantize_checkpoint(model, tmp_path / "q.safetensors", overwrite=True)
    assert digests(model) == before
    assert qrs.load(tmp_path / "q.safetensors")["layer.0.half.weight"].scheme.bits == 8


# ---- J12: modes


@pytest.mark.parametrize("umask", [0o077, 0o022, 0o002])
def test_J12_new_files_and_folders_follow_the_umask(
    tmp_path: Path, model: Path, umask: int
) -> None:
    (model / "config.json").chmod(0o400)
    previous = os.umask(umask)
    try:
        quantize_checkpoint(model, tmp_path / "q")
        quantize_checkpoint(model, tmp_path / "q.safetensors")
    finally:
        os.umask(previous)
    for path in [tmp_path / "q.safetensors", *(tmp_path / "q").rglob("*"), tmp_path / "q"]:
        full = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == full & ~umask, path


def test_J12_a_replaced_file_keeps_its_mode(tmp_path: Path, model: Path) -> None:
    for name in ("q", "q.safetensors"):
        quantize_checkpoint(model, tmp_path / name)
        mode = 0o750 if name == "q" else 0o640
        (tmp_path / name).chmod(mode)
        quantize_checkpoint(model, tmp_path / name, "int4-g32", overwrite=True)
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode


def test_J12_files_in_a_replaced_folder_keep_their_modes(tmp_path: Path, model: Path) -> None:
    quantize_checkpoint(model, tmp_path / "q")
    (tmp_path / "q" / "model.safetensors").chmod(0o600)
    quantize_checkpoint(model, tmp_path / "q", "int4-g32", overwrite=True)
    assert stat.S_IMODE((tmp_path / "q" / "model.safetensors").stat().st_mode) == 0o600
