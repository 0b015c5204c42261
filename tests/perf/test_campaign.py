import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from perf import results
from perf.campaign import ELSEWHERE_REMARK, LEAST_AGREEMENT_OF_MANY, Campaign, Means, Record, open_loads, results_of
from perf.machine import Snapshot
from perf.measuring.budget import QUICK, Settings
from perf.measuring.goals import Roles
from perf.measuring.peers import Beside, PeerSettings
from perf.results import Answers, Missing
from perf.rounds import Patience, Rounds
from perf.topologies.plan import CannotStart, Given, HeadSet, Labels, Plan, RunningPlan
from perf.workloads import Workload
from tests.perf.measuring.fakes import WORKLOAD, all_x, given_of, plan_of, running_of

TINY = replace(
    QUICK,
    rounds=2,
    seconds=0.02,
    num_labelled=4,
    num_sequential=3,
    in_flight=(1, 2),
    main_in_flight=2,
    tries=2,
    bulk_rounds=1,
    texts_a_request=2,
    heads=(1, 4),
    heads_in_flight=2,
    wire_seconds=0.02,
    max_waits=0,
    warm_up_seconds=0.005,
)
ROLES = Roles("a", "b", "b", ("b",))


async def ask(running: RunningPlan, texts: Sequence[str], /) -> list[Labels]:
    return await running.classify(texts)


def compare(
    labels: Sequence[Labels],
    reference: Sequence[Labels],
    heads: HeadSet,
    /,
    *,
    system: str,
    reference_name: str,
    num_heads: int,
    least_agreement: float,
) -> Answers:
    different = sum(one != other for one, other in zip(labels, reference, strict=True))
    return Answers(
        system=system,
        reference=reference_name,
        num_heads=num_heads,
        num_texts=len(heads.texts),
        num_labels=len(labels),
        num_differences=different,
        least_agreement=least_agreement,
        accuracy=1.0,
    )


def quiet(pids: Sequence[int], say: Callable[[str], None], max_waits: int, patience: Patience) -> Rounds:
    return Rounds(pids, say, max_waits, patience, take_snapshot=lambda _: Snapshot(0, 0, 1))


async def no_peer(name: str, given: Given, workload: Workload, settings: PeerSettings) -> Beside:
    raise CannotStart(f"{name} cannot be installed")


MEANS = Means(
    ask,
    compare,
    beside_peer=no_peer,
    peaks=lambda _: ({}, [Missing(what="limit", why="none here")]),
    rounds=quiet,
    free_bytes=lambda: 10**12,
)


def campaign_of(plans: Sequence[Plan], place: Path, settings: Settings = TINY, means: Means = MEANS) -> Campaign:
    return Campaign(plans, given_of(place), [WORKLOAD], settings, means, roles=ROLES)


async def found_by(plans: Sequence[Plan], place: Path, settings: Settings = TINY, means: Means = MEANS) -> Record:
    return await campaign_of(plans, place, settings, means).run()


async def test_every_system_takes_every_load(tmp_path: Path) -> None:
    found = await found_by([plan_of("a"), plan_of("b")], tmp_path)
    loads = {
        name: [(str(run.load), run.round) for run in found.runs if run.system == name and run.load.kind != "poisson"]
        for name in "ab"
    }

    assert loads["a"] == loads["b"]
    assert len(loads["a"]) == 1 + 4 + 1 + 1
    assert {"a", "b"} == {run.system for run in found.runs if run.load.kind == "poisson"}
    assert ["a", "b"] == [bound.system for bound in found.bounds]
    assert ["a", "b"] == [wire.system for wire in found.wire]
    assert [("a", 1), ("b", 1), ("a", 4), ("b", 4)] == [(each.system, each.num_heads) for each in found.footprints]
    assert [("a", "a", 1), ("b", "a", 1), ("a", "a", 4), ("b", "a", 4)] == [
        (each.system, each.reference, each.num_heads) for each in found.answers
    ]


async def test_rounds_go_in_turns(tmp_path: Path) -> None:
    found = await found_by([plan_of("a"), plan_of("b")], tmp_path)
    closed = [run for run in found.runs if run.load.kind == "closed" and run.num_heads == 1 and run.load.texts_a_request == 1]

    assert list("abababab") == [run.system for run in closed]
    assert [0] * 4 + [1] * 4 == [run.round for run in closed]


async def test_goals_are_told_of_what_was_measured(tmp_path: Path) -> None:
    found = await found_by([plan_of("a"), plan_of("b")], tmp_path)

    assert ["texts a second", "p50 at 1 in flight, milliseconds more"] == [one.what for one in found.ratios][:2]
    assert ["a", "a"] == [one.over for one in found.ratios][:2]


def sleeping(name: str, seen: dict[str, list[str]]) -> Plan:
    """A deployment with a process; each of its calls tells the state of all of them."""

    @contextlib.asynccontextmanager
    async def start(given: Given) -> AsyncIterator[RunningPlan]:
        child = await asyncio.create_subprocess_exec("sleep", "60")
        PIDS[name] = child.pid
        try:

            async def classify(texts: Sequence[str]) -> list[Labels]:
                seen.setdefault(name, []).extend(
                    other for other, pid in PIDS.items() if psutil.Process(pid).status() != psutil.STATUS_STOPPED
                )
                return await all_x(texts)

            yield running_of(classify, name=name, num_heads=given.num_heads, pids={"server": child.pid})
        finally:
            del PIDS[name]
            child.kill()
            await child.wait()

    return Plan(name, name, start)


PIDS: dict[str, int] = {}


async def test_only_one_runs_at_a_time(tmp_path: Path) -> None:
    seen: dict[str, list[str]] = {}
    await found_by([sleeping("a", seen), sleeping("b", seen)], tmp_path)

    assert {"a": {"a"}, "b": {"b"}} == {name: set(running) for name, running in seen.items()}


async def test_what_cannot_start_is_missing_and_the_rest_goes_on(tmp_path: Path) -> None:
    def start(_: Given) -> contextlib.AbstractAsyncContextManager[RunningPlan]:
        raise CannotStart("there is no such server here")

    @contextlib.asynccontextmanager
    async def begin(given: Given) -> AsyncIterator[RunningPlan]:
        async with start(given) as running:
            yield running

    found = await found_by([Plan("b", "b", begin), plan_of("a")], tmp_path)

    assert Missing(what="b, 1 head", why="there is no such server here") in found.missing
    assert {"a"} == {run.system for run in found.runs}
    assert {"a"} == {each.reference for each in found.answers}
    assert any("texts a second of a over b" in one.what for one in found.missing)


async def test_who_dies_midway_is_missing_from_then_on(tmp_path: Path) -> None:
    calls = 0

    async def dying(texts: Sequence[str]) -> list[Labels]:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.001)
        if len(texts) == 2:
            is_dead.set()
        if is_dead.is_set():
            raise ConnectionRefusedError("nobody listens")
        return await all_x(texts)

    is_dead = asyncio.Event()
    found = await found_by([plan_of("a"), plan_of("b", dying)], tmp_path)

    (missing,) = [one for one in found.missing if one.what.startswith("b, 1 head")]
    assert "2 texts a request" in missing.what
    assert "ConnectionRefusedError" in missing.why
    assert ["a"] == [wire.system for wire in found.wire]
    assert {"a"} == {run.system for run in found.runs if run.num_heads == 4}


async def test_who_still_answers_lacks_one_measurement_and_takes_the_others(tmp_path: Path) -> None:
    async def one_text_a_call(texts: Sequence[str]) -> list[Labels]:
        await asyncio.sleep(0.001)
        if list(texts) == list(given_of(tmp_path).heads.texts[:4]):
            raise ValueError("an answer that nobody can read")
        return await all_x(texts)

    found = await found_by([plan_of("a"), plan_of("b", one_text_a_call)], tmp_path)

    assert [Missing(what="b, 1 head: answers, 1 head", why="an answer that nobody can read")] == [
        one for one in found.missing if one.what.startswith("b, 1 head")
    ]
    assert ["a", "b"] == [wire.system for wire in found.wire]


async def test_who_is_compared_with_a_less_exact_one_is_asked_for_no_more_than_that_one_would_be(tmp_path: Path) -> None:
    found = await found_by([replace(plan_of("a"), least_agreement=0.9), plan_of("b")], tmp_path)

    assert {("a", 0.9), ("b", 0.9)} == {(each.system, each.least_agreement) for each in found.answers}


async def test_with_many_heads_ties_of_bfloat16_are_allowed(tmp_path: Path) -> None:
    found = await found_by([plan_of("a"), plan_of("b")], tmp_path)

    assert {(1, 1.0), (4, LEAST_AGREEMENT_OF_MANY)} == {(each.num_heads, each.least_agreement) for each in found.answers}


async def test_with_many_heads_rounds_go_in_turns_too(tmp_path: Path) -> None:
    found = await found_by([plan_of("a"), plan_of("b")], tmp_path, replace(TINY, heads_rounds=2))

    assert list("abab") == [run.system for run in found.runs if run.num_heads == 4]


async def test_a_trunk_elsewhere_is_said_and_no_cost_is_held_against_the_others(tmp_path: Path) -> None:
    campaign = Campaign(
        [plan_of("a"), plan_of("b")],
        replace(given_of(tmp_path), embedding_address="elsewhere:1"),
        [WORKLOAD],
        TINY,
        MEANS,
        roles=ROLES,
    )
    found = await campaign.run()

    assert ELSEWHERE_REMARK in found.remarks
    assert not [one for one in (*found.ratios, *found.missing) if "CPU" in getattr(one, "what", "")]


async def test_who_answers_otherwise_is_marked_measured_and_not_compared(tmp_path: Path) -> None:
    async def other(texts: Sequence[str]) -> list[Labels]:
        await asyncio.sleep(0.001)
        return [{"h0": "y"} for _ in texts]

    found = await found_by([plan_of("a"), plan_of("b", other)], tmp_path)

    assert [True, False] == [each.is_ranked for each in found.answers if each.num_heads == 1]
    assert any(run.system == "b" for run in found.runs)
    assert not found.ratios
    assert any(one.why == "the answers of b are others" for one in found.missing)


async def test_who_does_not_fit_into_memory_comes_after_the_others(tmp_path: Path) -> None:
    found = await found_by([plan_of("a"), plan_of("b")], tmp_path, means=replace(MEANS, free_bytes=lambda: 0))
    sequential = [run.system for run in found.runs if run.num_heads == 1]

    assert sorted(sequential) == sequential
    assert {"a", "b"} == set(sequential)
    assert any("Memory was too small" in remark and "b" in remark for remark in found.remarks)


async def test_a_peer_that_cannot_be_had_is_missing(tmp_path: Path) -> None:
    found = await found_by([plan_of("a")], tmp_path, replace(TINY, peers=("infinity",)))

    assert Missing(what="infinity", why="infinity cannot be installed") in found.missing


def loud(pids: Sequence[int], say: Callable[[str], None], max_waits: int, patience: Patience) -> Rounds:
    snapshots = iter(Snapshot(busy, 0, busy) for busy in range(1, 1000))
    return Rounds(pids, say, max_waits, patience, take_snapshot=lambda _: next(snapshots))


async def test_when_others_took_too_much_time_it_is_said_and_nothing_is_waited_for(tmp_path: Path) -> None:
    patient = await found_by([plan_of("a")], tmp_path, means=replace(MEANS, rounds=loud))
    found = await found_by([plan_of("a")], tmp_path, replace(TINY, max_lost_seconds=1e-6), means=replace(MEANS, rounds=loud))

    assert not any("were lost to them" in remark for remark in patient.remarks)
    assert any("were lost to them" in remark for remark in found.remarks)


async def test_a_round_beside_others_is_marked(tmp_path: Path) -> None:
    found = await found_by([plan_of("a")], tmp_path, means=replace(MEANS, rounds=loud))

    assert all(run.is_disturbed for run in found.runs)
    assert not found.bounds
    assert ["a: most texts a second with p99 within 50 ms"] == [one.what for one in found.missing if "most texts" in one.what]


async def test_progress_goes_from_nothing_to_all(tmp_path: Path) -> None:
    shares: list[float] = []
    campaign = Campaign(
        [plan_of("a"), plan_of("b")], given_of(tmp_path), [WORKLOAD], TINY, MEANS, progress=lambda share, _: shares.append(share)
    )
    await campaign.run()

    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] == 1
    assert len(set(shares)) > 20


async def test_what_was_found_is_written_with_its_circumstances(tmp_path: Path) -> None:
    plans = [plan_of("a"), plan_of("b")]
    found = await results_of(campaign_of(plans, tmp_path), plans, TINY, command="perf quick", price_per_hour=1.5)
    results.write(found, tmp_path / "results.json")

    assert found == results.read(tmp_path / "results.json")
    assert found.titles == {"a": "title of a", "b": "title of b"}
    assert found.settings["rounds"] == 2
    assert found.versions
    assert found.started <= found.ended


@pytest.mark.parametrize(
    ("peak", "expected"),
    [
        (100, [("poisson", "common", 35), ("poisson", "own", 60), ("bursts", "own", 60)]),
        (50, [("poisson", "common", 35), ("poisson", "own", 30), ("bursts", "own", 30)]),
    ],
)
def test_all_are_offered_what_the_slowest_can_take_and_each_a_share_of_its_own(
    peak: float, expected: list[tuple[str, str, float]]
) -> None:
    settings = replace(QUICK, common_share=0.7, own_share=0.6, are_bursts_measured=True)

    loads = open_loads(peak, 50, settings)

    assert [(kind, share) for kind, share, _ in expected] == [(load.kind, load.share) for load in loads]
    assert [load.rate for load in loads] == pytest.approx([rate for _, _, rate in expected])
