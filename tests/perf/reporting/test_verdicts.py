from typing import Any

import msgspec
import pytest

from perf.reporting.verdicts import compared, losses, no_losses
from perf.results import Bound, Load, Missing, Ratio, Results, Run, Wire
from tests.perf.samples import CLOSED, TITLES, answers_of, results_of, run_of, void_run, without

BULK = Load(kind="closed", in_flight=4, texts_a_request=32)
POISSON_30 = Load(kind="poisson", rate=30.0, share="common")
QUIET: dict[str, Any] = dict.fromkeys(("bounds", "footprints", "wire", "ratios", "missing", "waterfall"), ())


def two_of(*runs: Run, **changes: Any) -> Results:
    """Plan four and plan one, both ranked; what is not in *changes* was not measured."""
    answers = (answers_of("plan-four"), answers_of("plan-one-torch"))
    return results_of(**QUIET | {"runs": runs, "answers": answers} | changes)


def ratio_of(what: str, *values: float, over: str = "plan-four", under: str = "other", is_met: bool | None = None) -> Ratio:
    return Ratio(title="Beside", over=over, under=under, what=what, values=values, is_met=is_met)


def ahead(results: Results) -> list[str]:
    return [words for words in losses(results) if "is ahead" in words]


def test_where_we_lose_is_told_and_so_is_a_goal_that_was_missed() -> None:
    told = losses(results_of())

    assert any(words.startswith("Goal not met: 32 heads") and "at least 24×" in words for words in told)
    [engine] = [words for words in told if words.startswith(f"{TITLES['plan-one-engine']} is ahead: ")]
    assert engine.endswith("more.")
    assert engine.count("against our") == 4
    assert not any(TITLES["plan-two"] in words for words in told)
    assert [] == ahead(without(results_of(), "plan-one-engine", "plan-three", "plan-one-torch"))


def test_the_largest_factors_stand_first() -> None:
    [words] = ahead(
        two_of(
            run_of("plan-four", CLOSED, throughput=10.0, latency_ms={}, cpu_ms_per_text={"server": 1.0}),
            run_of("plan-one-torch", CLOSED, throughput=30.0, latency_ms={}, cpu_ms_per_text={"server": 0.2}),
        )
    )

    assert words.index("CPU per text 0.200 ms against our 1.00 ms (5.00×)") < words.index("texts a second 30.0")


@pytest.mark.parametrize(
    ("load", "heads", "where", "what"),
    [
        (Load(kind="closed", in_flight=2), 1, "SHORT, 1 head, 2 in flight", "texts a second"),
        (BULK, 1, "4 in flight, 32 texts a request", "texts a second"),
        (CLOSED, 32, "SHORT, 32 heads", "CPU per text"),
        (POISSON_30, 1, "30/s, Poisson", "p99"),
        (Load(kind="sequential"), 1, "one at a time", "p50"),
    ],
)
def test_every_load_that_both_ran_is_looked_at(load: Load, heads: int, where: str, what: str) -> None:
    mine = run_of("plan-four", load, num_heads=heads, throughput=10.0, cpu_ms_per_text={"server": 9_999.0})
    slow = {key: 9 * ms for key, ms in mine.latency_ms.items()}
    other = run_of("plan-one-torch", load, num_heads=heads, throughput=90.0, latency_ms=mine.latency_ms)
    [words] = ahead(two_of(msgspec.structs.replace(mine, latency_ms=slow), other))

    assert where in words
    assert f": {what} " in words
    assert ("texts a second" in words) == (load.kind == "closed")


def test_bounds_and_bytes_are_looked_at() -> None:
    def bound(system: str, rate: float) -> Bound:
        return Bound(
            system=system, num_heads=1, workload="short", bound_ms=50.0, throughput=rate, least_too_much=rate + 5, tried=()
        )

    def wire(system: str, count: float) -> Wire:
        return Wire(system=system, num_heads=1, workload="short", bytes_per_text=count)

    bounds, sizes = (
        (bound("plan-four", 0.0), bound("plan-one-torch", 40.0)),
        (wire("plan-four", 900.0), wire("plan-one-torch", 300)),
    )
    [words] = ahead(two_of(run_of("plan-four", CLOSED), bounds=bounds, wire=sizes))

    assert "p99 within 50.0 ms: texts a second 40.0 against our 0" in words
    assert "bytes on the wire a text 300 against our 900 (3.00×)" in words


def test_bounds_whose_brackets_overlap_are_no_loss() -> None:
    ours = Bound(system="plan-four", num_heads=1, workload="short", bound_ms=50.0, throughput=0, least_too_much=400, tried=())
    theirs = msgspec.structs.replace(ours, system="plan-one-torch", throughput=300.0, least_too_much=310)

    assert not ahead(two_of(run_of("plan-four", CLOSED), bounds=(ours, theirs)))


def test_ranges_that_overlap_are_no_loss() -> None:
    runs = [run_of("plan-four", CLOSED, n, throughput=100.0 + 10 * n, latency_ms={}, cpu_ms_per_text={}) for n in range(3)]
    others = [run_of("plan-one-torch", CLOSED, n, throughput=115.0 + n, latency_ms={}, cpu_ms_per_text={}) for n in range(3)]
    results = two_of(*runs, *others)

    assert [] == losses(results)
    assert 1 == len(compared(results))
    assert no_losses(results).startswith("Of what is compared here")


@pytest.mark.parametrize(
    ("ratio", "is_told"),
    [
        (ratio_of("texts a second", 0.8, 0.9), True),
        (ratio_of("texts a second", 0.8, 1.1), False),
        (ratio_of("texts a second", 1.2, 1.1), False),
        (ratio_of("CPU time a text", 1.2, 1.1), True),
        (ratio_of("CPU time a text", 0.9), False),
        (ratio_of("p99 at 70% of its best load", 1.5, over="embedding-service"), True),
        (ratio_of("CPU time a text", 0.8, over="other", under="plan-four", is_met=None), True),
        (ratio_of("texts a second", 1.8, over="other", under="plan-four"), True),
        (ratio_of("p50 at 1 in flight, milliseconds more", 0.4, 0.6, is_met=True), True),
        (ratio_of("p50 at 1 in flight, milliseconds more", -0.4, 0.6, is_met=True), False),
        (ratio_of("texts a second", 0.8, over="other", under="plan-one-torch"), False),
        (ratio_of("texts a second"), False),
    ],
)
def test_a_ratio_is_told_where_all_rounds_say_that_ours_is_the_worse(ratio: Ratio, is_told: bool) -> None:
    told = losses(two_of(run_of("plan-four", CLOSED), ratios=(ratio,)))

    assert is_told == any(words.startswith("Ours is the worse: Beside") for words in told)
    assert is_told == bool(told)


def test_a_missed_goal_is_told_once_and_differences_have_their_unit() -> None:
    ratio = ratio_of("p50 at 1 in flight, milliseconds more", 2.0, 3.0, is_met=False)
    [words] = losses(two_of(run_of("plan-four", CLOSED), ratios=(ratio,)))

    assert words.startswith("Goal not met")
    assert "2.50 ms (2.00 to 3.00)" in words


def test_goals_that_could_not_be_judged_are_told_and_other_missing_things_are_not() -> None:
    why = "there is no round of both that counts"
    missing = (
        *(Missing(what=f"{n} heads: CPU time a text of plan-two over plan-four", why=why) for n in range(6)),
        Missing(what="infinity", why="it does not start"),
    )
    [words] = losses(two_of(run_of("plan-four", CLOSED), missing=missing))

    assert words.startswith(f"Not judged, because {why}: 0 heads: CPU time a text of plan-two over plan-four;")
    assert words.endswith("and 2 more.")


def test_an_unranked_plan_four_is_said_to_be_compared_with_nothing() -> None:
    results = results_of(answers=(answers_of("plan-four", num_differences=900), answers_of("plan-one-torch")))

    assert "is not ranked, and nothing is compared with it" in losses(results)[0]
    assert [] == compared(results)


def test_a_void_plan_four_is_said_to_have_no_number() -> None:
    [alone] = losses(two_of(void_run()))
    [beside] = losses(two_of(void_run(), run_of("plan-four", CLOSED), run_of("plan-one-torch", void_run().load)))

    assert "all its runs are void, the generator was late" in alone
    assert "200/s, Poisson (the generator was late)" in beside


def test_plan_four_beside_nobody_has_no_losses_to_speak_of(empty: Results) -> None:
    assert "beside no other ranked system" in no_losses(two_of(run_of("plan-four", CLOSED)))
    assert "Plan four was not measured." == no_losses(empty)
    assert [] == losses(empty)
    assert ["Plan four was not measured."] == losses(two_of(run_of("plan-one-torch", CLOSED), answers=()))
