"""The command line: what it prints, where, with which exit code."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import qrs
from checkpoints import digests, normal, save_model, save_sharded, small_model
from processes import clean_environment
from qrs import backends
from qrs.cli.app import Group
from qrs.cli.commands import app
from qrs.cli.escape import escaped
from qrs.cli.progress import Lines

ROOT = Path(__file__).parent.parent


def run(*arguments: str | Path, code: int = 0, env: dict[str, str] | None = None) -> Any:
    """The result of a command that has to end with this exit code."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env=env)
    assert result.exit_code == code, (result.output, result.exception)
    return result


def real(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "qrs", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


def test_quantize_prints_a_table_with_totals(tmp_path: Path) -> None:
    model = save_model(tmp_path / "m")
    result = run("quantize", model, "-o", tmp_path / "q", "--scheme", "int4-g32-asym-f16")
    for words in (
        "tensor", "shape", "scheme", "SQNR dB", "max abs error", "bits/weight", "seconds",
        "16x32x3x3", "int4-g32-asym-f16", "int4-g32-asym-f16-ragged", "int4-g32-asym-f16-flat",
        "total: 5 tensors",
        "10 tensors stay as they are", "bits per weight", f"wrote {tmp_path / 'q'}",
    ):  # fmt: skip
        assert words in result.stdout, words
    assert qrs.load(tmp_path / "q")["layer.0.half.weight"].scheme == qrs.parse("int4-g32-asym-f16")
    # Fallbacks are told before anything runs, on stderr.
    assert "2 tensors do not fit the scheme as it is" in result.stderr
    assert "group_size=32 does not divide 100" in result.stderr


def test_options_reach_the_plan(tmp_path: Path) -> None:
    model = save_model(tmp_path / "m")
    options = ("--include", "*.half.*", "--include", "embed*", "--include", "*.mlp.*")
    more = ("--exclude", "*.mlp.*", "--embeddings", "int8", "--scheme", "int4-g32", "--json")
    document = json.loads(run("quantize", model, "-o", tmp_path / "q", *options, *more).stdout)
    schemes = {t["name"]: t["scheme"] for t in document["tensors"]}
    assert schemes == {"embed_tokens.weight": "int8-axis0", "layer.0.half.weight": "int4-g32"}


def test_a_solver_is_asked_and_named(tmp_path: Path) -> None:
    model, options = save_model(tmp_path / "m"), ("--scheme", "int4-g32", "--solver", "lsq")
    result = run("quantize", model, "-o", tmp_path / "q", *options)
    assert "solver: lsq" in result.stdout
    w, stored = small_model()["layer.0.attention.weight"], qrs.load(tmp_path / "q")
    assert stored["layer.0.attention.weight"] == qrs.quantize(w, "int4-g32", solver="lsq")
    document = json.loads(run("quantize", model, "--dry-run", *options, "--json").stdout)
    assert document["solver"] == "lsq"
    # What it does not fit is known before anything runs, and with it the tensor.
    result = run(
        "quantize", model, "-o", tmp_path / "x", *options[2:], "--scheme", "kmeans4", code=2
    )
    assert "tensor 'layer.0.double.weight': solver: got 'lsq' for kmeans4" in result.stderr
    result = run("quantize", tmp_path / "missing", "--dry-run", "--solver", "best", code=2)
    assert "solver: got 'best', expected one of: minmax, lsq" in result.stderr


def test_dry_run_prints_the_plan_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_model(tmp_path / "m")
    before = digests(tmp_path)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a dry run computes nothing")

    monkeypatch.setattr("qrs.api.quantize", refuse)
    out = run("quantize", model, "--dry-run", "--scheme", "int4-g32").stdout
    for words in (
        "layer.0.conv.weight", "an embedding", "a vector", "I64 values", "F8_E4M3 values",
        "2 tensors do not fit the scheme as it is", "flattened (32, 3, 3)", "stay as they are",
        "memory: at most", "3 x the largest tensor + 256 MiB",
    ):  # fmt: skip
        assert words in out, words
    document = json.loads(run("quantize", model, "--dry-run", "--json").stdout)
    assert document["memory_bound"] == 3 * small_model()["embed_tokens.weight"].nbytes + (256 << 20)
    assert digests(tmp_path) == before
    # With an output, what is wrong with it is known now.
    run("quantize", model, "--dry-run", "-o", tmp_path / "missing" / "q", code=1)


def test_dry_run_of_nothing_is_json(tmp_path: Path) -> None:
    qrs.save(tmp_path / "b.safetensors", {"bias": np.zeros(3, np.float32)})
    out = run("quantize", tmp_path / "b.safetensors", "--dry-run", "--json").stdout
    assert json.loads(out)["bits_per_weight"] is None


def test_dry_run_tells_what_the_reference_takes(tmp_path: Path) -> None:
    qrs.save(tmp_path / "m.safetensors", {"w": np.ones((4096, 4096), np.float32)})
    command = ("quantize", tmp_path / "m.safetensors", "--dry-run", "--scheme", "int8")
    assert "3 x the largest tensor + 256 MiB" in run(*command).stdout
    out = run(*command, "--backend", "reference").stdout
    assert "the reference backend copies whole tensors" in out


def test_dry_run_of_the_sizes_that_come(tmp_path: Path) -> None:
    model = save_sharded(tmp_path / "m")
    plan = json.loads(run("quantize", model, "--dry-run", "--json").stdout)
    report = json.loads(run("quantize", model, "-o", tmp_path / "q", "--json").stdout)
    assert plan["nbytes_after"] == report["total"]["nbytes_after"]
    inspected = json.loads(run("inspect", tmp_path / "q", "--json").stdout)
    assert inspected["nbytes"] == plan["nbytes_after"]


def test_inspect(tmp_path: Path) -> None:
    model = save_model(tmp_path / "m", author="a\x1b[2Jb")
    run("quantize", model, "-o", tmp_path / "q.safetensors")
    out = run("inspect", tmp_path / "q.safetensors").stdout
    assert re.search(r"layer\.0\.attention\.weight +F32 +64x64 +int8-axis0 +4\.4 kB +8\.5", out)
    assert re.search(r"counts +I64 +8x8 +- +512 B +64\.000", out)
    assert "15 tensors, 5 of them quantized" in out
    assert r"metadata author: a\x1b[2Jb" in out
    assert "metadata qrs" not in out


def test_dequantize(tmp_path: Path) -> None:
    model = save_model(tmp_path / "m")
    run("quantize", model, "-o", tmp_path / "q")
    out = run("dequantize", tmp_path / "q", "-o", tmp_path / "b").stdout
    assert "decoded 5 tensors to bfloat16, float16, float32, float64" in out
    run("dequantize", tmp_path / "q", "-o", tmp_path / "b", code=1)
    options = ("--dtype", "float32", "--overwrite", "--json")
    document = json.loads(run("dequantize", tmp_path / "q", "-o", tmp_path / "b", *options).stdout)
    assert set(document["decoded"].values()) == {"float32"}
    assert qrs.load(tmp_path / "b")["layer.0.mlp.weight"].dtype == np.float32


def test_dtypes_have_one_spelling(tmp_path: Path) -> None:
    model = save_model(tmp_path / "m")
    run("quantize", model, "-o", tmp_path / "q")
    planned = json.loads(run("quantize", model, "--dry-run", "--json").stdout)["tensors"]
    before, after = (
        {
            t["name"]: t["dtype"]
            for t in json.loads(run("inspect", place, "--json").stdout)["tensors"]
        }
        for place in (model, tmp_path / "q")
    )
    assert before == after == {t["name"]: t["dtype"] for t in planned}
    assert after["layer.0.mlp.weight"] == "BF16"


def test_what_overflows_names_the_option_that_helps(tmp_path: Path) -> None:
    w = normal((8, 8), np.float16)
    w[0, 0] = 65504  # a scale of 515.78 rounds up to 516, and 127 x 516 is infinite in float16
    qrs.save(tmp_path / "q.safetensors", {"w": qrs.quantize(w, "int8-f16")})
    command = ("dequantize", tmp_path / "q.safetensors", "-o", tmp_path / "b.safetensors")
    result = run(*command, code=1)
    assert result.stderr.startswith(
        "error: tensor 'w': dtype: the decoded value at (0, 0) overflow"
    )
    assert "--dtype float32" in result.stderr and result.stderr.count("\n") == 1
    run(*command, "--dtype", "float32")
    assert float(qrs.load(tmp_path / "b.safetensors")["w"][0, 0]) == 127 * 516


def test_backend_option_and_variable(tmp_path: Path) -> None:
    model = save_model(tmp_path / "m")
    run("quantize", model, "-o", tmp_path / "rust", "--backend", "rust")
    run("quantize", model, "-o", tmp_path / "reference", "--backend", "reference")
    run("quantize", model, "-o", tmp_path / "variable", env={"QRS_BACKEND": "reference"})
    assert digests(tmp_path / "rust") == digests(tmp_path / "reference")
    assert digests(tmp_path / "rust") == digests(tmp_path / "variable")
    result = run("quantize", model, "-o", tmp_path / "gpu", "--backend", "cupy", code=1)
    assert result.stderr.startswith("error: backend 'cupy'") and result.stderr.count("\n") == 1


def test_doctor_lists_backends_with_reasons_and_operations() -> None:
    out = run("doctor").stdout
    assert f"qrs {qrs.__version__}" in out
    assert f"SIMD level: {qrs.simd_level()}, available: baseline" in out
    assert f"threads: {qrs.num_threads()}" in out
    assert "backend rust: available" in out and "quantize_affine" in out and "problem" not in out
    document = json.loads(run("doctor", "--json").stdout)
    assert document["backends"] == backends.describe()
    for backend in document["backends"]:
        if not backend["available"]:
            assert f"backend {backend['name']}: missing: {backend['reason']}" in out
            assert f"to fix it: {backend['fix']}" in out


def test_doctor_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qrs._qrs", None)
    backends.get.cache_clear()
    try:
        out = run("doctor", code=1).stdout
    finally:
        backends.get.cache_clear()
    assert "backend rust: missing: the extension module does not load" in out
    assert "to fix it: pip install" in out
    assert "SIMD" not in out


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("QRS_SIMD", "bogus", "bogus"),
        ("QRS_SIMD", "avx9999", "avx9999"),
        ("QRS_NUM_THREADS", "abc", "abc"),
        ("QRS_NUM_THREADS", "0", "1 to 1024"),
        ("QRS_BACKEND", "x", "one of: reference, rust, cupy"),
        ("QRS_BACKEND", "cupy", "'cupy' is not available"),
        ("QRS_BACKEND", "\x1b[31m", r"\x1b[31m"),
    ],
)
def test_doctor_diagnoses_the_environment(
    tmp_path: Path, variable: str, value: str, words: str
) -> None:
    env = {**clean_environment(), variable: value}
    done = real("doctor", env=env)
    assert (done.returncode, done.stderr) == (1, "")
    problem, fix = done.stdout.splitlines()[-2:]
    assert problem.startswith("problem: ") and words in problem
    assert fix == f"  to fix it: unset {variable}"
    document = json.loads(real("doctor", "--json", env=env).stdout)
    assert [found["fix"] for found in document["problems"]] == [f"unset {variable}"]
    # Other commands fail by it in one line, and it is no fault of their command line.
    model = save_model(tmp_path / "m")
    done = real("quantize", model, "--dry-run", env=env)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "--help" not in done.stderr


def test_version_and_help() -> None:
    assert run("--version").stdout == f"qrs {qrs.__version__}\n"
    out = run("--help").stdout
    for command in ("quantize", "inspect", "dequantize", "doctor"):
        assert command in out
        assert "--json" in run(command, "--help", env={"COLUMNS": "200"}).stdout


def test_names_are_escaped(tmp_path: Path) -> None:
    name = "evil\x1b[31m\nname\u202e.weight"
    qrs.save(tmp_path / "m.safetensors", {name: normal((8, 8))})
    result = run("quantize", tmp_path / "m.safetensors", "-o", tmp_path / "q.safetensors")
    assert r"evil\x1b[31m\nname\u202e.weight" in result.stdout
    assert "\x1b" not in result.output
    w = normal((8, 8))
    w[1, 2] = np.nan
    qrs.save(tmp_path / "nan.safetensors", {name: w})
    result = run("quantize", tmp_path / "nan.safetensors", "-o", tmp_path / "x", code=1)
    assert r"error: tensor 'evil\x1b[31m\nname\u202e.weight': 1 non-finite value" in result.stderr
    assert result.stderr.count("\n") == 1
    assert escaped("\udcff") == r"\udcff"


def test_progress_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    lines = Lines("quantizing", 100_000_000, clock=lambda: now[0], file=sys.stdout)
    for second in range(1, 6):
        now[0] = float(second)
        lines("layer.weight", 20_000_000)
    assert capsys.readouterr().out.splitlines() == [
        "quantizing: 40 %, 40.0 of 100.0 MB, 20 MB/s, 3 s left",
        "quantizing: 80 %, 80.0 of 100.0 MB, 20 MB/s, 1 s left",
    ]


def test_json_is_all_of_stdout_and_stderr_is_silent(tmp_path: Path) -> None:
    model = save_model(tmp_path / "m")
    done = real("quantize", model, "-o", tmp_path / "q", "--scheme", "int4-g32", "--json")
    assert done.returncode == 0 and done.stderr == ""
    report = json.loads(done.stdout)
    assert report["output"] == str(tmp_path / "q")
    # What people read on stderr is in the document: which tensors do not fit the scheme, and why.
    fallbacks = {t["name"]: t["fallback"] for t in report["tensors"] if t["fallback"]}
    planned = json.loads(
        real("quantize", model, "--dry-run", "--scheme", "int4-g32", "--json").stdout
    )
    assert fallbacks == {t["name"]: t["fallback"] for t in planned["tensors"] if t["fallback"]}
    assert fallbacks["layer.0.mlp.weight"].startswith("group_size=32 does not divide 100")
    assert len(fallbacks) == 2


def test_an_ascii_terminal_gets_a_table_too(tmp_path: Path) -> None:
    qrs.save(tmp_path / "m.safetensors", {"gewicht.größe": normal((8, 8))})
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = real("inspect", tmp_path / "m.safetensors", env=env)
    assert done.returncode == 0, done.stderr
    assert r"gewicht.gr\xf6\xdfe" in done.stdout


def test_a_reader_that_leaves_is_no_traceback(tmp_path: Path) -> None:
    tensors = {f"layer.{i}.bias": np.zeros(1, np.float32) for i in range(5000)}
    qrs.save(tmp_path / "m.safetensors", tensors)
    command = [sys.executable, "-m", "qrs", "inspect", str(tmp_path / "m.safetensors"), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


COMMANDS = [("--version",), ("--help",), ("doctor",), ("doctor", "--json"), ("inspect", "MODEL"),
            ("quantize", "MODEL", "--dry-run")]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    ("redirection", "code", "stderr"),
    [
        (">/dev/full", 1, "error: cannot print: No space left on device\n"),
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        (">&- 2>&-", 0, ""),
        (">/dev/full 2>/dev/full", 1, ""),
    ],
)
def test_streams_that_take_nothing(
    tmp_path: Path, command: tuple[str, ...], redirection: str, code: int, stderr: str
) -> None:
    path = tmp_path / "m.safetensors"
    qrs.save(path, {"w": normal((8, 8))})
    words = [str(path) if word == "MODEL" else word for word in command]
    shell = ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-m", "qrs", *words]
    done = subprocess.run(shell, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, stderr)


def test_errors_without_stderr_do_not_go_to_stdout(tmp_path: Path) -> None:
    for stderr in ("2>&-", "2>/dev/full"):
        command = ["sh", "-c", f'exec "$@" {stderr}', "sh", sys.executable, "-m", "qrs", "inspect"]
        done = subprocess.run([*command, tmp_path], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (1, "")


IMPORTING = """
import sys
class Impatient:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Impatient())
from qrs.cli import main
main()
"""


def test_ctrl_c_while_the_command_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTING], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


INTERRUPTED = """
import os, signal
from qrs.checkpoint import stream
whole, seen = stream.quantize_tensor, []
def quantize_tensor(*args):
    seen.append(whole(*args))
    if len(seen) == 2:
        os.kill(os.getpid(), signal.SIGINT)
    return seen[-1]
stream.quantize_tensor = quantize_tensor
from qrs.cli import main
main()
"""


@pytest.mark.parametrize("output", ["q", "q.safetensors"])
def test_ctrl_c_leaves_nothing_behind(tmp_path: Path, output: str) -> None:
    model = save_model(tmp_path / "m")
    command = ["quantize", str(model), "-o", str(tmp_path / output)]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *command], capture_output=True, text=True
    )
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_both_entry_points_are_the_same_command() -> None:
    script = Path(sys.executable).with_name("qrs")
    outputs = {real("--version").stdout}
    if script.exists():
        outputs.add(subprocess.run([script, "--version"], capture_output=True, text=True).stdout)
    assert outputs == {f"qrs {qrs.__version__}\n"}
    assert isinstance(app.info.cls, type) and issubclass(app.info.cls, Group)
