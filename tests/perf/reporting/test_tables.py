import io

from rich.console import Console

from perf.reporting.tables import (
    Cell,
    Table,
    all_tables,
    answer_table,
    bound_table,
    heads_table,
    missing_table,
    plan_tables,
    ratio_table,
)
from perf.reporting.terminal import print_tables
from perf.results import Ratio, Results
from tests.perf.samples import CLOSED, HOSTILE, TITLES, results_of, run_of, void_run


def column(table: Table, words: str) -> list[str]:
    place = [cell.words for cell in table.columns].index(words)
    return [row[place].words for row in table.rows]


def printed(tables: list[Table], *, with_details: bool = False) -> str:
    out = io.StringIO()
    print_tables(tables, Console(file=out, width=250), with_details=with_details)
    return out.getvalue()


def test_every_row_has_a_cell_a_column() -> None:
    for table in all_tables(results_of()):
        assert {len(table.columns)} == {len(row) for row in table.rows}, table.caption


def test_the_ranked_stand_in_order_and_the_others_apart() -> None:
    first, second = plan_tables(results_of())[:2]

    assert "SHORT, 1 head, 32 in flight" == first.caption
    assert [TITLES["plan-one-engine"], TITLES["plan-four"], TITLES["plan-three"], TITLES["plan-one-torch"]] == column(
        first, "System"
    )
    assert "Not ranked: SHORT, 1 head, 32 in flight" == second.caption
    assert {TITLES["plan-two"], TITLES["other"]} == set(column(second, "System"))
    assert all(column(second, "Said of it"))


def test_the_first_look_is_the_main_load_and_single_texts_of_the_fewest_heads() -> None:
    open_ones = [table.caption for table in plan_tables(results_of()) if not table.detail]

    assert {"32 in flight", "one at a time"} == {caption.rpartition(", ")[2] for caption in open_ones}
    assert all("1 head," in caption for caption in open_ones)


def test_a_price_is_told_of_a_busy_machine_only() -> None:
    for table in plan_tables(results_of()):
        assert ("in flight" in table.caption) == any(words != "–" for words in column(table, "$ per million"))
    assert {"–"} == {words for table in plan_tables(results_of(price_per_hour=0.0)) for words in column(table, "$ per million")}


def test_a_void_run_is_words_and_dashes() -> None:
    [table] = plan_tables(results_of(runs=(void_run(),)))
    [row] = table.rows

    assert "VOID: the generator was late" == row[-1].words
    assert {"–"} == {cell.words for cell in row[1:-1]}


def test_errors_and_disturbed_rounds_are_said() -> None:
    [table] = plan_tables(results_of(runs=(run_of("plan-four", CLOSED, num_errors=7, is_disturbed=True),)))

    assert ["7 errors; 1 rounds beside other processes"] == column(table, "Said of it")


def test_servers_of_vectors_have_a_table_of_their_own() -> None:
    tables = plan_tables(results_of(runs=(run_of("plan-four", CLOSED), run_of("other", CLOSED, num_heads=0))))

    assert {"SHORT, vectors alone, 32 in flight", "SHORT, 1 head, 32 in flight"} == {table.caption for table in tables}
    assert [False] == [table.detail for table in tables if "1 head" in table.caption]


def test_servers_of_vectors_come_after_the_plans() -> None:
    captions = [
        table.caption
        for table in plan_tables(results_of(runs=(run_of("other", CLOSED, num_heads=0), run_of("plan-four", CLOSED))))
    ]

    assert ["1 head", "vectors alone"] == [
        next(words for words in ("1 head", "vectors alone") if words in each) for each in captions
    ]


def test_who_is_not_ranked_is_last_within_the_bound_and_said() -> None:
    table = bound_table(results_of())

    assert table is not None
    assert column(table, "System")[-1].endswith("(not ranked)")
    assert any("is not ranked" in note for note in table.notes)


def test_the_bound_is_told_no_finer_than_it_was_found() -> None:
    table = bound_table(results_of())

    assert table is not None
    assert {"390 (below 510)", "less than 31.0", "at least 110"} == set(column(table, "texts/s"))


def test_answers_tell_accuracy_agreement_and_rank() -> None:
    table = answer_table(results_of())

    assert table is not None
    assert "90.00 %" in column(table, "agreement")
    assert "84.0 %" in column(table, "accuracy")
    assert 1 == sum(words.startswith("no") for words in column(table, "Ranked"))


def test_a_ratio_has_its_spread_its_goal_and_whether_it_was_met() -> None:
    table = ratio_table(results_of())

    assert table is not None
    assert ["9.80×", "20.2×", "not measured"] == column(table, "ratio")
    assert ["9.60×", "19.5×", "–"] == column(table, "least")
    assert ["yes", "no", "–"] == column(table, "Met")


def test_a_difference_in_milliseconds_is_no_factor() -> None:
    more = Ratio(title="a", over="x", under="y", what="p50 at 1 in flight, milliseconds more", values=(0.8, 0.9))
    table = ratio_table(results_of(ratios=(more,)))

    assert table is not None
    assert ["0.850 ms"] == column(table, "ratio")


def test_growth_with_heads_is_told_by_system() -> None:
    table = heads_table(results_of())

    assert table is not None
    growth = dict(zip(column(table, "System"), column(table, "most / fewest"), strict=True))
    assert "1.32×" == growth[TITLES["plan-four"]]
    assert "32.3×" == growth[TITLES["plan-one-torch"]]


def test_what_is_missing_is_told_with_why_in_the_terminal_too() -> None:
    missing = missing_table(results_of())

    assert missing is not None
    assert "<b>no network</b>" in printed([missing])


def test_the_terminal_shows_words_as_they_are_and_leaves_out_empty_columns() -> None:
    table = Table("A [bold]caption", (Cell("a"), Cell("b"), Cell("c", "number")), ((Cell(HOSTILE), Cell("–"), Cell("1")),))
    said = printed([table, Table("hidden", (Cell("a"),), ((Cell("x"),),), detail=True)])

    assert HOSTILE in said
    assert "A [bold]caption" in said
    assert " b " not in said
    assert "hidden" not in said
    assert "More tables in the page: 1" in said
    assert "hidden" in printed([Table("hidden", (Cell("a"),), ((Cell("x"),),), detail=True)], with_details=True)


def test_nothing_measured_is_no_table(empty: Results) -> None:
    assert [] == all_tables(empty)
