"""Tables that fit a terminal: columns are left out and names cut, rather than lines folded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from .escape import escaped

LEFT, RIGHT = "left", "right"

LEAST_NAME = 32
"""Columns that may be left out are, before names are cut to fewer characters than this."""
BARE_NAME = 8
"""Names are cut no further, whatever the terminal."""


Columns = Sequence[tuple["str | Text", str]]
"""Titles, and the side on which their cells are aligned."""


@dataclass(frozen=True)
class Table:
    """Rows of cells under columns, of which the first holds names."""

    columns: Columns
    rows: Sequence[Sequence[Text]]
    total: Sequence[Text] = ()

    def width(self) -> int:
        """What a terminal needs to show it as it is."""
        # One row that is as wide as all of them: measuring thousands would take a while.
        lines = filter(None, (self.total, *self.rows))
        widest = [max(cell.cell_len for cell in column) for column in zip(*lines, strict=True)]
        table = Table(self.columns, [[Text("x" * width) for width in widest]]).as_rich()
        console = Console(width=1 << 20)
        return max(1, Measurement.get(console, console.options, table).maximum)

    def names_width(self) -> int:
        """What the longest of the names needs."""
        return max((line[0].cell_len for line in (self.total, *self.rows) if line), default=0)

    def without(self, titles: Sequence[str]) -> Table:
        """The table but for some columns."""
        kept = [i for i, (title, _) in enumerate(self.columns) if str(title) not in titles]

        def of(line: Sequence[Text]) -> list[Text]:
            return [line[i] for i in kept] if line else []

        columns = [self.columns[i] for i in kept]
        return Table(columns, [of(row) for row in self.rows], of(self.total))

    def cut(self, width: int, dots: str) -> Table:
        """The table with all names cut to this width."""

        def of(line: Sequence[Text]) -> list[Text]:
            return [Text(cut(line[0].plain, width, dots)), *line[1:]] if line else []

        return replace(self, rows=[of(row) for row in self.rows], total=of(self.total))

    def as_rich(self) -> RichTable:
        """What rich prints."""
        table = RichTable(box=box.SIMPLE_HEAD, show_footer=bool(self.total), pad_edge=False)
        for number, (title, side) in enumerate(self.columns):
            table.add_column(
                title,
                self.total[number] if self.total else "",
                justify="right" if side == RIGHT else "left",
                no_wrap=True,
                overflow="fold",
            )
        for row in self.rows:
            table.add_row(*row)
        return table


def show_table(
    columns: Columns,
    rows: Iterable[Sequence[str | Text]],
    total: Sequence[str] = (),
    optional: Sequence[str] = (),
    whole: bool = False,
) -> list[str]:
    """Print a table, one line a row; returns the titles of the columns that were left out.

    Away from a terminal it is as wide as it needs. On one, the columns of `optional`, the most
    important first, are shown as far as they leave room for names; these are cut in the middle. A
    table that is shown `whole` is as wide as it needs there too, and the terminal wraps its lines.
    """
    cells = [[Text(escaped(c)) if isinstance(c, str) else c for c in row] for row in rows]
    table = Table(columns, cells, [Text(each) for each in total])
    console = Console()
    if whole or not console.is_terminal:
        Console(width=table.width()).print(table.as_rich(), no_wrap=True, overflow="ignore")
        return []
    longest = table.names_width()

    def room(left_out: Sequence[str]) -> int:
        """For names, beside all else."""
        return longest - (table.without(left_out).width() - console.width)

    left_out = [] if room([]) >= longest else list(optional)
    for title in optional:
        fewer = [each for each in left_out if each != title]
        if room(fewer) >= min(longest, LEAST_NAME):
            left_out = fewer
    dots = "..." if console.options.ascii_only else "…"
    shown = table.without(left_out).cut(max(room(left_out), BARE_NAME), dots)
    console.print(shown.as_rich())
    return left_out


def cut(text: str, width: int, dots: str = "…") -> str:
    """The text without its middle, where it is wider than this on a terminal.

    >>> cut("model.layers.10.self_attn.q_proj.weight", 32)
    'model.layers.10.…n.q_proj.weight'
    """
    if cell_len(text) <= width:
        return text
    tail = (width - len(dots)) // 2
    head = width - len(dots) - tail
    return set_cell_size(text, head) + dots + set_cell_size(text[::-1], tail)[::-1]
