"""Tables for the terminal."""

from typing import Final

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from perf.reporting.tables import Cell, Table, without_empty_columns

_STYLES: Final = {"": "", "number": "", "better": "green", "worse": "red", "marked": "yellow"}


def print_tables(tables: list[Table], console: Console, *, with_details: bool = False) -> None:
    """Each with its notes below; details only when they are asked for."""
    for table in map(without_empty_columns, tables):
        if with_details or not table.detail:
            # Not as the table's own title, which is folded to the width of the columns.
            console.print(Text(table.caption, style="bold"))
            console.print(rich_table(table))
            for note in table.notes:
                console.print(Text(f"  {note}", style="dim"))
            console.print()
    num_folded = sum(table.detail for table in tables)
    if num_folded and not with_details:
        console.print(Text(f"More tables in the page: {num_folded}.", style="dim"))


def rich_table(table: Table) -> RichTable:
    """As rich draws it; words are words, never markup."""
    drawn = RichTable(show_edge=False, pad_edge=False)
    for column in table.columns:
        drawn.add_column(Text(column.words), justify="right" if column.kind == "number" else "left", overflow="fold")
    for row in table.rows:
        drawn.add_row(*map(_text, row))
    return drawn


def _text(cell: Cell) -> Text:
    return Text(cell.words, style=_STYLES[cell.kind])
