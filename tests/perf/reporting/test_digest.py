import pytest

from perf.reporting.digest import (
    Measured,
    dollars_per_million,
    line_of,
    lines_of,
    main_load,
    measured,
    number,
    ranked,
    scaling,
    share,
    standing_of,
    with_spread,
)
from perf.reporting.verdicts import factors, headline, summary
from perf.reporting.waterfall import placed
from perf.results import Results, Stage
from tests.perf.samples import CLOSED, ONE, POISSON, TITLES, answers_of, results_of, run_of, void_run, without


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0"), (1234.5, "1,234"), (123.4, "123"), (12.34, "12.3"), (1.234, "1.23"), (0.1234, "0.123"), (0.00001, "0.000")],
)
def test_numbers_have_three_leading_digits(value: float, words: str) -> None:
    assert words == number(value)


def test_a_share_is_whole_only_when_it_is() -> None:
    assert "100 %" == share(1.0)
    assert "99.99 %" == share(0.99999)
    assert "99.80 %" == share(0.998)


def test_rounds_are_told_by_their_median_and_one_round_has_no_spread() -> None:
    assert Measured(2.0, 1.0, 9.0, 3) == measured([9.0, 1.0, 2.0])
    assert "2.00 (1.00 to 9.00)" == with_spread(measured([9.0, 1.0, 2.0]))
    assert "2.00 ms" == with_spread(measured([2.0]), " ms")
    assert "–" == with_spread(measured([]))


def test_void_rounds_give_no_number() -> None:
    both = line_of([void_run(), run_of("plan-four", POISSON)])
    alone = line_of([void_run()])

    assert 1 == both.num_void
    assert both.latency_ms["p99"].most < 777
    assert (None, {}, "the generator was late") == (alone.throughput, alone.latency_ms, alone.why_void)


def test_the_callers_cpu_time_is_no_systems_unless_it_is_all_there_is() -> None:
    assert 3.0 == run_of("plan-four", CLOSED, cpu_ms_per_text={"a": 1.0, "b": 2.0, "load": 9.0}).cpu_ms
    assert 9.0 == run_of("plan-four", CLOSED, cpu_ms_per_text={"load": 9.0}).cpu_ms
    assert run_of("plan-four", CLOSED, cpu_ms_per_text={}).cpu_ms is None


def test_who_differs_or_was_not_compared_is_not_ranked() -> None:
    results = results_of()

    assert standing_of(results, "plan-four").is_ranked
    assert "150 of 1,500" in standing_of(results, "plan-two").why
    assert "not compared" in standing_of(results, "other").why
    yes, no = ranked(results, [each for each in lines_of(results) if each.load == CLOSED and each.workload == "short"])
    assert {"plan-two", "other"} == {each.system for each in no}
    assert "plan-one-engine" == yes[0].system


def test_a_difference_with_many_heads_counts_for_all() -> None:
    results = results_of(answers=(answers_of("plan-four"), answers_of("plan-four", 8, num_differences=1_000)))

    assert not standing_of(results, "plan-four").is_ranked


def test_a_server_of_vectors_needs_no_labels() -> None:
    vectors = line_of([run_of("other", CLOSED, num_heads=0)])

    assert ([vectors], []) == ranked(results_of(), [vectors])


def test_the_main_load_is_what_most_ran_then_what_is_nearest_to_the_reference() -> None:
    assert CLOSED == main_load(lines_of(results_of()))
    assert main_load([line_of([run_of("plan-four", ONE)])]) is None


def test_a_million_texts_cost_what_the_machine_costs_meanwhile() -> None:
    assert 1.0 == pytest.approx(dollars_per_million(1e6 / 3600, 1.0))


def test_scaling_takes_systems_with_several_numbers_of_heads() -> None:
    workload, load, found = scaling(results_of())

    assert ("short", CLOSED) == (workload, load)
    assert "other" not in found
    assert [1, 2, 8, 32] == [each.num_heads for each in found["plan-four"]]


def test_the_headline_is_plan_four_with_its_factors() -> None:
    found = headline(results_of())

    assert found is not None
    assert TITLES["plan-four"] == found.title
    assert dict(found.factors)[TITLES["plan-one-torch"]] == pytest.approx(470 / 48)
    assert all("Plan two" not in title for title, _ in found.factors)
    assert factors(without(results_of(), "plan-four"), "short") == []


def test_the_summary_says_who_is_not_ranked_and_what_is_missing() -> None:
    told = " ".join(summary(results_of()))

    assert "9.79× Plan one, FastAPI and torch" in told
    assert "Not ranked, because the answers differ: Plan two" in told
    assert "not measured, for the reasons below: infinity" in told
    assert "Void runs, left out: 1 of" in told


def test_nothing_measured_is_said_in_no_sentence(empty: Results) -> None:
    assert [] == summary(empty)
    assert headline(empty) is None


def test_stages_stand_after_one_another_inside_the_one_around_them() -> None:
    stages = [
        Stage(name="all", ms=5.0),
        Stage(name="a", ms=2.0, inside="all"),
        Stage(name="b", ms=1.0, inside="all"),
        Stage(name="c", ms=0.5, inside="b"),
        Stage(name="lost", ms=1.0, inside="nowhere"),
    ]

    assert [("all", 0.0, 0), ("a", 0.0, 1), ("b", 2.0, 1), ("c", 2.0, 2)] == [
        (each.stage.name, each.start, each.depth) for each in placed(stages)
    ]
