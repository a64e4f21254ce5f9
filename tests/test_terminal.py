"""What the commands show on a terminal, and how wide."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

from checkpoints import save_model


def on_a_terminal(arguments: list[str], env: dict[str, str]) -> str:
    """What a command writes where stdout and stderr are a terminal."""
    parent, child = pty.openpty()
    command = [sys.executable, "-m", "qrs", *arguments]
    base = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS")}
    process = subprocess.Popen(
        command, stdout=child, stderr=child, env={**base, "TERM": "xterm", **env}
    )
    os.close(child)
    data = b""
    while True:
        try:
            piece = os.read(parent, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not piece:
            break
        data += piece
    os.close(parent)
    assert process.wait() == 0, data
    return data.decode()


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
