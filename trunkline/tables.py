"""Tables, as a person sees them on a terminal and as a program reads them."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table


def print_table(out: Console, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """On a terminal a table, its first column, which names the rows, never cut; elsewhere a line a row, with tabs between."""
    cells = ([str(cell) for cell in row] for row in rows)
    if not out.is_terminal:
        for line in (columns, *cells):
            print("\t".join(" ".join(cell.split()) for cell in line), file=out.file)
        return
    table = Table(Column(columns[0], no_wrap=True), *columns[1:])
    for line in cells:
        table.add_row(*map(escape, line))
    out.print(table)
