"""What `qrs inspect --tensor` prints, and where: a pipe, a terminal of any width, without UTF-8."""

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
from checkpoints import learned_tensors, normal
from processes import on_a_terminal
from qrs.checkpoint import Histogram
from qrs.cli.commands import app
from qrs.cli.histogram import AXIS, BLOCKS, MARK, histogram_lines


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A plain weight, and some that are quantized."""
    path = tmp_path / "m.safetensors"
    tensors = {"layer.weight": normal((64, 128)), "ids": np.arange(3)}
    qrs.save(
        path, tensors | {"nf4": qrs.quantize(normal((64, 128)), "nf4-g64-dq")} | learned_tensors()
    )
    return path


def inspect(*arguments: str | Path, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["inspect", *map(str, arguments)])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_a_plain_tensor(model: Path) -> None:
    out = inspect(model, "--tensor", "layer.weight").stdout
    assert "layer.weight in m.safetensors: F32 64x128" in out
    assert re.search(r"values: min -\d.*, max \d.*, mean .*, std \d.*, absmax .*; 0 zeros", out)
    assert "█" in out and MARK not in out and "codebook" not in out


def test_a_plain_tensor_with_a_scheme(model: Path) -> None:
    out = inspect(model, "--tensor", "layer.weight", "--scheme", "nf4-g64").stdout
    qt = qrs.quantize(normal((64, 128)), "nf4-g64")
    sqnr = qrs.metrics.sqnr_db(normal((64, 128)), qt.dequantize())
    for words in (
        "nf4-g64: 4.6 kB, 4.500 bits per weight", f"SQNR {sqnr:.2f} dB", "packed", "64x64",
        "codebook: 16 levels", "scales: 128, min ", "0 negative, 0 zero",
        "values / scale of their group, levels marked:",
    ):  # fmt: skip
        assert words in out, words
    share = 100 * float((qt.codes == 7).mean())
    assert re.search(rf"\n +7 +0 +{(qt.codes == 7).sum()} +{share:.2f} % *\n", out)
    assert out.count(MARK) == 16
    assert max(map(len, out.splitlines())) <= 120


def test_a_scheme_that_does_not_divide_says_so(model: Path) -> None:
    out = inspect(model, "--tensor", "layer.weight", "--scheme", "int4-g100-asym").stdout
    assert "int4-g100-asym-ragged: " in out
    assert "group_size=100 does not divide 128: the last group of a row has 28" in out
    assert "zero points: 128, min -8" in out or "zero points: 128, min -" in out


def test_tables_of_rows_and_outliers(model: Path) -> None:
    out = inspect(model, "--tensor", "kmeans2-axis0", "--row", "3").stdout
    assert "codebook: 20 tables of 4 levels; shown: values of row 3" in out
    assert "least" in out and "greatest" in out
    out = inspect(model, "--tensor", "kmeans3-sparse0.05").stdout
    assert "outliers: 60, 4.69 % of all values" in out


def test_json(model: Path) -> None:
    out = inspect(model, "--tensor", "layer.weight", "--scheme", "nf4-g64", "--json").stdout
    document = json.loads(out)
    qt = qrs.quantize(normal((64, 128)), "nf4-g64")
    assert document["scheme"] == "nf4-g64" and document["shape"] == [64, 128]
    assert document["codebook"]["levels"] == np.float32(qt.codebook).tolist()
    assert sum(document["codebook"]["counts"]) == 64 * 128
    histogram = document["histogram"]
    assert len(histogram["edges"]) == len(histogram["counts"]) + 1
    assert sum(histogram["counts"]) == 64 * 128
    assert document["sqnr_db"] > 15 and document["bits_per_weight"] == 4.5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--tensor", "layer.wieght"), "such as 'layer.weight'"),
        (("--tensor", "ids"), "'ids' has I64 values"),
        (("--tensor", "nf4", "--scheme", "int8"), "which is nf4-g64-dq already"),
        (("--tensor", "kmeans2-axis0", "--row", "20"), "0 to 19"),
        (("--tensor", "layer.weight", "--scheme", "int8-axis2"), "'layer.weight': axis: got 2"),
        (("--tensor", "layer.weight", "--scheme", "nf5"), "cannot read 'nf5'"),
        (("--tensor", "layer.weight", "--scheme", "nf4", "--solver", "x"), "minmax, lsq"),
        (("--tensor", "layer.weight", "--solver", "lsq"), "--solver needs --scheme"),
        (("--scheme", "nf4"), "--scheme needs --tensor"),
        (("--row", "1"), "--row needs --tensor"),
    ],
)
def test_wrong_command_lines(model: Path, arguments: tuple[str, ...], words: str) -> None:
    result = inspect(model, *arguments, code=2)
    assert result.stdout == "" and result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ") and words in result.stderr


def test_values_that_no_scheme_takes_are_an_error(tmp_path: Path) -> None:
    w = normal((8, 8))
    w[1, 2] = np.inf
    qrs.save(tmp_path / "m.safetensors", {"w": w})
    result = inspect(tmp_path / "m.safetensors", "--tensor", "w", "--scheme", "int8", code=1)
    assert result.stderr == "error: tensor 'w': 1 non-finite value, first inf at (1, 2)\n"
    assert "1 not finite" in inspect(tmp_path / "m.safetensors", "--tensor", "w").stdout


@pytest.mark.parametrize("width", [40, 80, 200])
def test_it_fits_a_terminal(model: Path, width: int) -> None:
    command = ["inspect", str(model), "--tensor", "nf4"]
    text = on_a_terminal(command, {"NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}, width)
    lines = [line.rstrip() for line in text.splitlines()]
    (axis,) = [line for line in lines if MARK in line]
    assert len(axis) == min(width - 1, 120) and set(axis) == {AXIS, MARK}
    pictures = [line for line in lines if line.strip(BLOCKS) == "" and line.strip()]
    assert pictures and max(map(len, pictures)) <= width


def test_without_utf8_it_is_ascii(model: Path) -> None:
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "qrs", "inspect", str(model), "--tensor", "nf4"]
    done = subprocess.run(command, capture_output=True, env=env)
    assert done.returncode == 0 and done.stdout.isascii()
    text = done.stdout.decode()
    assert "\\u" not in text and re.search(r"\n\^-+\^", text) and "#" in text


def test_a_name_is_escaped(tmp_path: Path) -> None:
    qrs.save(tmp_path / "m.safetensors", {"evil\x1b[31m": normal((2, 2))})
    out = inspect(tmp_path / "m.safetensors", "--tensor", "evil\x1b[31m").stdout
    assert r"evil\x1b[31m in" in out and "\x1b" not in out


def test_bars_grow_with_counts_and_what_is_there_is_seen() -> None:
    lines = histogram_lines(Histogram(0.0, 4.0, (64, 32, 1, 0)), [4.0, 9.0])
    assert lines[0] == "█   " and lines[4] == "██  " and lines[7] == "██▁ "
    assert lines[8] == "───▲" and lines[9].split() == ["0", "4"]
