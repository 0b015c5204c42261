import asyncio
from collections import Counter
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from perf.load import LoadResult
from perf.measuring.loads import PlanDied, latency_of, measure_load, one_at_a_time, quantiles_of, run_of
from perf.results import NUM_QUANTILES, Load, Run
from perf.topologies.plan import Labels
from tests.perf.measuring.fakes import WORKLOAD, all_x, running_of
from tests.perf.server import GOOD, UNAVAILABLE, Scripted, serving

CLOSED = Load(kind="closed", in_flight=2)
OPEN = Load(kind="poisson", rate=200)


def failing(num_errors: int, num_good: int) -> LoadResult:
    return LoadResult(seconds=1, latencies=[0.1] * num_good, outcomes=Counter({"200": num_good, "503": num_errors}))


async def measured(load: Load, classify: object = all_x) -> Run:
    assert callable(classify)
    return await measure_load(running_of(classify), WORKLOAD, load, seconds=0.1, round_number=3)


async def test_a_run_says_what_was_asked_and_what_came_of_it() -> None:
    run = await measured(CLOSED)

    assert ("fake", 1, "short", CLOSED, 3) == (run.system, run.num_heads, run.workload, run.load, run.round)
    assert run.num_texts > 0
    assert run.throughput == pytest.approx(run.num_texts / run.seconds)
    assert {"mean", "p50"} <= set(run.latency_ms)
    assert len(run.quantiles_ms) == NUM_QUANTILES
    assert "load" in run.cpu_ms_per_text
    assert run.lag_p99_ms is None
    assert run.void == ""
    assert run == msgspec.json.decode(msgspec.json.encode(run), type=Run)


async def test_many_texts_travel_in_one_call_and_count_each() -> None:
    calls: list[int] = []

    async def classify(texts: Sequence[str]) -> list[Labels]:
        calls.append(len(texts))
        return await all_x(texts)

    run = await measured(Load(kind="closed", texts_a_request=5), classify)

    assert {5} == set(calls)
    assert run.num_texts == 5 * len(calls)


async def test_fewer_labels_than_texts_are_an_error() -> None:
    async def classify(texts: Sequence[str]) -> list[Labels]:
        return (await all_x(texts))[:-1] if len(calls) % 2 else await all_x(texts)

    calls: list[int] = []

    async def counted(texts: Sequence[str]) -> list[Labels]:
        calls.append(1)
        return await classify(texts)

    run = await measured(Load(kind="closed"), counted)

    assert 0 < run.num_errors <= len(calls) / 2 + 1
    assert run.throughput > 0
    assert run.void.endswith("requests were not answered well")


async def test_sequential_is_so_many_texts_one_after_another() -> None:
    seen: list[str] = []
    under_way = 0

    async def classify(texts: Sequence[str]) -> list[Labels]:
        nonlocal under_way
        under_way += 1
        assert under_way == 1
        seen.extend(texts)
        labels = await all_x(texts)
        under_way -= 1
        return labels

    run = await measure_load(running_of(classify), WORKLOAD, Load(kind="sequential"), seconds=9, round_number=0, num_texts=7)

    assert list("abcabca") == seen
    assert run.num_texts == 7


async def test_sequential_ends_when_it_has_taken_too_long() -> None:
    result = await one_at_a_time(running_of(), WORKLOAD.texts, 1000, most_seconds=0.0)

    assert result.outcomes["200"] < 1000


@pytest.mark.parametrize("kind", ["poisson", "bursts"])
async def test_an_open_loop_over_a_client_tells_its_lag_and_is_not_void_for_it(kind: str) -> None:
    run = await measured(msgspec.structs.replace(OPEN, kind=kind))

    assert run.lag_p99_ms is not None
    assert run.void == ""


async def test_an_open_loop_of_many_texts_a_request_is_refused() -> None:
    with pytest.raises(ValueError, match="single texts"):
        await measured(msgspec.structs.replace(OPEN, texts_a_request=2))


@pytest.mark.parametrize("load", [CLOSED, OPEN, Load(kind="bursts", rate=200)])
async def test_http_deployments_are_asked_over_http(load: Load) -> None:
    async def never(_: Sequence[str]) -> list[Labels]:
        raise AssertionError("the target is asked")

    server = Scripted(GOOD)
    async with serving(server) as port:
        run = await measure_load(running_of(never, port=port), WORKLOAD, load, seconds=0.2, round_number=0)

    assert run.num_texts == len(server.bodies) > 0
    assert set(server.bodies) <= {b"a", b"b", b"c"}


async def test_bulk_is_asked_by_the_client_of_an_http_deployment_too() -> None:
    server = Scripted(GOOD)
    async with serving(server) as port:
        load = Load(kind="closed", texts_a_request=2)
        run = await measure_load(running_of(port=port), WORKLOAD, load, seconds=0.05, round_number=0)

    assert not server.bodies
    assert run.num_texts > 0


async def test_a_deployment_that_only_refuses_has_died() -> None:
    async with serving(Scripted(UNAVAILABLE)) as port:
        with pytest.raises(PlanDied, match="503"):
            await measure_load(running_of(port=port), WORKLOAD, CLOSED, seconds=0.1, round_number=0)


async def test_nobody_listening_is_a_deployment_that_has_died() -> None:
    async with serving(Scripted(GOOD)) as port:
        pass
    with pytest.raises(PlanDied, match="ConnectionRefusedError"):
        await measure_load(running_of(port=port), WORKLOAD, CLOSED, seconds=0.05, round_number=0)


async def test_a_process_that_ended_meanwhile_is_named() -> None:
    child = await asyncio.create_subprocess_exec("sleep", "60")
    child.kill()
    await child.wait()
    with pytest.raises(PlanDied, match="'server' ended"):
        await measure_load(running_of(pids={"server": child.pid}), WORKLOAD, CLOSED, seconds=0.01, round_number=0)


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (LoadResult(seconds=1, latencies=[0.1], lags=[0.1]), "the generator was late: 100.0 ms at p99"),
        (LoadResult(seconds=1, latencies=[0.1], lags=[0.1], max_lag_seconds=float("inf")), ""),
        (LoadResult(seconds=1, latencies=[0.1], is_overrun=True), "too many requests were under way"),
        (LoadResult(seconds=1), "no request was answered"),
        (LoadResult(seconds=1, latencies=[0.1]), ""),
        (failing(7, 893), "7 of 900 requests were not answered well"),
        (failing(2, 998), "2 of 1,000 requests were not answered well"),
        (failing(1, 999), ""),
    ],
)
def test_a_run_is_void_for_a_reason(result: LoadResult, why: str) -> None:
    run = run_of("fake", 1, WORKLOAD, OPEN, 0, result)

    assert why == run.void
    assert run == msgspec.json.decode(msgspec.json.encode(run), type=Run), "no value is no number"


def test_quantiles_go_from_the_least_to_the_most() -> None:
    values = list(np.random.default_rng(0).permutation(10_001))

    assert quantiles_of(values) == pytest.approx([50 * place for place in range(NUM_QUANTILES)])
    assert latency_of(values) == pytest.approx({"mean": 5000, "p50": 5000, "p90": 9000, "p99": 9900, "p99.9": 9990})
    assert () == quantiles_of([])
    assert {} == latency_of([])


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (1, ["p50"]),
        (19, ["p50"]),
        (20, ["p50", "p90"]),
        (199, ["p50", "p90"]),
        (200, ["p50", "p90", "p99"]),
        (1_999, ["p50", "p90", "p99"]),
        (2_000, ["p50", "p90", "p99", "p99.9"]),
    ],
)
def test_a_percentile_is_told_when_two_answers_lie_beyond_it(count: int, told: list[str]) -> None:
    assert ["mean", *told] == list(latency_of([1.0] * count))
