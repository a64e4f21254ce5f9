"""Run Python code in a fresh interpreter, and qrs on a terminal; with an environment of its own."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager


def run(code: str, *arguments: str, timeout: float = 600, **environment: str) -> str:
    """What `code` prints; an assertion shows how it failed. A signal fails it too."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        env={**clean_environment(), **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def clean_environment() -> dict[str, str]:
    """This environment without the variables of qrs."""
    return {name: value for name, value in os.environ.items() if not name.startswith("QRS_")}


def on_a_terminal(arguments: list[str], env: dict[str, str], width: int = 0) -> str:
    """What a command writes where stdout and stderr are a terminal, of no known width if 0."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("4H", 24, width, 0, 0))
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


@contextmanager
def unprivileged() -> Iterator[None]:
    """As an ordinary user: root may write anywhere."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
