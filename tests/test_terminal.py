"""What the commands show on a terminal, and how wide."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len

import qrs
from checkpoints import normal, save_model
from processes import on_a_terminal
from qrs.cli.table import LEAST_NAME, cut


def test_a_terminal_gets_a_bar_with_rate_and_time_left_and_no_color_is_respected(
    tmp_path: Path,
) -> None:
    model = save_model(tmp_path / "m")
    color = re.compile(r"\x1b\[[0-9;]*3[0-9][0-9;]*m")
    out = on_a_terminal(["quantize", str(model), "-o", str(tmp_path / "a")], {})
    assert "quantizing" in out and "100%" in out and re.search(r"[kM]?B/s", out)
    assert re.search(r"\d+:\d\d", out)
    assert color.search(out)
    out = on_a_terminal(["quantize", str(model), "-o", str(tmp_path / "b")], {"NO_COLOR": "1"})
    assert "quantizing" in out and not color.search(out)


def deep_model(path: Path) -> list[str]:
    """A file of tensors with long names; the names."""
    tensors = {}
    for layer in range(9, 12):
        name = f"model.layers.{layer}.self_attention.query_projection.weight"
        tensors[name] = normal((24, 96))
        tensors[name.replace("weight", "bias")] = normal((24,))
    tensors["model.embed_tokens.weight"] = normal((50, 64))
    qrs.save(path, tensors)
    return list(tensors)


def table_lines(text: str, titles: bool = False) -> list[str]:
    """The lines of the table without colours: its body, or its titles."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    lines = [line.strip() for line in text.splitlines()]
    rule = next(i for i, line in enumerate(lines) if "───" in line or "---" in line)
    body = lines[rule + 1 :]
    if titles:
        return lines[rule - 1].split()
    return body[: body.index("")]


@pytest.mark.parametrize("width", [40, 80, 100])
@pytest.mark.parametrize("command", ["plan", "report", "inspect"])
def test_a_tensor_is_one_readable_line(tmp_path: Path, command: str, width: int) -> None:
    names = deep_model(tmp_path / "m.safetensors")
    model, output = str(tmp_path / "m.safetensors"), str(tmp_path / "q.safetensors")
    arguments = {
        "plan": ["quantize", model, "--dry-run", "--scheme", "int4-g64-asym-f16"],
        "report": ["quantize", model, "-o", output, "--scheme", "int4-g64-asym-f16"],
        "inspect": ["inspect", model],
    }[command]
    text = on_a_terminal(arguments, {"NO_COLOR": "1"}, width)
    lines = table_lines(text)
    expected = [name for name in names if "query_projection.weight" in name]
    expected = sorted(expected if command == "report" else names)
    assert len(lines) == len(expected)
    assert max(map(len, lines)) <= width
    for line, name in zip(lines, expected, strict=True):
        shown = line.split()[0]
        assert shown == name or len(shown) >= LEAST_NAME, "not cut to nothing"
        head, _, tail = shown.partition("…")
        assert name.startswith(head) and name.endswith(tail)
    # The layers can be told from one another.
    assert len({line.split()[0] for line in lines}) == len(lines)
    left_out = re.search(r"no room for: ([a-zA-Z /,]+) \(", text)
    assert left_out is not None or width > 80
    if command == "plan":
        assert "quantized: 3 x a 2-D float weight" in text
        assert "kept: 3 x a vector, 1 x an embedding" in text


def test_a_wide_terminal_shows_all(tmp_path: Path) -> None:
    names = deep_model(tmp_path / "m.safetensors")
    command = ["quantize", str(tmp_path / "m.safetensors"), "--dry-run"]
    text = on_a_terminal(command, {"NO_COLOR": "1"}, 160)
    assert all(f" {name} " in text for name in names)
    titles = ["tensor", "dtype", "shape", "scheme", "before", "after", "why"]
    assert table_lines(text, titles=True) == titles
    assert "no room for" not in text


def test_a_pipe_gets_all_whatever_the_terminal(tmp_path: Path) -> None:
    names = deep_model(tmp_path / "m.safetensors")
    command = ["quantize", tmp_path / "m.safetensors", "--dry-run"]
    env = {**os.environ, "COLUMNS": "40"}
    done = subprocess.run(
        [sys.executable, "-m", "qrs", *command], capture_output=True, text=True, env=env
    )
    assert all(f" {name} " in done.stdout for name in names)
    assert "a 2-D float weight" in done.stdout and "no room for" not in done.stdout


def test_names_are_cut_by_what_they_take_on_a_terminal() -> None:
    assert cut("abcdefghij", 10) == "abcdefghij"
    assert cut("abcdefghij", 9) == "abcd…ghij"
    assert cut("abcdefghij", 8, "...") == "abc...ij"
    for width in range(5, 12):  # two cells a character
        assert cell_len(cut("漢字漢字漢字", width)) == width


def test_an_ascii_terminal_has_ascii_dots(tmp_path: Path) -> None:
    qrs.save(tmp_path / "m.safetensors", {"w" * 200: np.zeros(3, np.float32)})
    env = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "NO_COLOR": "1"}
    text = on_a_terminal(["inspect", str(tmp_path / "m.safetensors")], env, 80)
    assert "www...www" in text and "u2026" not in text
