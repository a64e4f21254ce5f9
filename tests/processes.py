"""Run Python code in a fresh interpreter, with an environment of its own."""

import os
import subprocess
import sys


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
