import gc
import os
import time

import pytest

from perf.micro import timing
from perf.micro.timing import Benchmark, calls_a_round, cpu_clock, extrapolated, measured, of_coroutine, of_function, spend


@pytest.mark.parametrize(
    ("count", "wall", "expected"),
    [(8, 0.02, 20), (1, 0.5, 1), (1, 0.05, 1), (4, 0.0, 1_000_000), (1_000_000, 1e-3, 1_000_000)],
)
def test_a_rounds_calls_are_extrapolated_from_those_that_were_timed(count: int, wall: float, expected: int) -> None:
    assert expected == extrapolated(count, wall, 0.05)


async def test_a_benchmark_is_called_as_often_as_it_is_asked_for_without_the_collector() -> None:
    seen: list[bool] = []

    async def call() -> None:
        seen.append(gc.isenabled())

    await spend(of_function("function", lambda: seen.append(gc.isenabled())), 3)
    await spend(of_coroutine("coroutine", call), 2)

    assert [False] * 5 == seen
    assert gc.isenabled()


async def test_the_collector_comes_back_after_a_call_that_fails() -> None:
    def fail() -> None:
        raise ValueError("it fails")

    with pytest.raises(ValueError, match="it fails"):
        await spend(of_function("fails", fail), 1)

    assert gc.isenabled()


async def test_calls_are_doubled_until_they_last() -> None:
    asked: list[int] = []

    async def calls(count: int) -> None:
        asked.append(count)
        until = time.perf_counter() + count * 1e-3
        while time.perf_counter() < until:
            pass

    count = await calls_a_round(Benchmark("spins", calls), 0.016)

    assert [2**power for power in range(len(asked))] == asked
    assert 1 <= count <= 16


async def test_benchmarks_take_turns_and_every_round_is_told() -> None:
    order: list[str] = []
    told: list[tuple[int, int]] = []

    def of(name: str) -> Benchmark:
        async def calls(_: int) -> None:
            order.append(name)

        return Benchmark(name, calls, note=f"note of {name}")

    found = await measured([of("a"), of("b")], 3, seconds=0.0, progress=lambda done, of: told.append((done, of)))

    assert ["a", "b"] * 3 == order[-6:]
    assert [(1, 3), (2, 3), (3, 3)] == told
    assert [("a", "note of a", 3, 3), ("b", "note of b", 3, 3)] == [
        (one.name, one.note, len(one.microseconds), len(one.cpu_microseconds)) for one in found
    ]


async def test_times_are_those_of_one_call_in_microseconds() -> None:
    spun = of_function("spins", lambda: sum(range(20_000)))
    (found,) = await measured([spun], 1, seconds=1e-3)
    began = time.perf_counter()
    sum(range(20_000))
    alone = (time.perf_counter() - began) * 1e6

    assert alone / 100 < found.microseconds[0] < alone * 100
    assert found.cpu_microseconds[0] > 0


def test_the_cpu_clock_of_a_process_is_its_own() -> None:
    before, ours = time.process_time(), cpu_clock(os.getpid())

    assert before <= ours <= time.process_time()
    with pytest.raises(OSError, match="argument"):
        cpu_clock(2**22 + 1)


async def test_the_cpu_time_of_processes_that_work_for_a_call_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {1: 0.0, 2: 0.0}
    monkeypatch.setattr(timing, "cpu_clock", seconds.__getitem__)

    async def calls(count: int) -> None:
        seconds[1] += 10.0 * count
        seconds[2] += 100.0 * count

    spent = await spend(Benchmark("asks two servers", calls, pids=(1, 2)), 3)

    assert 330 <= spent.cpu < 331
