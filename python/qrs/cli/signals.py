"""Signals that ask a command to stop: it cleans up first, as after Ctrl-C.

Only `qrs.cli.main` installs handlers: a program that imports qrs keeps its own.
"""

from __future__ import annotations

import signal
import time
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = 1.0
"""Seconds in which more signals say the same: timeout(1) sends two, and terminals and people do."""


class Stopped(KeyboardInterrupt):
    """A signal came: to all code on the way out it is what Ctrl-C is."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number


def stop_on_signals() -> None:
    """Raise Stopped at SIGINT, SIGTERM and SIGHUP, but not at one that is ignored (nohup)."""
    last = -PATIENCE

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < PATIENCE:
            return  # what was begun is being cleaned up
        last = now
        raise Stopped(number)

    for each in STOPPING:
        if signal.getsignal(each) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(each, stop)


def ignore_signals() -> None:
    """Let none of them change the exit code any more: Python gives up its handlers as it ends."""
    for each in STOPPING:
        signal.signal(each, signal.SIG_IGN)


def exit_code(error: BaseException) -> int:
    """The exit code after a KeyboardInterrupt."""
    return error.code if isinstance(error, Stopped) else 130
