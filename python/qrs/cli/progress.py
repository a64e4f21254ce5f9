"""How far a run is, on stderr: a bar on a terminal, now and then a plain line elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

LINE_SECONDS = 2.0
"""Plain lines come no faster than this."""

Step = Callable[[str, int], None]


@contextmanager
def progress(what: str, total: int, *, quiet: bool = False) -> Iterator[Step | None]:
    """A function to call with (tensor name, bytes done since the last call).

    `total` is in bytes. With `quiet` (for `--json`) only a terminal gets to see anything.
    """
    if sys.stderr.isatty():
        with _bar(what) as bar:
            task = bar.add_task(what, total=total)
            yield lambda name, done: bar.update(task, advance=done)
    elif quiet:
        yield None
    else:
        yield Lines(what, total)


def _bar(what: str) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)


class Lines:
    """Progress as plain lines: share, size, rate and time left.

    >>> ticks = iter([0.0, 1.0, 4.0])
    >>> lines = Lines("quantizing", 8_000_000, clock=lambda: next(ticks), file=sys.stdout)
    >>> lines("a", 1_000_000)
    >>> lines("b", 3_000_000)
    quantizing: 50 %, 4.0 of 8.0 MB, 1 MB/s, 4 s left
    """

    def __init__(
        self,
        what: str,
        total: int,
        clock: Callable[[], float] = time.monotonic,
        file: TextIO | None = None,
    ) -> None:
        self.what, self.total, self.clock = what, total, clock
        self.file = sys.stderr if file is None else file
        self.done = 0
        self.started = self.printed = clock()

    def __call__(self, name: str, done: int) -> None:
        """Count, and print a line if the last one is long ago."""
        self.done += done
        now = self.clock()
        if now - self.printed < LINE_SECONDS:
            return
        self.printed = now
        rate = self.done / (now - self.started)
        share = f"{100 * self.done / max(1, self.total):.0f} %"
        size = f"{self.done / 1e6:.1f} of {self.total / 1e6:.1f} MB"
        left = (self.total - self.done) / rate if rate else 0
        text = f"{self.what}: {share}, {size}, {rate / 1e6:.0f} MB/s, {left:.0f} s left"
        print(text, file=self.file, flush=True)
