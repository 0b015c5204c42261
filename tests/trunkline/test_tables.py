import io

import pytest
from rich.console import Console

from trunkline.tables import print_table

ID = "75091a76801b408888c7efb3b14d2fdc"
ROWS = [(ID, "a head of a long name", "a message that is long\nand of two lines [bold]"), ("b", 2, "")]


def test_a_program_reads_a_line_a_row_with_tabs_between() -> None:
    shown = io.StringIO()

    print_table(Console(file=shown, force_terminal=False), ("run", "head", "message"), ROWS)

    assert [
        "run\thead\tmessage",
        f"{ID}\ta head of a long name\ta message that is long and of two lines [bold]",
        "b\t2\t",
    ] == shown.getvalue().splitlines()


@pytest.mark.parametrize("width", [44, 80, 200])
def test_on_a_terminal_what_names_a_row_is_never_cut(width: int) -> None:
    shown = io.StringIO()

    print_table(Console(file=shown, force_terminal=True, width=width, color_system=None), ("run", "head", "message"), ROWS)

    assert ID in shown.getvalue()
    assert all(len(line) <= width for line in shown.getvalue().splitlines())


def test_markup_in_a_cell_is_text() -> None:
    shown = io.StringIO()

    print_table(Console(file=shown, force_terminal=True, width=200, color_system=None), ("run", "head", "message"), ROWS)

    assert "[bold]" in shown.getvalue()
