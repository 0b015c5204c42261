import asyncio
import gc
import weakref
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients import Deadline, DeadlineExceeded, InvalidResponse, Overloaded, Unavailable
from gateway.coalesce import CallLimits, Coalescer
from tests.collector import no_collector


class Backend:
    """Answers each row with its negative once *gate* is set; keeps what it was sent."""

    def __init__(self, *, is_open: bool = True) -> None:
        self.calls: list[list[int]] = []
        self.cancelled = 0
        self.gate = asyncio.Event()
        if is_open:
            self.gate.set()

    async def __call__(self, rows: Sequence[int], _: Deadline) -> list[int]:
        self.calls.append(list(rows))
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if 13 in rows:
            raise Unavailable("thirteen")
        return [-row for row in rows]


async def started(coalescer: Coalescer[int, int], rows: Sequence[int], seconds: float = 5.0) -> "asyncio.Task[Sequence[int]]":
    task = asyncio.create_task(coalescer.run(rows, Deadline.after(seconds)))
    await asyncio.sleep(0.01)
    return task


async def test_a_call_leaves_at_once_where_nothing_is_out() -> None:
    backend = Backend()

    assert [-1] == await Coalescer(backend, CallLimits()).run([1], Deadline.after(5))
    assert [[1]] == backend.calls


async def test_what_comes_in_one_turn_of_the_loop_shares_a_call() -> None:
    backend = Backend()
    coalescer = Coalescer(backend, CallLimits(max_calls=1))

    answers = await asyncio.gather(*(coalescer.run([n], Deadline.after(5)) for n in range(4)))

    assert [[0], [-1], [-2], [-3]] == answers
    assert [[0, 1, 2, 3]] == backend.calls


async def test_arrivals_gather_while_a_call_is_out_and_each_gets_its_own_rows() -> None:
    backend = Backend(is_open=False)
    coalescer = Coalescer(backend, CallLimits(max_calls=1))
    tasks = [await started(coalescer, [n, n + 10]) for n in (1, 2, 4)]
    tasks[1].cancel()
    backend.gate.set()

    answers = await asyncio.gather(*tasks, return_exceptions=True)

    assert [[1, 11], [4, 14]] == backend.calls
    assert ([-1, -11], [-4, -14]) == (answers[0], answers[2])


async def test_a_long_list_goes_in_several_calls_and_comes_back_as_one() -> None:
    backend = Backend()

    answer = await Coalescer(backend, CallLimits(max_calls=2, max_rows=2)).run([1, 2, 3, 4, 5], Deadline.after(5))

    assert [-1, -2, -3, -4, -5] == answer
    assert [[1, 2], [3, 4], [5]] == backend.calls


async def test_a_failed_call_is_the_failure_of_its_own_members_only() -> None:
    backend = Backend(is_open=False)
    coalescer = Coalescer(backend, CallLimits(max_calls=1, max_rows=1))
    tasks = [await started(coalescer, [n]) for n in (1, 13, 2)]
    backend.gate.set()

    answers = await asyncio.gather(*tasks, return_exceptions=True)

    assert ([-1], [-2]) == (answers[0], answers[2])
    assert isinstance(answers[1], Unavailable)


async def test_a_passed_deadline_is_an_answer_and_its_rows_are_never_sent() -> None:
    backend = Backend(is_open=False)
    coalescer = Coalescer(backend, CallLimits(max_calls=1))
    first = await started(coalescer, [1])

    with pytest.raises(DeadlineExceeded):
        await coalescer.run([2], Deadline.after(0.02))
    backend.gate.set()

    assert [-1] == await first
    assert [-3] == await coalescer.run([3], Deadline.after(5))
    assert [[1], [3]] == backend.calls


async def test_a_deadline_that_had_passed_on_arrival_sends_nothing() -> None:
    backend = Backend()
    coalescer = Coalescer(backend, CallLimits())

    with pytest.raises(DeadlineExceeded):
        await coalescer.run([1], Deadline.after(0.0))
    await asyncio.sleep(0)

    assert [] == backend.calls
    assert "<Coalescer [0 calls out, 0 rows pending]>" == repr(coalescer)


async def test_a_call_is_cancelled_when_the_last_of_its_members_ran_out_of_time() -> None:
    backend = Backend(is_open=False)
    coalescer = Coalescer(backend, CallLimits(max_calls=1))
    patient = asyncio.create_task(coalescer.run([1], Deadline.after(0.2)))
    hasty = asyncio.create_task(coalescer.run([2], Deadline.after(0.02)))

    with pytest.raises(DeadlineExceeded):
        await hasty
    await asyncio.sleep(0.01)
    assert 0 == backend.cancelled
    with pytest.raises(DeadlineExceeded):
        await patient
    await asyncio.sleep(0.01)

    assert [[1, 2]] == backend.calls
    assert 1 == backend.cancelled


@pytest.mark.parametrize("max_calls", [2, 3])
async def test_of_a_request_in_several_calls_one_failure_leaves_the_others_without_noise(max_calls: int) -> None:
    noise: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: noise.append(context))
    backend = Backend()
    coalescer = Coalescer(backend, CallLimits(max_calls=max_calls, max_rows=1))

    with pytest.raises(Unavailable):
        await coalescer.run([13, 13, 2], Deadline.after(5))
    await asyncio.sleep(0.01)
    gc.collect()

    assert [] == noise
    assert "<Coalescer [0 calls out, 0 rows pending]>" == repr(coalescer)


async def test_a_failed_calls_error_is_freed_with_who_was_told_it_and_needs_no_collector() -> None:
    coalescer = Coalescer(Backend(), CallLimits())
    with no_collector():
        try:
            await coalescer.run([13], Deadline.after(5))
        except Unavailable as error:
            seen = weakref.ref(error)
        await asyncio.sleep(0.01)
        assert seen() is None


async def test_a_deadline_error_is_freed_with_who_was_told_it_and_needs_no_collector() -> None:
    coalescer = Coalescer(Backend(is_open=False), CallLimits())
    with no_collector():
        try:
            await coalescer.run([1], Deadline.after(0.02))
        except DeadlineExceeded as error:
            seen = weakref.ref(error)
        await asyncio.sleep(0.01)
        assert seen() is None


async def test_a_call_is_cancelled_when_all_its_members_have_left_and_not_before() -> None:
    backend = Backend(is_open=False)
    coalescer = Coalescer(backend, CallLimits(max_calls=1))
    tasks = [asyncio.create_task(coalescer.run([n], Deadline.after(5))) for n in (1, 2)]
    await asyncio.sleep(0.01)

    tasks[0].cancel()
    await asyncio.sleep(0.01)
    assert 0 == backend.cancelled
    tasks[1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0.01)

    assert 1 == backend.cancelled
    assert "<Coalescer [0 calls out, 0 rows pending]>" == repr(coalescer)


async def test_too_much_waiting_is_refused_but_an_idle_coalescer_takes_any_list() -> None:
    backend = Backend(is_open=False)
    coalescer = Coalescer(backend, CallLimits(max_calls=1, max_rows=9, max_pending=3))
    tasks = [await started(coalescer, [1]), await started(coalescer, [2, 3, 4])]

    with pytest.raises(Overloaded):
        await coalescer.run([5], Deadline.after(5))
    backend.gate.set()

    assert [[-1], [-2, -3, -4]] == await asyncio.gather(*tasks)
    assert [-1, -2, -3, -4] == await coalescer.run([1, 2, 3, 4], Deadline.after(5))


async def test_closing_ends_the_calls_that_are_out() -> None:
    backend = Backend(is_open=False)
    coalescer = Coalescer(backend, CallLimits())
    task = await started(coalescer, [1])

    await coalescer.close()

    assert 1 == backend.cancelled
    assert "the gateway is stopping" in str((await asyncio.gather(task, return_exceptions=True))[0])


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.lists(st.integers(0, 50), min_size=1, max_size=6), st.integers(0, 3)), max_size=12),
    st.integers(1, 3),
    st.integers(1, 8),
)
def test_every_caller_gets_its_own_rows_or_its_own_error(
    requests: list[tuple[list[int], int]], max_calls: int, max_rows: int
) -> None:
    async def scenario() -> None:
        coalescer = Coalescer(Backend(), CallLimits(max_calls=max_calls, max_rows=max_rows))

        async def call(rows: list[int], turns: int) -> Sequence[int]:
            for _ in range(turns):
                await asyncio.sleep(0)
            return await coalescer.run(rows, Deadline.after(5))

        answers = await asyncio.gather(*(call(*request) for request in requests), return_exceptions=True)
        for (rows, _), answer in zip(requests, answers, strict=True):
            if isinstance(answer, Unavailable):
                continue
            assert [-row for row in rows] == answer
            assert 13 not in rows
        assert "<Coalescer [0 calls out, 0 rows pending]>" == repr(coalescer)

    asyncio.run(scenario())


async def test_a_wrong_number_of_rows_is_an_invalid_response() -> None:
    async def send(rows: Sequence[int], _: Deadline) -> list[int]:
        return list(rows)[1:]

    with pytest.raises(InvalidResponse):
        await Coalescer(send, CallLimits()).run([1, 2], Deadline.after(5))
