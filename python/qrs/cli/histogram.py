"""A histogram as rows of characters: bars of blocks, and marks below them where levels are."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from ..checkpoint import Histogram

HEIGHT = 8
"""Of the bars, in rows."""
NARROWEST, WIDEST = 16, 120

BLOCKS, AXIS, MARK = " ▁▂▃▄▅▆▇█", "─", "▲"
ASCII_BLOCKS, ASCII_AXIS, ASCII_MARK = " .#", "-", "^"
"""Where the encoding has no blocks."""


def chart_width() -> int:
    """How many bins there is room for: of a terminal its width, elsewhere 80 columns."""
    console = Console()
    width = console.width if console.is_terminal else 80
    return max(NARROWEST, min(width - 1, WIDEST))


def histogram_lines(
    drawn: Histogram, marks: Sequence[float] = (), ascii_only: bool = False
) -> list[str]:
    """The bars, the axis with its marks, and numbers below its ends and its zero.

    >>> for line in histogram_lines(Histogram(-1.0, 3.0, (1, 4, 16, 0) * 4), [0.0, 3.0], True):
    ...     print(line.rstrip())
      #   #   #   #
      #   #   #   #
      #   #   #   #
      #   #   #   #
      #   #   #   #
      #   #   #   #
     ##  ##  ##  ##
    .## .## .## .##
    ----^----------^
    -1  0          3
    """
    blocks, axis, mark = BLOCKS, AXIS, MARK
    if ascii_only:
        blocks, axis, mark = ASCII_BLOCKS, ASCII_AXIS, ASCII_MARK
    steps, tallest = len(blocks) - 1, max(drawn.counts)
    # In steps of a row; what is there at all is seen.
    bars = [
        max(round(count * HEIGHT * steps / max(tallest, 1)), int(count > 0))
        for count in drawn.counts
    ]
    lines = [
        "".join(blocks[max(0, min(bar - row * steps, steps))] for bar in bars)
        for row in reversed(range(HEIGHT))
    ]
    places = {drawn.place(level) for level in marks}
    lines.append("".join(mark if place in places else axis for place in range(len(bars))))
    return [*lines, numbers_line(drawn)]


def numbers_line(drawn: Histogram) -> str:
    """What lies at both ends, and below zero a 0 where there is room."""
    width = len(drawn.counts)
    low, high = f"{drawn.low:.4g}", f"{drawn.high:.4g}"
    line = low + " " * max(1, width - len(low) - len(high)) + high
    zero = drawn.place(0.0)
    if zero is not None and line[max(0, zero - 1) : zero + 2].isspace():
        line = f"{line[:zero]}0{line[zero + 1 :]}"
    return line
