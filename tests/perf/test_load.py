import asyncio
import itertools
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perf.load import LoadResult, bursts_of, classify_bodies, closed_loop, joined, main, on_grid, paced, repeated, target_of
from perf.machine import cpu_seconds
from tests.perf.server import GOOD, UNAVAILABLE, Answer, Scripted, serving


async def closed(answer: Answer, *, in_flight: int, seconds: float, pids: dict[str, int] | None = None) -> LoadResult:
    async with serving(answer) as port:
        target = target_of(f"http://127.0.0.1:{port}", [b"{}"])
        return await closed_loop(target, in_flight=in_flight, seconds=seconds, pids=pids)


def test_a_body_names_its_text_and_the_heads_asked_for_and_takes_no_heads_error_for_an_answer() -> None:
    with_heads, without = classify_bodies(["é"], ["a"])[0], classify_bodies(["é"], None)[0]

    assert {"text": "é", "heads": ["a"], "strict": True} == msgspec.json.decode(with_heads)
    assert {"text": "é", "strict": True} == msgspec.json.decode(without)


async def test_every_request_sent_is_counted_once() -> None:
    server = Scripted(GOOD)
    result = await closed(server, in_flight=4, seconds=0.2)

    assert {"200": len(server.bodies)} == dict(result.outcomes)
    assert len(server.bodies) == len(result.latencies)
    assert result.num_errors == 0
    assert result.throughput == pytest.approx(len(server.bodies) / result.seconds)


async def test_an_answer_that_comes_much_later_than_the_others_does_not_divide_what_they_gave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("perf.load.GRACE_SECONDS", 0.05)

    async def call(number: int) -> None:
        await asyncio.sleep(0.6 if number == 1 else 0.001)

    result = await repeated(call, texts=3, in_flight=2, seconds=0.1)

    assert 3 == result.num_late
    assert result.seconds == pytest.approx(0.15)
    assert result.throughput == pytest.approx((result.outcomes["200"] - 3) / 0.15)
    assert result.percentile_ms(100) >= 600
    assert 6 == joined([result, result]).num_late


async def test_when_requests_failed_is_kept() -> None:
    async def call(number: int) -> None:
        if number in {2, 3}:
            raise ValueError

    result = await paced(call, rate=100.0, seconds=0.1, gaps=itertools.repeat(0.02))

    assert [0.04, 0.06] == pytest.approx(result.failed_at)


@pytest.mark.parametrize(
    "words",
    [
        ("--url", "https://127.0.0.1:1", "--texts", "{texts}"),
        ("--url", "127.0.0.1:1", "--texts", "{texts}"),
        ("--url", "http://127.0.0.1:1", "--texts", "{nothing}"),
        ("--url", "http://127.0.0.1:1", "--texts", "{texts}", "--rate", "0"),
        ("--url", "http://127.0.0.1:1", "--texts", "{texts}", "--in-flight", "0"),
    ],
)
def test_a_command_line_that_means_nothing_is_refused(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "texts").write_text("a text\n")
    (tmp_path / "nothing").write_text("\n \n")
    monkeypatch.setattr(
        "sys.argv", ["load", *(word.format(texts=tmp_path / "texts", nothing=tmp_path / "nothing") for word in words)]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert 2 == ended.value.code


async def test_a_refusal_is_counted_by_its_status_and_has_no_latency() -> None:
    result = await closed(Scripted(UNAVAILABLE, UNAVAILABLE, UNAVAILABLE, GOOD), in_flight=1, seconds=0.2)

    assert result.outcomes["503"] == 3
    assert result.num_errors == 3
    assert len(result.latencies) == result.outcomes["200"] > 0
    assert "503" in result.summary()


async def test_dropped_connections_are_counted_and_survived() -> None:
    result = await closed(Scripted(None, None, GOOD), in_flight=1, seconds=0.3)

    assert result.outcomes["ConnectionLostError"] == 2
    assert result.outcomes["200"] > 0


async def test_nobody_listening_is_counted_and_not_a_busy_loop() -> None:
    async with serving(Scripted(GOOD)) as port:
        pass
    result = await closed_loop(target_of(f"http://127.0.0.1:{port}", [b"{}"]), in_flight=1, seconds=0.1)

    assert {"ConnectionRefusedError"} == set(result.outcomes)
    assert result.num_errors <= 11


async def test_what_is_answered_during_the_warm_up_does_not_count() -> None:
    server = Scripted(GOOD)
    async with serving(server) as port:
        target = target_of(f"http://127.0.0.1:{port}", [b"{}"])
        result = await closed_loop(target, in_flight=2, seconds=0.1, warm_up_seconds=0.1)

    assert 0 < result.outcomes["200"] < len(server.bodies)


@pytest.mark.parametrize(("lag", "is_void"), [(0.001, False), (0.006, True)])
def test_a_run_is_void_when_the_generator_itself_was_late(lag: float, is_void: bool) -> None:
    result = LoadResult(seconds=1, lags=[lag] * 100)

    assert is_void == result.is_void
    assert is_void == ("VOID" in result.summary())
    assert result.lag_p99_ms == pytest.approx(lag * 1000)


async def test_cpu_of_the_processes_asked_for_is_told_for_each_text() -> None:
    result = await closed(Scripted(GOOD), in_flight=2, seconds=0.2, pids={"itself": os.getpid()})

    assert {"itself", "load"} == set(result.cpu_ms_per_text)
    assert 0 <= result.cpu_ms_per_text["itself"] * result.outcomes["200"] <= cpu_seconds(os.getpid()) * 1000


async def test_repeated_calls_count_their_texts_and_their_failures_by_kind() -> None:
    async def call(number: int) -> None:
        await asyncio.sleep(0.001)
        if number % 3 == 0:
            raise ValueError("every third")

    result = await repeated(call, texts=4, in_flight=2, seconds=0.1)

    assert result.outcomes["200"] == 4 * len(result.latencies) > 0
    assert result.outcomes["ValueError"] > 0
    assert 0 == result.outcomes.total() % 4


async def test_a_process_that_ended_is_left_out_of_the_cpu_times() -> None:
    child = await asyncio.create_subprocess_exec("sleep", "0.05")

    async def call(_: int) -> None:
        await asyncio.sleep(0.2)
        await child.wait()

    result = await repeated(call, texts=1, in_flight=1, seconds=0.1, pids={"child": child.pid})

    assert {"load"} == set(result.cpu_ms_per_text)


async def test_calls_are_paced_and_counted_by_class_and_outcome() -> None:
    numbers: list[int] = []

    async def call(number: int) -> None:
        numbers.append(number)
        if number == 2:
            raise ValueError("the third")

    result = await paced(call, rate=200, seconds=0.2, classes=["short", "short", "short", "long"])

    assert list(range(len(numbers))) == sorted(numbers)
    assert 1 == result.outcomes["ValueError"]
    assert len(numbers) == result.outcomes.total()
    assert sum(number % 4 == 3 for number in numbers) == len(result.latencies_by_class["long"])
    assert not result.is_void, "the generator shares the loop with what it calls"


async def test_the_same_seed_gives_the_same_arrivals() -> None:
    async def call(_: int) -> None:
        pass

    counts = [(await paced(call, rate=300, seconds=0.2, seed=seed)).outcomes["200"] for seed in (1, 1)]

    assert counts[0] == counts[1]


@pytest.mark.parametrize("size", [1, 16])
def test_bursts_come_at_once_and_keep_the_mean_rate(size: int) -> None:
    gaps = list(itertools.islice(bursts_of(500, 0, size), size * 4_000))

    assert sum(gaps) == pytest.approx(len(gaps) / 500, rel=0.05)
    assert all(gap == 0 for place, gap in enumerate(gaps) if place % size != size - 1)
    assert all(gap > 0 for gap in gaps[size - 1 :: size])


@given(st.lists(st.floats(0, 0.05), min_size=1), st.floats(0.001, 0.02))
def test_on_a_grid_each_request_falls_due_at_the_end_of_its_step(gaps: list[float], step: float) -> None:
    due, gridded = itertools.accumulate(gaps), list(itertools.accumulate(on_grid(iter(gaps), step)))

    for exact, rounded in zip(due, gridded, strict=True):
        assert exact - 1e-9 <= rounded < exact + step + 1e-9
        assert rounded / step == pytest.approx(round(rounded / step))


async def test_calls_come_after_the_gaps_given() -> None:
    async def call(_: int) -> None:
        pass

    result = await paced(
        call, rate=1, seconds=0.1, gaps=itertools.chain([0.0] * 7, itertools.repeat(1.0)), pids={"me": os.getpid()}
    )

    assert 8 == result.outcomes["200"]
    assert "me" in result.cpu_ms_per_text


def test_runs_one_after_the_other_are_one_run_by_their_answers() -> None:
    first = LoadResult(seconds=1.0, latencies=[0.1], cpu_ms_per_text={"gateway": 2.0}, answer_seconds={"503": [0.2]})
    second = LoadResult(seconds=2.0, latencies=[0.3] * 3, cpu_ms_per_text={"gateway": 4.0}, is_overrun=True)
    first.outcomes.update({"200": 1, "503": 1})
    second.outcomes.update({"200": 3})

    whole = joined([first, second])

    assert (3.0, [0.1, 0.3, 0.3, 0.3]) == (whole.seconds, whole.latencies)
    assert {"200": 4, "503": 1} == whole.outcomes
    assert {"gateway": 3.5} == whole.cpu_ms_per_text
    assert {"503": [0.2]} == whole.answer_seconds
    assert whole.is_overrun
    assert [0.1] == first.latencies
