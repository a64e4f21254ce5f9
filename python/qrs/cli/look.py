"""What `qrs inspect --tensor` prints: one tensor from inside."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from ..checkpoint import CodebookUse, Look, Spread, Statistics
from .escape import escaped
from .histogram import histogram_lines
from .show import shape, show_left_out, size
from .table import LEFT, RIGHT, show_table


def show_look(look: Look) -> None:
    """Its parts, the numbers of its values and scales, the codebook, the histogram."""
    print(f"{escaped(look.name)} in {escaped(look.file)}: {look.dtype} {shape(look.shape)}")
    if look.scheme is not None:
        show_scheme(look)
    print(f"values: {values_line(look.values)}")
    if look.scale is not None:
        print(f"scales: {spread_line(look.scale)}")
    if look.zero_point is not None:
        print(f"zero points: {spread_line(look.zero_point)}")
    if look.outliers is not None:
        share = 100 * look.outliers / max(1, look.values.count)
        print(f"outliers: {look.outliers}, {share:.2f} % of all values")
    if look.codebook is not None:
        show_codebook(look.codebook, look.drawn)
    show_histogram(look)


def show_scheme(look: Look) -> None:
    """How it is stored, or would be, and what it costs."""
    bits = "" if look.bits_per_weight is None else f", {look.bits_per_weight:.3f} bits per weight"
    print(f"{look.scheme}: {size(look.nbytes)}{bits}")
    if look.errors is not None:
        errors = look.errors
        print(f"SQNR {errors.sqnr_db:.2f} dB, max abs error {errors.max_abs_error:.3g}")
    if look.fallback:
        print(look.fallback)
    columns = (("part", LEFT), ("dtype", LEFT), ("shape", LEFT), ("size", RIGHT))
    rows = [(part.name, part.dtype, shape(part.shape), size(part.nbytes)) for part in look.parts]
    show_left_out(show_table(columns, rows, optional=["size", "shape", "dtype"]))


def values_line(values: Statistics) -> str:
    """Statistics as one line."""
    counts = f"{values.zeros} zeros, {values.nonfinite} not finite"
    if not values.count:
        return counts
    numbers = ", ".join(f"{name} {value:.6g}" for name, value in values.numbers().items())
    return f"{numbers}; {counts}"


def spread_line(spread: Spread) -> str:
    """Scales or zero points as one line."""
    numbers = f"min {spread.min:.6g}, median {spread.median:.6g}, max {spread.max:.6g}"
    return f"{spread.count}, {numbers}; {spread.negative} negative, {spread.zero} zero"


def show_codebook(book: CodebookUse, drawn: str) -> None:
    """Levels by code, and how many values have each; of several tables the one that is drawn."""
    several = book.tables > 1
    of = f"{book.tables} tables of {len(book.levels)} levels; shown: {drawn}"
    print(f"codebook: {of if several else f'{len(book.levels)} levels'}")
    columns = [("code", RIGHT), ("level", RIGHT), ("count", RIGHT), ("share", RIGHT)]
    columns += [("least", RIGHT), ("greatest", RIGHT)] if several else []
    total = max(1, int(book.counts.sum()))
    rows = []
    for code, (level, count) in enumerate(zip(book.levels, book.counts, strict=True)):
        row = [str(code), f"{level:.6g}", str(count), f"{100 * count / total:.2f} %"]
        row += [f"{book.low[code]:.6g}", f"{book.high[code]:.6g}"] if several else []
        rows.append(row)
    show_left_out(show_table(columns, rows, optional=["greatest", "least", "share", "count"]))


def show_histogram(look: Look) -> None:
    """The picture, what it is of, and what lies outside of it."""
    drawn = look.histogram
    if drawn is None:
        return
    console = Console()
    print(f"{look.drawn}{', levels marked' if look.marks else ''}:\n")
    lines = histogram_lines(drawn, look.marks, console.options.ascii_only)
    for number, line in enumerate(lines):
        style = "green" if look.marks and number == len(lines) - 2 else ""
        console.print(Text(line.rstrip(), style), soft_wrap=True)
    beyond = [
        f"{count} {what}"
        for count, what in (
            (drawn.below, f"values below {drawn.low:.4g}"),
            (drawn.above, f"values above {drawn.high:.4g}"),
            (sum(drawn.place(mark) is None for mark in look.marks), "levels outside"),
        )
        if count
    ]
    if beyond:
        print(f"\nnot shown: {', '.join(beyond)}")
