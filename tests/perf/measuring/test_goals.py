from collections.abc import Mapping

import pytest

from perf.measuring.goals import Pair, Roles, goals_of, ratio, server_cpu_ms, throughput
from perf.results import Load, Run

ROLES = Roles("four", "torch", "engine", ("torch", "engine"))


def run_of(
    system: str,
    number: int = 0,
    *,
    in_flight: int = 32,
    num_heads: int = 1,
    rate: float = 100.0,
    p50: float = 10.0,
    cpu: Mapping[str, float] | None = None,
    void: str = "",
) -> Run:
    return Run(
        system=system,
        num_heads=num_heads,
        workload="short",
        load=Load(kind="closed", in_flight=in_flight),
        round=number,
        seconds=1.0,
        throughput=rate,
        num_texts=int(rate),
        latency_ms={"p50": p50},
        cpu_ms_per_text=dict(cpu or {"server": 1.0, "load": 5.0}),
        void=void,
    )


PAIR = Pair("title", "four", "torch", "texts a second", "short", 32)


def test_rounds_are_paired_by_their_number_and_void_ones_left_out() -> None:
    runs = [
        run_of("torch", 1, rate=50),
        run_of("four", 0, rate=900),
        run_of("four", 1, rate=500),
        run_of("torch", 0, rate=100),
        run_of("four", 2, rate=100),
        run_of("four", 3, rate=100, void="late"),
        run_of("torch", 3),
        run_of("torch", 0, in_flight=1, rate=7),
        run_of("torch", 0, num_heads=8, rate=7),
    ]
    found = ratio(runs, PAIR, throughput, least=9.5)

    assert found is not None
    assert found.values == pytest.approx((9, 10))
    assert found.is_met


def test_a_ratio_of_nothing_is_none() -> None:
    assert ratio([run_of("four")], PAIR, throughput) is None
    assert ratio([run_of("four", rate=0), run_of("torch")], PAIR, throughput) is None


@pytest.mark.parametrize(("least", "is_met"), [(1.0, True), (1.01, False), (None, None)])
def test_a_goal_is_met_or_not_or_there_is_none(least: float | None, is_met: bool | None) -> None:
    found = ratio([run_of("four"), run_of("torch")], PAIR, throughput, least=least)

    assert found is not None
    assert found.is_met is is_met


def test_the_callers_cpu_counts_only_where_it_is_all_there_is() -> None:
    assert server_cpu_ms(run_of("four", cpu={"gateway": 1.0, "heads": 2.0, "load": 9.0})) == 3
    assert server_cpu_ms(run_of("four", cpu={"load": 9.0})) == 9


def test_the_three_goals_are_judged() -> None:
    runs = [
        run_of("four", rate=810),
        run_of("torch", rate=100),
        run_of("four", in_flight=1, p50=6.0),
        run_of("engine", in_flight=1, p50=4.6),
        *(run_of("four", num_heads=count, in_flight=8, cpu={"gateway": 1.0}) for count in (2, 8, 32)),
        *(run_of("torch", num_heads=count, in_flight=8, cpu={"web": count * 2.0}) for count in (2, 8, 32)),
        *(run_of("engine", num_heads=count, in_flight=8, cpu={"web": count * 0.8}) for count in (2, 8, 32)),
    ]
    found, missing = goals_of(runs, ROLES, {1: 8, 2: 8, 8: 8, 32: 8}, "short", 32)

    assert not missing
    assert [
        ("texts a second", "torch", (8.1,), True),
        ("p50 at 1 in flight, milliseconds more", "engine", (1.4,), True),
        ("CPU time a text", "four", (4.0,), None),
        ("CPU time a text", "four", (1.6,), None),
        ("CPU time a text", "four", (16.0,), True),
        ("CPU time a text", "four", (6.4,), False),
        ("CPU time a text", "four", (64.0,), True),
        ("CPU time a text", "four", (25.6,), True),
    ] == [(one.what, one.under, tuple(round(value, 6) for value in one.values), one.is_met) for one in found]


def test_what_cannot_be_said_is_missing_with_its_reason() -> None:
    runs = [run_of("four"), run_of("torch")]
    found, missing = goals_of(runs, ROLES, {1: 8}, "short", 32, unranked={"torch"})

    assert not found
    assert ["the answers of torch are others", "there is no round of both that counts"] == [one.why for one in missing]
