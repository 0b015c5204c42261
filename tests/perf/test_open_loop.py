import asyncio
import itertools

import numpy as np
import pytest

from perf.load import LoadResult, closed_loop, target_of
from perf.open_loop import open_loop
from tests.perf.server import GOOD, UNAVAILABLE, Answer, Scripted, StallsOnce, serving
from tests.perf.test_load import closed

STALL_SECONDS = 0.5


async def opened(answer: Answer, *, rate: float, seconds: float, is_poisson: bool = True) -> LoadResult:
    async with serving(answer) as port:
        target = target_of(f"http://127.0.0.1:{port}", [b"{}"])
        return await open_loop(target, rate=rate, seconds=seconds, is_poisson=is_poisson)


async def test_a_stall_shows_in_the_open_loop_and_hides_in_the_closed_one() -> None:
    of_open = await opened(StallsOnce(50, STALL_SECONDS), rate=200, seconds=1)
    of_closed = await closed(StallsOnce(50, STALL_SECONDS), in_flight=1, seconds=1)

    half = STALL_SECONDS / 2 * 1000
    assert of_open.percentile_ms(90) > half, "about half of the second's requests were due during the stall"
    assert of_closed.percentile_ms(90) < half, "one request alone was under way"
    assert max(of_closed.latencies) * 1000 > half


async def test_a_constant_rate_sends_as_many_as_asked_for() -> None:
    result = await opened(Scripted(GOOD), rate=100, seconds=0.5, is_poisson=False)

    assert result.outcomes.total() == pytest.approx(50, abs=1)


async def test_an_open_loop_with_too_many_under_way_ends_early_and_is_void() -> None:
    asked = asyncio.Event()
    num_asked = 0

    async def late(writer: asyncio.StreamWriter, _: bytes) -> None:
        nonlocal num_asked
        num_asked += 1
        if num_asked == 5:
            asked.set()
        await asked.wait()
        await asyncio.sleep(0.1)
        writer.write(GOOD)

    async with serving(late) as port, asyncio.timeout(20):
        target = target_of(f"http://127.0.0.1:{port}", [b"{}"])
        result = await open_loop(target, rate=2_000, seconds=60, max_under_way=5)

    assert result.is_overrun
    assert result.is_void
    assert {"200": 5} == dict(result.outcomes)
    assert "too many requests were under way" in result.summary()


async def test_how_long_a_refusal_took_is_kept_by_its_status() -> None:
    result = await opened(Scripted(UNAVAILABLE, UNAVAILABLE, GOOD), rate=100, seconds=0.2)

    assert 2 == len(result.answer_seconds["503"])
    assert result.outcomes["200"] == len(result.answer_seconds["200"])
    assert all(seconds > 0 for seconds in result.answer_seconds["503"])


async def test_latencies_are_told_apart_by_the_class_of_their_body() -> None:
    async def slow_for_long(writer: asyncio.StreamWriter, body: bytes) -> None:
        await asyncio.sleep(0.05 if body == b"long" else 0)
        writer.write(GOOD)

    async with serving(slow_for_long) as port:
        target = target_of(f"http://127.0.0.1:{port}", [b"short", b"long"], classes=["short", "long"])
        results = [
            await open_loop(target, rate=100, seconds=0.3, is_poisson=False),
            await closed_loop(target, in_flight=2, seconds=0.3),
        ]

    for result in results:
        by_class = result.latencies_by_class
        assert min(by_class["long"]) >= 0.05
        assert len(by_class["short"]) + len(by_class["long"]) == len(result.latencies) == result.outcomes["200"]
        assert result.percentile_ms(50, "long") >= 50
        assert np.isnan(result.percentile_ms(50, "other"))


async def test_what_is_not_answered_in_time_is_counted_and_its_connection_closed() -> None:
    async def never(_: asyncio.StreamWriter, __: bytes) -> None:
        await asyncio.sleep(30)

    async with serving(never) as port, asyncio.timeout(20):
        target = target_of(f"http://127.0.0.1:{port}", [b"{}"])
        result = await open_loop(target, rate=20, seconds=0.2, is_poisson=False, timeout=0.1)

    assert {"TimeoutError"} == set(result.outcomes)


async def test_dropped_and_refused_connections_are_counted() -> None:
    dropped = await opened(Scripted(None, GOOD), rate=100, seconds=0.2)
    async with serving(Scripted(GOOD)) as port:
        pass
    refused = await open_loop(target_of(f"http://127.0.0.1:{port}", [b"{}"]), rate=50, seconds=0.1)

    assert 1 == dropped.outcomes["ConnectionLostError"]
    assert dropped.outcomes["200"] > 0
    assert {"ConnectionRefusedError"} == set(refused.outcomes)


async def test_an_answer_that_ends_its_connection_counts_as_any_other() -> None:
    server = Scripted(GOOD.replace(b"\r\n", b"\r\nconnection: close\r\n", 1))
    result = await opened(server, rate=100, seconds=0.2, is_poisson=False)

    assert {"200": len(server.bodies)} == dict(result.outcomes)
    assert len(server.callers) == len(server.bodies) > 10


async def test_connections_are_used_again() -> None:
    server = Scripted(GOOD)
    result = await opened(server, rate=100, seconds=0.3, is_poisson=False)

    assert result.outcomes["200"] == len(server.bodies) > 20
    assert len(server.callers) < 10


async def test_requests_come_after_the_gaps_given() -> None:
    async with serving(Scripted(GOOD)) as port:
        target = target_of(f"http://127.0.0.1:{port}", [b"{}"])
        gaps = itertools.chain([0.0] * 7, itertools.repeat(1.0))
        result = await open_loop(target, rate=1, seconds=0.1, gaps=gaps)

    assert 8 == result.outcomes["200"]
