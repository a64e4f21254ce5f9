"""Row J06 of the table of bad inputs: signals to a running command, with real processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import qrs
from checkpoints import digests, save_model
from processes import clean_environment

SLOW = """
import time
from qrs.checkpoint import decode, stream
{prepare}
def slow(function):
    def waiting(*args):
        result = function(*args)
        print("one is done", flush=True)
        time.sleep(600)
        return result
    return waiting
stream.quantize_tensor = slow(stream.quantize_tensor)
decode.decode_tensor = slow(decode.decode_tensor)
from qrs.cli import main
main()
"""


def started(*arguments: str | Path, prepare: str = "") -> subprocess.Popen[str]:
    """A command that waits after the first tensor, with its outputs half written."""
    command = [sys.executable, "-c", SLOW.format(prepare=prepare), *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(
        command,
        text=True,
        env=clean_environment(),
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # nohup ignores it
        **pipes,
    )
    assert process.stdout is not None and process.stdout.readline() == "one is done\n"
    return process


def stopped(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit code and what it printed."""
    try:
        out, err = process.communicate(timeout=300)  # less than it would sleep
    finally:
        process.kill()
    return process.returncode, out + err


@pytest.mark.parametrize("name", ["q", "q.safetensors"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("times", [1, 2])
def test_J06_signals_leave_nothing_behind(
    tmp_path: Path, model: Path, number: int, name: str, times: int
) -> None:
    process = started("quantize", model, "-o", tmp_path / name)
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".tmp")]
    for _ in range(times):  # twice as timeout(1) does, and people at the keyboard
        process.send_signal(number)
        time.sleep(0.05 * (times - 1))
    assert stopped(process) == (128 + number, "")
    assert os.listdir(tmp_path) == ["m"]


def test_J06_what_was_there_stays(tmp_path: Path, model: Path) -> None:
    save_model(tmp_path / "q")
    before = digests(tmp_path)
    process = started("quantize", model, "-o", tmp_path / "q", "--overwrite", "--json")
    process.terminate()
    assert stopped(process) == (143, "")
    assert digests(tmp_path) == before


def test_J06_dequantize(tmp_path: Path) -> None:
    qrs.save(tmp_path / "q.safetensors", {"w": qrs.quantize([[1.0, 2.0]], "int8")})
    process = started("dequantize", tmp_path / "q.safetensors", "-o", tmp_path / "b.safetensors")
    process.terminate()
    assert stopped(process) == (143, "")
    assert os.listdir(tmp_path) == ["q.safetensors"]


def test_J06_a_signal_that_is_ignored_stays_ignored(tmp_path: Path, model: Path) -> None:
    ignored = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"  # what nohup does
    process = started("quantize", model, "-o", tmp_path / "q", prepare=ignored)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert process.poll() is None
    process.terminate()
    assert stopped(process) == (143, "")


def test_J06_the_library_leaves_signals_alone() -> None:
    code = (
        "import signal, sys; numbers = signal.SIGINT, signal.SIGTERM, signal.SIGHUP\n"
        "before = [signal.getsignal(n) for n in numbers]\n"
        "import qrs, qrs.checkpoint, qrs.cli.commands\n"
        "assert before == [signal.getsignal(n) for n in numbers]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_J06_a_signal_while_the_arguments_are_read() -> None:
    code = (
        "import os, signal, sys\n"
        "from qrs.cli import commands, main\n"
        "def stop(*_): os.kill(os.getpid(), signal.SIGTERM)\n"
        "commands.Group.parse_args = stop\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (143, "", "")
