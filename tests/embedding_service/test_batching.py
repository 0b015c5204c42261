import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import embedding_service.batching
from embedding_service.backend import BackendError, Batch, BatchResult, PassCost, View
from embedding_service.backend.fake import FakeBackend, checksum_vector
from embedding_service.batching import Batcher, Outcome, PassSlots, PendingRequest, Row
from embedding_service.errors import DeadlineExceeded, EmbedError, Overloaded, Unavailable
from embedding_service.queue import QueueLimits
from embedding_service.telemetry import BatchFacts
from tests.collector import no_collector, num_alive

VIEW = View(normalize=False)


class CountingTelemetry:
    def __init__(self) -> None:
        self.batches: list[BatchFacts] = []
        self.dropped: dict[str, int] = {}
        self.reused: dict[str, int] = {}
        self.looked_up: dict[str, int] = {}
        self.written: dict[str, int] = {}

    def batch_ended(self, facts: BatchFacts) -> None:
        self.batches.append(facts)

    def entries_dropped(self, reason: str, count: int) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + count

    def entries_reused(self, how: str, count: int) -> None:
        self.reused[how] = self.reused.get(how, 0) + count

    def shared_looked_up(self, result: str, count: int) -> None:
        self.looked_up[result] = self.looked_up.get(result, 0) + count

    def shared_written(self, result: str, count: int) -> None:
        self.written[result] = self.written.get(result, 0) + count


class Gate:
    """Holds every forward pass until it is opened."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.is_reached = threading.Event()

    def __call__(self, _: Batch) -> None:
        self.is_reached.set()
        assert self._event.wait(10)

    def open(self) -> None:
        self._event.set()

    def close(self) -> None:
        self._event.clear()


@asynccontextmanager
async def batching(
    backend: FakeBackend, telemetry: CountingTelemetry | None = None, **limits: float | None
) -> AsyncIterator[Batcher]:
    batcher = Batcher(backend, QueueLimits(**limits), telemetry or CountingTelemetry())  # type: ignore[arg-type]
    try:
        yield batcher
    finally:
        await batcher.drain(5)


def row(*ids: int) -> Row:
    return Row(ids, (VIEW,))


def soon(seconds: float = 10.0) -> float:
    return time.monotonic() + seconds


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


async def started(batcher: Batcher, *rows: Row) -> "asyncio.Task[Outcome]":
    """A call of which one batch runs, alone; the backend holds it."""
    task = asyncio.create_task(batcher.run(rows, deadline=soon()))
    await until(lambda: repr(batcher) == "<Batcher [1 running, 0 queued]>")
    return task


async def test_each_row_gets_its_own_vector() -> None:
    async with batching(FakeBackend()) as batcher:
        outcome = await batcher.run([row(1, 2), row(3), row(4, 5, 6)], deadline=soon())

    for ids, vectors in zip([(1, 2), (3,), (4, 5, 6)], outcome.vectors, strict=True):
        np.testing.assert_array_equal(checksum_vector(ids), vectors[0])


async def test_the_next_batch_gathers_while_the_current_one_runs() -> None:
    gate = Gate()
    backend = FakeBackend(fault=gate)
    async with batching(backend) as batcher:
        calls = [await started(batcher, row(9, 9))]
        calls += [asyncio.create_task(batcher.run([row(n, n)], deadline=soon())) for n in range(4)]
        await until(lambda: batcher.queue.num_entries == 4)
        gate.open()
        await asyncio.gather(*calls)

    assert [1, 4] == [len(batch.token_ids) for batch in backend.batches]


async def test_rows_that_trickle_in_beside_a_large_batch_gather_before_they_start() -> None:
    gate = Gate()
    backend = FakeBackend(concurrency=2, fault=lambda batch: gate(batch) if batch.token_ids[0] == (9, 9) else None)
    async with batching(backend) as batcher:
        calls = [await started(batcher, *[row(*range(40))] * 8, *[row(9, 9)] * 8)]
        for waiting in range(1, 4):
            calls.append(asyncio.create_task(batcher.run([row(waiting, 1)], deadline=soon())))
            await until(lambda expected=waiting: batcher.queue.num_entries == expected)
            await asyncio.sleep(0.01)
            assert 2 == len(backend.batches)
        calls.append(asyncio.create_task(batcher.run([row(4, 1)], deadline=soon())))
        await asyncio.gather(*calls[1:])
        gate.open()
        await calls[0]

    assert [4, 8, 8] == sorted(len(batch.token_ids) for batch in backend.batches)


async def test_batches_are_cut_and_counted_by_the_engines_own_prices() -> None:
    telemetry = CountingTelemetry()
    for cost in (PassCost(1e6, padding=0.5), PassCost(0.0, padding=0.5)):
        async with batching(FakeBackend(pass_cost=cost), telemetry) as batcher:
            await batcher.run([row(*range(60)), row(*range(9))], deadline=soon())

    assert [(2, 69 + 25), (1, 9), (1, 60)] == [(facts.num_rows, facts.computed_tokens) for facts in telemetry.batches]


@pytest.mark.parametrize("concurrency", [1, 2])
async def test_a_full_batch_is_cut_before_a_thread_is_free_for_it_and_only_one(concurrency: int) -> None:
    gate = Gate()
    backend = FakeBackend(concurrency=concurrency, fault=gate)
    async with batching(backend, max_batch_tokens=8) as batcher:
        calls = [asyncio.create_task(batcher.run([row(n)] * 8, deadline=soon())) for n in range(concurrency)]
        await until(lambda: len(backend.batches) == concurrency)
        calls += [asyncio.create_task(batcher.run([row(8, n)] * 4, deadline=soon())) for n in range(2)]
        await until(lambda: batcher.queue.num_entries == 4)

        assert f"<Batcher [{concurrency} running, 1 cut ahead, 4 queued]>" == repr(batcher)
        assert concurrency == len(backend.batches)
        gate.open()
        outcomes = await asyncio.gather(*calls)

    assert [8] * concurrency + [4] * 2 == [len(outcome.vectors) for outcome in outcomes]
    assert [8] * concurrency + [4] * 2 == [len(batch.token_ids) for batch in backend.batches]


async def _beside_a_running_pass(
    rows: list[Row], *, first: Row | None = None, is_bulk: bool = False, slots: PassSlots | None = None
) -> str:
    """What the batcher says of itself once *rows* wait beside a pass, of *first*; one of 8 tokens is full."""
    gate = Gate()
    batcher = Batcher(FakeBackend(fault=gate), QueueLimits(max_batch_tokens=8), CountingTelemetry(), slots)
    calls = [await started(batcher, first or row(1)), asyncio.create_task(batcher.run(rows, deadline=soon(), is_bulk=is_bulk))]
    await asyncio.sleep(0.01)
    said = repr(batcher)
    gate.open()
    await asyncio.gather(*calls)
    await batcher.drain(5)
    return said


@pytest.mark.parametrize(
    ("rows", "is_bulk", "num_sharing", "expected"),
    [
        pytest.param([row(1)] * 8, False, 0, "[1 running, 1 cut ahead, 0 queued]", id="a full batch is cut ahead"),
        pytest.param([row(1)] * 7, False, 0, "[1 running, 7 queued]", id="one that may still grow is not"),
        pytest.param([row(1), row(*range(40))], False, 0, "[1 running, 2 queued]", id="nor a small one with much behind it"),
        pytest.param([row(*range(200))], False, 0, "[1 running, 1 queued]", id="nor a long row, which short ones may pass"),
        pytest.param([*[row(1)] * 8, row(*range(200))], False, 0, "[1 running, 9 queued]", id="nor short ones in its turn"),
        pytest.param([row(1)] * 8, True, 0, "[1 running, 8 queued]", id="nor bulk rows, which may be overtaken"),
        pytest.param([row(1)] * 8, False, 1, "[1 running, 8 queued]", id="nor where another trunk waits for the thread too"),
    ],
)
async def test_a_batch_is_cut_ahead_where_nothing_better_could_come(
    rows: list[Row], is_bulk: bool, num_sharing: int, expected: str
) -> None:
    slots = PassSlots(1)
    for _ in range(num_sharing):
        slots.join(lambda: None)

    assert f"<Batcher {expected}>" == await _beside_a_running_pass(rows, is_bulk=is_bulk, slots=slots)
    assert 1 == slots.num_free


async def test_nothing_is_cut_to_follow_a_long_pass() -> None:
    said = await _beside_a_running_pass([row(1)] * 8, first=row(*range(200)))

    assert "<Batcher [1 running, 8 queued]>" == said


async def test_what_is_cut_ahead_follows_a_short_pass_and_takes_no_turn_of_a_long_row() -> None:
    gates = {17: Gate(), 1: Gate()}
    backend = FakeBackend(concurrency=2, fault=lambda batch: gates[len(batch.token_ids[0])](batch))
    async with batching(backend, max_batch_tokens=8, long_tokens=16, side_pass_share=0.0) as batcher:
        long, short = row(*range(17)), row(1)
        calls = []
        for rows in ([long], [short] * 8, [long], [short] * 8):
            calls.append(asyncio.create_task(batcher.run(rows, deadline=soon())))
            await asyncio.sleep(0.01)
        assert "<Batcher [2 running, 1 cut ahead, 1 queued]>" == repr(batcher)

        # The long pass ends first, and the short one that is cut ahead stays where it is.
        gates[17].open()
        await asyncio.gather(calls[0], calls[2])
        assert [1, 8, 1] == [len(batch.token_ids) for batch in backend.batches]
        gates[1].open()
        await asyncio.gather(*calls)

    assert [1, 8, 1, 8] == [len(batch.token_ids) for batch in backend.batches]


async def test_who_leaves_or_comes_too_late_in_a_batch_cut_ahead_is_never_executed() -> None:
    gate, telemetry = Gate(), CountingTelemetry()
    backend = FakeBackend(fault=gate)
    async with batching(backend, telemetry, max_batch_tokens=3) as batcher:
        first = await started(batcher, row(1))
        stayer, leaver, late = (
            asyncio.create_task(batcher.run([row(number)], deadline=soon(seconds)))
            for number, seconds in ((2, 10.0), (3, 10.0), (4, 0.3))
        )
        await until(lambda: "1 cut ahead, 0 queued]" in repr(batcher))
        leaver.cancel()
        with pytest.raises(DeadlineExceeded):
            await late
        gate.open()
        await asyncio.gather(first, stayer)

    assert leaver.cancelled()
    assert [((1,),), ((2,),)] == [batch.token_ids for batch in backend.batches]
    assert 2 == sum(telemetry.dropped.values())


async def test_a_fault_fails_the_pass_that_runs_and_the_batch_cut_ahead_of_it_goes_well() -> None:
    gate, faults = Gate(), iter([RuntimeError("out of memory"), None])

    def fail_once(batch: Batch) -> None:
        gate(batch)
        if (fault := next(faults)) is not None:
            raise fault

    async with batching(FakeBackend(fault=fail_once), max_batch_tokens=2) as batcher:
        failed, ahead = await started(batcher, row(1)), asyncio.create_task(batcher.run([row(2, 3)], deadline=soon()))
        await until(lambda: "1 cut ahead, 0 queued]" in repr(batcher))
        gate.open()
        with pytest.raises(Unavailable, match="forward pass failed"):
            await failed
        np.testing.assert_array_equal(checksum_vector((2, 3)), (await ahead).vectors[0][0])
        assert batcher.is_healthy


async def test_why_passes_fail_is_told_once_each_time_they_begin_to_by_place_and_not_by_message(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = FakeBackend()

    def fail(_: Batch) -> None:
        raise RuntimeError("a caller's words")

    async with batching(backend) as batcher:
        for fault in (fail, fail, lambda _: None, fail):
            backend.fault = fault
            with contextlib.suppress(Unavailable):
                await batcher.run([row(1)], deadline=soon())

    told = [record.getMessage() for record in caplog.records if record.name == "embedding_service.batching"]
    assert 2 == len(told)
    assert all(f"a forward pass of {backend.trunk.name} failed: RuntimeError, " in line and " in fail" in line for line in told)
    assert "words" not in caplog.text


async def test_callers_of_a_failed_pass_are_freed_and_need_no_collector() -> None:
    def fail(_: Batch) -> None:
        raise RuntimeError("out of memory")

    async with batching(FakeBackend(fault=fail)) as batcher:
        with no_collector():
            before = num_alive(PendingRequest)
            for number in range(5):
                with contextlib.suppress(Unavailable):
                    await batcher.run([row(number)], deadline=soon())
            # The pool's thread may let go of the pass a moment later than it hands it over.
            await until(lambda: num_alive(PendingRequest) <= before)


async def test_callers_are_told_where_the_thread_itself_fails_and_the_next_pass_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    async with batching(FakeBackend()) as batcher:
        with monkeypatch.context() as patch, no_collector():
            patch.setattr(embedding_service.batching, "run_pass", fail)
            before = num_alive(PendingRequest)
            for number in range(3):
                with pytest.raises(Unavailable, match="forward pass failed"):
                    await batcher.run([row(number)], deadline=soon())
            assert not batcher.is_healthy
            await until(lambda: num_alive(PendingRequest) <= before)
        await batcher.run([row(1)], deadline=soon())
        assert batcher.is_healthy


async def test_a_pass_that_fails_at_once_does_not_make_the_service_take_itself_for_quick() -> None:
    gate, backend = Gate(), FakeBackend()

    def fail(_: Batch) -> None:
        raise RuntimeError("out of memory")

    backend.fault = fail
    async with batching(backend, max_batch_tokens=8, max_queued_tokens=16) as batcher:
        with pytest.raises(Unavailable):
            await batcher.run([row(1)] * 8, deadline=soon())
        backend.fault = gate
        calls = []
        for state in (
            f"1 running{waiting} queued" for waiting in (", 0", ", 1 cut ahead, 0", ", 1 cut ahead, 8", ", 1 cut ahead, 16")
        ):
            calls.append(asyncio.create_task(batcher.run([row(2)] * 8, deadline=soon())))
            await until(lambda state=state: repr(batcher) == f"<Batcher [{state}]>")
        with pytest.raises(Overloaded) as told:
            await batcher.run([row(3)], deadline=soon())
        gate.open()
        await asyncio.gather(*calls)

    assert 1.0 == told.value.retry_after


async def test_a_batch_cut_ahead_is_told_when_the_service_stops_before_its_turn() -> None:
    gate = Gate()
    backend = FakeBackend(fault=gate)
    batcher = Batcher(backend, QueueLimits(max_batch_tokens=2), CountingTelemetry())
    calls = [await started(batcher, row(1)), asyncio.create_task(batcher.run([row(2, 3)], deadline=soon()))]
    await until(lambda: "1 cut ahead, 0 queued]" in repr(batcher))
    await batcher.drain(0.02)
    with pytest.raises(Unavailable, match="stopping"):
        await calls[1]
    gate.open()
    await calls[0]

    assert 1 == len(backend.batches)


@pytest.mark.parametrize(
    ("lone_tokens", "expected"),
    [
        pytest.param(None, [2, 2], id="several side by side"),
        pytest.param(7, [2, 2], id="or, where it is not little"),
        pytest.param(8, [4], id="one on all threads, where it is"),
    ],
)
async def test_what_arrives_in_one_turn_of_the_loop_shares_a_batch(lone_tokens: int | None, expected: list[int]) -> None:
    backend = FakeBackend(concurrency=2)
    async with batching(backend, lone_tokens=lone_tokens) as batcher:
        await asyncio.gather(*(batcher.run([row(n, n)], deadline=soon()) for n in range(4)))

    assert expected == [len(batch.token_ids) for batch in backend.batches]
    assert [expected == [4]] * len(expected) == [batch.is_alone for batch in backend.batches]


async def test_a_departed_caller_is_never_executed() -> None:
    gate, telemetry = Gate(), CountingTelemetry()
    backend = FakeBackend(fault=gate)
    async with batching(backend, telemetry) as batcher:
        first = await started(batcher, row(1))
        leaver = asyncio.create_task(batcher.run([row(2)], deadline=soon()))
        await until(lambda: batcher.queue.num_entries == 1)
        leaver.cancel()
        await asyncio.wait([leaver])
        gate.open()
        await first

    assert leaver.cancelled()
    assert [((1,),)] == [batch.token_ids for batch in backend.batches]
    assert {"departed": 1} == telemetry.dropped


async def test_a_caller_that_leaves_mid_batch_does_not_disturb_its_mates() -> None:
    gate = Gate()
    async with batching(FakeBackend(fault=gate)) as batcher:
        blocker = await started(batcher, row(9))
        leaver = asyncio.create_task(batcher.run([row(1)], deadline=soon()))
        stayer = asyncio.create_task(batcher.run([row(2)], deadline=soon()))
        await asyncio.sleep(0)
        leaver.cancel()
        gate.open()
        await blocker
        outcome = await stayer

    np.testing.assert_array_equal(checksum_vector((2,)), outcome.vectors[0][0])


async def test_a_passed_deadline_is_an_answer_and_no_work() -> None:
    gate = Gate()
    backend = FakeBackend(fault=gate)
    async with batching(backend) as batcher:
        blocker = await started(batcher, row(1))
        await asyncio.sleep(0)
        with pytest.raises(DeadlineExceeded):
            await batcher.run([row(2)], deadline=soon(0.02))
        gate.open()
        await blocker

    assert 1 == len(backend.batches)


async def test_a_deadline_that_had_passed_on_arrival_is_refused_at_once() -> None:
    backend = FakeBackend()
    async with batching(backend) as batcher:
        with pytest.raises(DeadlineExceeded, match="on arrival"):
            await batcher.run([row(1)], deadline=soon(-1))

    assert [] == backend.batches


async def test_a_full_queue_refuses_the_whole_list_and_says_when_to_come_back() -> None:
    gate = Gate()
    async with batching(FakeBackend(fault=gate), max_queued_tokens=4) as batcher:
        running = await started(batcher, row(1))
        queued = asyncio.create_task(batcher.run([row(2, 2, 2)], deadline=soon()))
        await until(lambda: batcher.queue.num_entries == 1)
        with pytest.raises(Overloaded) as refusal:
            await batcher.run([row(3), row(4)], deadline=soon())
        waiting = batcher.queue.num_entries
        gate.open()
        await asyncio.gather(running, queued)

    assert 1 == waiting
    assert refusal.value.retry_after is not None
    assert 0 < refusal.value.retry_after <= 10


class OddBackend(FakeBackend):
    """Answers whatever it is told to, whatever was asked."""

    def __init__(self, answer: BatchResult) -> None:
        super().__init__()
        self.answer = answer

    def embed(self, batch: Batch) -> BatchResult:
        return self.answer


@pytest.mark.parametrize("answer", [[], [[]], [[checksum_vector((1,))]] * 3])
async def test_another_number_of_results_fails_the_batch_instead_of_swapping_answers(answer: BatchResult) -> None:
    async with batching(OddBackend(answer)) as batcher:
        with pytest.raises(Unavailable):
            await batcher.run([row(1), row(2)], deadline=soon())

    assert not batcher.is_healthy


async def test_a_fault_fails_its_batch_only_and_the_next_one_runs() -> None:
    faults = iter([RuntimeError("out of memory")])

    def fault(_: Batch) -> None:
        for error in faults:
            raise error

    async with batching(FakeBackend(fault=fault)) as batcher:
        with pytest.raises(Unavailable):
            await batcher.run([row(1)], deadline=soon())
        sick = not batcher.is_healthy
        await batcher.run([row(2)], deadline=soon())

    assert sick
    assert batcher.is_healthy


async def test_draining_finishes_what_is_queued_and_refuses_what_comes() -> None:
    gate = Gate()
    async with batching(FakeBackend(fault=gate)) as batcher:
        calls = [await started(batcher, row(1)), asyncio.create_task(batcher.run([row(2)], deadline=soon()))]
        await until(lambda: batcher.queue.num_entries == 1)
        draining = asyncio.create_task(batcher.drain(5))
        await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await batcher.run([row(3)], deadline=soon())
        gate.open()
        await asyncio.gather(draining, *calls)


async def test_draining_waits_for_what_another_trunk_has_the_processor_of() -> None:
    gate, slots = Gate(), PassSlots(1)
    busy = Batcher(FakeBackend(fault=gate), QueueLimits(), CountingTelemetry(), slots)
    waiting = Batcher(FakeBackend(), QueueLimits(), CountingTelemetry(), slots)
    first = await started(busy, row(1))
    second = asyncio.create_task(waiting.run([row(2)], deadline=soon()))
    await until(lambda: waiting.queue.num_entries == 1)

    draining = [asyncio.create_task(batcher.drain(5)) for batcher in (waiting, busy)]
    await asyncio.sleep(0)
    assert not second.done()
    gate.open()

    await asyncio.gather(*draining, first, second)


async def test_draining_waits_for_another_trunk_no_longer_than_its_grace() -> None:
    gate, slots = Gate(), PassSlots(1)
    busy = Batcher(FakeBackend(fault=gate), QueueLimits(), CountingTelemetry(), slots)
    waiting = Batcher(FakeBackend(), QueueLimits(), CountingTelemetry(), slots)
    first = await started(busy, row(1))
    second = asyncio.create_task(waiting.run([row(2)], deadline=soon()))
    await until(lambda: waiting.queue.num_entries == 1)

    await waiting.drain(0.01)

    with pytest.raises(Unavailable, match="stopping"):
        await second
    gate.open()
    await first
    await busy.drain(5)


async def test_a_bulk_row_gets_its_turn_while_the_next_batch_of_interactive_ones_is_always_there() -> None:
    gate = Gate()
    backend = FakeBackend(fault=gate)
    async with batching(backend, max_batch_requests=4, ageing=1e9) as batcher:

        async def keep_asking(number: int) -> None:
            for turn in range(2, 52):
                await batcher.run([row(number, turn)], deadline=soon())

        asking = [asyncio.create_task(keep_asking(number)) for number in range(2, 34)]
        await until(lambda: "1 running, 1 cut ahead" in repr(batcher))
        bulk = asyncio.create_task(batcher.run([row(1)], deadline=soon(), is_bulk=True))
        await until(lambda: batcher.queue.num_entries - batcher.queue.rows.num_interactive == 1)
        gate.open()
        await asyncio.gather(bulk, *asking)

    [turn] = [place for place, batch in enumerate(backend.batches) if (1,) in batch.token_ids]
    assert turn < 20 < len(backend.batches) / 2


async def test_what_does_not_finish_within_the_grace_is_told_so() -> None:
    gate = Gate()
    async with batching(FakeBackend(fault=gate)) as batcher:
        calls = [await started(batcher, row(1)), asyncio.create_task(batcher.run([row(2)], deadline=soon()))]
        await until(lambda: batcher.queue.num_entries == 1)
        await batcher.drain(0.01)
        with pytest.raises(Unavailable, match="stopping"):
            await calls[1]
        gate.open()
        await calls[0]


@settings(max_examples=60, deadline=None)
@given(
    calls=st.lists(
        st.tuples(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.sampled_from(["stay", "leave", "short"])), max_size=12
    ),
    failing=st.sets(st.integers(0, 8)),
    wrong_count=st.sets(st.integers(0, 8)),
    drain_early=st.booleans(),
    # Of the small budget most batches are cut ahead.
    max_batch_tokens=st.sampled_from([16, 512]),
    # None of the work is little, some of it, all of it.
    lone_tokens=st.sampled_from([0, 16, 1_000]),
    # Some of the rows are long, or none.
    long_tokens=st.sampled_from([8, 128]),
)
def test_every_caller_is_answered_exactly_once_whatever_happens(
    calls: list[tuple[list[int], str]],
    failing: set[int],
    wrong_count: set[int],
    drain_early: bool,
    max_batch_tokens: int,
    lone_tokens: int,
    long_tokens: int,
) -> None:
    class Chaotic(FakeBackend):
        def embed(self, batch: Batch) -> BatchResult:
            number = len(self.batches)
            if number in failing:
                self.batches.append(batch)
                raise RuntimeError("chaos")
            result = super().embed(batch)
            return result[:-1] if number in wrong_count else result

    async def one(batcher: Batcher, number: int, sizes: list[int], manner: str) -> str:
        rows = [row(*([number + 1] * size)) for size in sizes]
        try:
            outcome = await batcher.run(rows, deadline=soon(0.0005 if manner == "short" else 10))
        except EmbedError:
            return "error"
        for item, vectors in zip(rows, outcome.vectors, strict=True):
            np.testing.assert_array_equal(checksum_vector(item.token_ids), vectors[0])
        return "ok"

    async def scenario() -> None:
        limits = QueueLimits(
            max_queued_tokens=200, max_batch_tokens=max_batch_tokens, lone_tokens=lone_tokens, long_tokens=long_tokens
        )
        batcher = Batcher(Chaotic(concurrency=2), limits, CountingTelemetry())
        tasks = [asyncio.create_task(one(batcher, n, *call)) for n, call in enumerate(calls)]
        await asyncio.sleep(0)
        for task, (_, manner) in zip(tasks, calls, strict=True):
            if manner == "leave":
                task.cancel()
        if drain_early:
            await batcher.drain(5)
        async with asyncio.timeout(10):
            results = await asyncio.gather(*tasks, return_exceptions=True)
        await batcher.drain(5)
        for result, (_, manner) in zip(results, calls, strict=True):
            assert result in ("ok", "error") or (manner == "leave" and isinstance(result, asyncio.CancelledError))
        assert "<Batcher [0 running, 0 queued]>" == repr(batcher)

    asyncio.run(scenario())


async def test_nothing_is_added_behind_an_entry_that_has_waited_too_long() -> None:
    gate = Gate()
    async with batching(FakeBackend(fault=gate), max_queue_seconds=0.05) as batcher:
        first = asyncio.create_task(batcher.run([row(1)], deadline=soon()))
        await until(lambda: "1 running" in repr(batcher))
        waiting = asyncio.create_task(batcher.run([row(2)], deadline=soon()))
        await until(lambda: batcher.queue.oldest_age(time.monotonic()) > 0.05)
        with pytest.raises(Overloaded, match="too slowly") as refused:
            await batcher.run([row(3)], deadline=soon())
        bulk = asyncio.create_task(batcher.run([row(4)], deadline=soon(), is_bulk=True))
        await until(lambda: batcher.queue.num_entries == 2)
        gate.open()
        await asyncio.gather(first, waiting, bulk)
        await batcher.run([row(5)], deadline=soon())

    assert refused.value.retry_after


async def test_batchers_of_one_processor_share_its_slots_in_turns() -> None:
    gate, slots, order = Gate(), PassSlots(2), []

    def noting(name: str) -> Callable[[Batch], None]:
        return lambda batch: (gate(batch), order.append(name))[0]

    backends = {name: FakeBackend(concurrency=2, fault=noting(name)) for name in "ab"}
    batchers = {
        name: Batcher(backend, QueueLimits(max_batch_requests=1), CountingTelemetry(), slots)
        for name, backend in backends.items()
    }
    asked = [asyncio.create_task(batchers["a"].run([row(number)], deadline=soon())) for number in range(1, 7)]
    await until(lambda: len(backends["a"].batches) == 2)
    asked += [asyncio.create_task(batchers["b"].run([row(number)], deadline=soon())) for number in range(1, 3)]
    await until(lambda: batchers["b"].queue.num_entries == 2)

    assert [] == backends["b"].batches
    gate.open()
    await asyncio.gather(*asked)
    for batcher in batchers.values():
        await batcher.drain(5)

    assert 2 == slots.num_free
    assert {"a": 6, "b": 2} == {name: order.count(name) for name in "ab"}
    # Whoever came last does not wait for all of the other's.
    assert "b" in order[2:5]


async def test_a_pass_has_the_processor_to_itself_only_while_no_other_runs_or_waits() -> None:
    gate = Gate()
    backend = FakeBackend(concurrency=2, fault=gate)
    async with batching(backend, max_batch_requests=1) as batcher:
        first = await started(batcher, row(1))
        beside = asyncio.create_task(batcher.run([row(2)], deadline=soon()))
        await until(lambda: len(backend.batches) == 2)
        gate.open()
        await asyncio.gather(first, beside)
        await batcher.run([row(3), row(4)], deadline=soon())
        await batcher.run([row(5)], deadline=soon())

    told = {batch.token_ids: batch.is_alone for batch in backend.batches}
    assert {((1,),): True, ((2,),): False, ((5,),): True} == {ids: told[ids] for ids in (((1,),), ((2,),), ((5,),))}
    assert [False, False] == [told[ids] for ids in (((3,),), ((4,),))]


async def test_little_that_comes_during_a_small_lone_pass_is_the_next_one() -> None:
    gate = Gate()
    backend = FakeBackend(concurrency=2, fault=gate)
    async with batching(backend, lone_tokens=4) as batcher:
        calls = [await started(batcher, row(1, 1, 1, 1))]
        calls += [asyncio.create_task(batcher.run([row(n, n)], deadline=soon())) for n in (2, 3)]
        await until(lambda: batcher.queue.num_tokens == 4)
        # Whatever was put off to the loop's next turn has had it.
        await asyncio.sleep(0)
        meanwhile = repr(batcher)
        gate.open()
        await asyncio.gather(*calls)

    assert "<Batcher [1 running, 2 queued]>" == meanwhile
    assert [(1, True), (2, True)] == [(len(batch.token_ids), batch.is_alone) for batch in backend.batches]


async def test_little_that_makes_several_batches_runs_them_one_after_another() -> None:
    backend = FakeBackend(concurrency=2)
    async with batching(backend, lone_tokens=8, max_batch_requests=2) as batcher:
        await asyncio.gather(*(batcher.run([row(n, n)], deadline=soon()) for n in range(3)))

    assert [(2, True), (1, True)] == [(len(batch.token_ids), batch.is_alone) for batch in backend.batches]


@pytest.mark.parametrize(
    ("first", "later"),
    [
        pytest.param((1, 1), [(2, 2, 2), (3, 3)], id="more than little"),
        pytest.param((1, 1, 1, 1, 1), [(2, 2)], id="beside a pass that takes long"),
    ],
)
async def test_what_should_not_wait_for_a_lone_pass_starts_beside_it(
    first: tuple[int, ...], later: list[tuple[int, ...]]
) -> None:
    gate = Gate()
    backend = FakeBackend(concurrency=2, fault=gate)
    async with batching(backend, lone_tokens=4) as batcher:
        calls = [await started(batcher, row(*first))]
        calls += [asyncio.create_task(batcher.run([row(*ids)], deadline=soon())) for ids in later]
        await until(lambda: len(backend.batches) == 2)
        gate.open()
        await asyncio.gather(*calls)

    assert sorted([True, False]) == sorted(batch.is_alone for batch in backend.batches)


async def test_little_does_not_wait_for_a_lone_pass_that_has_another_beside_it() -> None:
    gate = Gate()
    backend = FakeBackend(concurrency=3, fault=gate)
    async with batching(backend, lone_tokens=4) as batcher:
        calls = [await started(batcher, row(1))]
        calls.append(asyncio.create_task(batcher.run([row(2, 2, 2, 2, 2)], deadline=soon())))
        await until(lambda: len(backend.batches) == 2)
        calls.append(asyncio.create_task(batcher.run([row(3)], deadline=soon())))
        await until(lambda: len(backend.batches) == 3)
        gate.open()
        await asyncio.gather(*calls)


async def test_nothing_waits_any_more_once_the_lone_pass_has_ended() -> None:
    lone, beside = Gate(), Gate()
    backend = FakeBackend(concurrency=2, fault=lambda batch: (lone if batch.num_tokens == 1 else beside)(batch))
    async with batching(backend, lone_tokens=4) as batcher:
        first = await started(batcher, row(1))
        calls = [asyncio.create_task(batcher.run([row(2, 2, 2, 2, 2)], deadline=soon()))]
        await until(lambda: len(backend.batches) == 2)
        lone.open()
        await first
        calls.append(asyncio.create_task(batcher.run([row(3, 3)], deadline=soon())))
        await until(lambda: len(backend.batches) == 3)
        beside.open()
        await asyncio.gather(*calls)

    assert [True, False, False] == [batch.is_alone for batch in sorted(backend.batches, key=lambda batch: batch.token_ids)]


async def test_an_interactive_row_starts_beside_a_lone_pass_of_bulk_ones() -> None:
    gate = Gate()
    backend = FakeBackend(concurrency=2, fault=gate)
    async with batching(backend, lone_tokens=64) as batcher:
        bulk = asyncio.create_task(batcher.run([row(1)], deadline=soon(), is_bulk=True))
        await until(lambda: len(backend.batches) == 1)
        interactive = asyncio.create_task(batcher.run([row(2)], deadline=soon()))
        await until(lambda: len(backend.batches) == 2)
        gate.open()
        await asyncio.gather(bulk, interactive)


async def test_what_waited_for_a_lone_pass_that_failed_is_run() -> None:
    gate = Gate()

    def fault(batch: Batch) -> None:
        gate(batch)
        if len(backend.batches) == 1:
            raise BackendError("out of luck")

    backend = FakeBackend(concurrency=2, fault=fault)
    async with batching(backend, lone_tokens=64) as batcher:
        unlucky = await started(batcher, row(1))
        waiting = asyncio.create_task(batcher.run([row(2)], deadline=soon()))
        await until(lambda: batcher.queue.num_entries == 1)
        gate.open()
        with pytest.raises(Unavailable):
            await unlucky
        await waiting


async def test_a_pass_beside_one_of_another_trunk_is_not_alone() -> None:
    gate, slots = Gate(), PassSlots(2)
    backends = [FakeBackend(concurrency=2, fault=gate) for _ in range(2)]
    batchers = [Batcher(backend, QueueLimits(), CountingTelemetry(), slots) for backend in backends]
    asked = [await started(batcher, row(1)) for batcher in batchers]
    gate.open()
    await asyncio.gather(*asked)
    for batcher in batchers:
        await batcher.drain(5)

    assert [True, False] == [backend.batches[0].is_alone for backend in backends]


async def test_nothing_interactive_is_added_behind_more_work_than_may_wait() -> None:
    gate = Gate()
    gate.open()
    backend = FakeBackend(fault=gate, seconds_per_token=0.01)
    async with batching(backend, max_batch_tokens=4, max_wait_seconds=0.05) as batcher:
        await batcher.run([row(1, 2, 3, 4)], deadline=soon())  # 100 tokens a second, at most
        gate.close()
        asked = [asyncio.create_task(batcher.run([row(1)], deadline=soon()))]
        await until(lambda: "1 running" in repr(batcher))
        # The first of them is cut for the thread that runs, the other waits.
        for waiting in range(2):
            asked.append(asyncio.create_task(batcher.run([row(*range(6))], deadline=soon())))
            await until(lambda expected=waiting: repr(batcher) == f"<Batcher [1 running, 1 cut ahead, {expected} queued]>")
        with pytest.raises(Overloaded, match="too much is waiting") as refused:
            await batcher.run([row(3)], deadline=soon())
        asked.append(asyncio.create_task(batcher.run([row(4)], deadline=soon(), is_bulk=True)))
        await until(lambda: batcher.queue.num_entries == 2)
        gate.open()
        await asyncio.gather(*asked)
        await batcher.run([row(5)], deadline=soon())

    assert refused.value.retry_after


@pytest.mark.parametrize(("num_tokens", "is_learned"), [(4, True), (3, False)])
async def test_speed_is_learned_from_passes_of_a_quarter_of_the_budget_and_not_from_less(
    num_tokens: int, is_learned: bool
) -> None:
    gate = Gate()
    gate.open()
    backend = FakeBackend(fault=gate, seconds_per_token=0.01)
    async with batching(backend, max_batch_tokens=16, max_wait_seconds=0.05) as batcher:
        await batcher.run([row(*range(num_tokens))], deadline=soon())
        gate.close()
        asked = [asyncio.create_task(batcher.run([row(1)], deadline=soon()))]
        await until(lambda: "1 running" in repr(batcher))
        asked.append(asyncio.create_task(batcher.run([row(*range(10))], deadline=soon())))
        await until(lambda: batcher.queue.num_entries == 1)
        refused = pytest.raises(Overloaded, match="too much is waiting") if is_learned else nullcontext()
        with refused:
            batcher.check_room([], is_bulk=False)
        gate.open()
        await asyncio.gather(*asked)


async def test_bulk_that_waits_is_not_in_the_way_of_interactive_entries() -> None:
    gate = Gate()
    gate.open()
    backend = FakeBackend(fault=gate, seconds_per_token=0.01)
    async with batching(backend, max_batch_tokens=4, max_wait_seconds=0.05) as batcher:
        await batcher.run([row(1, 2, 3, 4)], deadline=soon())
        gate.close()
        asked = [asyncio.create_task(batcher.run([row(1)], deadline=soon()))]
        await until(lambda: "1 running" in repr(batcher))
        asked.append(asyncio.create_task(batcher.run([row(*range(40))], deadline=soon(), is_bulk=True)))
        await until(lambda: batcher.queue.num_entries == 1)
        asked.append(asyncio.create_task(batcher.run([row(3)], deadline=soon())))
        await until(lambda: batcher.queue.num_entries == 2)
        gate.open()
        await asyncio.gather(*asked)
