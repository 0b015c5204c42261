import asyncio
import contextlib
import gc
import time
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_service.backend import FloatArray, View
from embedding_service.backend.fake import FakeBackend, checksum_vector
from embedding_service.batching import Batcher, Row
from embedding_service.errors import DeadlineExceeded, EmbedError, Overloaded, Unavailable
from embedding_service.queue import Entry, QueueLimits
from embedding_service.reuse import Reuse, VectorCache, _Flight
from tests.collector import no_collector, num_alive
from tests.embedding_service.test_batching import VIEW, CountingTelemetry, Gate, row, soon, until

IDS = (1, 2, 3)


def vector(*numbers: float) -> FloatArray:
    return np.array(numbers, dtype=np.float32)


@asynccontextmanager
async def reusing(
    backend: FakeBackend, telemetry: CountingTelemetry | None = None, *, cache_bytes: int = 1_000_000, **limits: float
) -> AsyncIterator[Reuse]:
    telemetry = telemetry or CountingTelemetry()
    batcher = Batcher(backend, QueueLimits(**limits), telemetry)  # type: ignore[arg-type]
    try:
        yield Reuse(batcher, VectorCache(cache_bytes), telemetry)
    finally:
        await batcher.drain(5)


def executed(backend: FakeBackend) -> list[tuple[int, ...]]:
    return [ids for batch in backend.batches for ids in batch.token_ids]


def test_a_vector_is_found_by_its_ids_and_all_its_views() -> None:
    cache = VectorCache(10_000)
    cache.keep(IDS, [View()], [vector(1)])

    assert [[1.0]] == [found.tolist() for found in cache.find(IDS, [View()]) or []]
    assert cache.find((1, 2), [View()]) is None
    assert cache.find(IDS, [View("cls")]) is None
    assert cache.find(IDS, [View(), View("cls")]) is None


def test_the_least_recently_used_vectors_leave_when_the_memory_is_full() -> None:
    cache = VectorCache(3 * (400 + 8 + 4))
    for number in (1, 2, 3):
        cache.keep((number,), [VIEW], [vector(number)])
    cache.find((1,), [VIEW])
    cache.keep((4,), [VIEW], [vector(4)])

    assert [True, False, True, True] == [cache.find((number,), [VIEW]) is not None for number in (1, 2, 3, 4)]
    assert cache.num_bytes <= 3 * 412


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 50)), max_size=60), st.integers(0, 3_000))
def test_a_cache_never_holds_more_than_its_bytes_and_counts_them_right(kept: list[tuple[int, int]], max_bytes: int) -> None:
    cache = VectorCache(max_bytes)
    for number, width in kept:
        cache.keep((number,), [VIEW], [np.full(width, number, dtype=np.float32)])
        assert 0 <= cache.num_bytes <= max_bytes
    held = [found for number in range(10) if (found := cache.find((number,), [VIEW]))]
    assert cache.num_bytes == sum(found[0].nbytes + 408 for found in held)


def test_no_memory_means_no_cache_and_token_vectors_are_never_kept() -> None:
    none, cache = VectorCache(0), VectorCache(10_000)
    none.keep(IDS, [VIEW], [vector(1)])
    cache.keep(IDS, [View("tokens")], [np.ones((3, 4), dtype=np.float32)])

    assert "<VectorCache [0 vectors, 0 bytes]>" == repr(none) == repr(cache)


def test_a_vector_that_changed_in_memory_is_forgotten_instead_of_answered() -> None:
    cache = VectorCache(10_000)
    cache.keep(IDS, [VIEW], [vector(1, 2)])
    held = cache.find(IDS, [VIEW])
    assert held is not None
    held[0][1] = 7

    assert cache.find(IDS, [VIEW]) is None
    assert 0 == cache.num_bytes


async def test_an_input_seen_before_needs_no_pass() -> None:
    backend, telemetry = FakeBackend(), CountingTelemetry()
    async with reusing(backend, telemetry) as reuse:
        first = await reuse.run([row(*IDS)], deadline=soon())
        again = await reuse.run([row(9), row(*IDS)], deadline=soon())

    assert sorted([IDS, (9,)]) == sorted(executed(backend))
    np.testing.assert_array_equal(first.vectors[0][0], again.vectors[1][0])
    np.testing.assert_array_equal(checksum_vector((9,)), again.vectors[0][0])
    assert {"cached": 1} == telemetry.reused


async def test_equal_inputs_at_once_share_one_pass_and_each_caller_is_answered() -> None:
    backend, telemetry, gate = FakeBackend(), CountingTelemetry(), Gate()
    backend.fault = gate
    async with reusing(backend, telemetry, cache_bytes=0) as reuse:
        calls = [asyncio.create_task(reuse.run([row(*IDS), row(*IDS)], deadline=soon())) for _ in range(3)]
        await until(lambda: bool(backend.batches))
        calls.append(asyncio.create_task(reuse.run([row(*IDS)], deadline=soon())))
        await asyncio.sleep(0.01)
        gate.open()
        outcomes = await asyncio.gather(*calls)

    assert [IDS] == executed(backend)
    assert {"joined": 6} == telemetry.reused
    for outcome in outcomes:
        for vectors in outcome.vectors:
            np.testing.assert_array_equal(checksum_vector(IDS), vectors[0])
    assert all(outcome.queue_seconds >= 0 for outcome in outcomes)


async def test_other_views_of_the_same_input_are_another_entry() -> None:
    backend = FakeBackend()
    async with reusing(backend) as reuse:
        await asyncio.gather(
            reuse.run([Row(IDS, (VIEW,))], deadline=soon()),
            reuse.run([Row(IDS, (View("tokens"),))], deadline=soon()),
        )

    assert [IDS, IDS] == executed(backend)


async def test_the_first_caller_may_leave_and_the_others_are_still_answered() -> None:
    backend, gate = FakeBackend(), Gate()
    backend.fault = gate
    async with reusing(backend) as reuse:
        blocking = asyncio.create_task(reuse.run([row(8)], deadline=soon()))
        await until(lambda: bool(backend.batches))
        first, second = (asyncio.create_task(reuse.run([row(*IDS)], deadline=soon(wait))) for wait in (1, 10))
        await asyncio.sleep(0.01)
        first.cancel()
        gate.open()
        outcome = await second
        await blocking

    np.testing.assert_array_equal(checksum_vector(IDS), outcome.vectors[0][0])
    assert [(8,), IDS] == executed(backend)


async def test_an_input_all_callers_left_is_not_executed_and_a_newcomer_gets_a_pass_of_its_own() -> None:
    backend, gate = FakeBackend(), Gate()
    backend.fault = gate
    async with reusing(backend) as reuse:
        blocking = asyncio.create_task(reuse.run([row(8)], deadline=soon()))
        await until(lambda: bool(backend.batches))
        leaving = asyncio.create_task(reuse.run([row(*IDS)], deadline=soon()))
        await asyncio.sleep(0.01)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        coming = asyncio.create_task(reuse.run([row(*IDS)], deadline=soon()))
        await asyncio.sleep(0.01)
        gate.open()
        await asyncio.gather(blocking, coming)

    assert [(8,), IDS] == executed(backend)


async def test_the_most_patient_caller_decides_how_long_a_shared_input_may_wait() -> None:
    backend, gate = FakeBackend(), Gate()
    backend.fault = gate
    async with reusing(backend) as reuse:
        blocking = asyncio.create_task(reuse.run([row(8)], deadline=soon()))
        await until(lambda: bool(backend.batches))
        hasty, patient = (asyncio.create_task(reuse.run([row(*IDS)], deadline=soon(wait))) for wait in (0.05, 10))
        with pytest.raises(EmbedError, match="the deadline passed"):
            await hasty
        gate.open()
        outcome = await patient
        await blocking

    np.testing.assert_array_equal(checksum_vector(IDS), outcome.vectors[0][0])


async def test_an_interactive_caller_does_not_wait_in_the_class_of_a_bulk_one() -> None:
    backend, gate = FakeBackend(), Gate()
    backend.fault = gate
    async with reusing(backend, max_batch_requests=1) as reuse:
        calls = [asyncio.create_task(reuse.run([row(8)], deadline=soon()))]
        await until(lambda: bool(backend.batches))
        for ids, is_bulk in ((IDS, True), ((4,), False), (IDS, False)):
            calls.append(asyncio.create_task(reuse.run([row(*ids)], deadline=soon(), is_bulk=is_bulk)))
            await asyncio.sleep(0.01)
        gate.open()
        await asyncio.gather(*calls)

    assert [(8,), (4,), IDS, IDS] == executed(backend)


async def test_a_failed_pass_fails_all_who_shared_it_and_is_not_remembered() -> None:
    backend = FakeBackend(fault=lambda _: (_ for _ in ()).throw(RuntimeError("broken")))
    async with reusing(backend) as reuse:
        failed = await asyncio.gather(*(reuse.run([row(*IDS)], deadline=soon()) for _ in range(2)), return_exceptions=True)
        backend.fault = None
        outcome = await reuse.run([row(*IDS)], deadline=soon())

    assert [Unavailable, Unavailable] == [type(error) for error in failed]
    np.testing.assert_array_equal(checksum_vector(IDS), outcome.vectors[0][0])


async def test_who_is_refused_leaves_nothing_for_the_collector() -> None:
    gate = Gate()
    async with reusing(FakeBackend(fault=gate), max_queued_tokens=4, max_batch_requests=1) as reuse:
        calls = [asyncio.create_task(reuse.run([row(number)], deadline=soon())) for number in range(1, 4)]
        await until(gate.is_reached.is_set)
        with no_collector():
            before = num_alive(_Flight)
            for _ in range(5):
                with pytest.raises(Overloaded):
                    await reuse.run([row(7, 7, 7), row(8, 8, 8)], deadline=soon())
            after = num_alive(_Flight)
        gate.open()
        await asyncio.gather(*calls)

    assert before == after


async def test_a_refused_list_answers_nothing_even_where_a_part_was_known() -> None:
    backend, gate = FakeBackend(), Gate()
    async with reusing(backend, max_queued_tokens=8) as reuse:
        await reuse.run([row(*IDS)], deadline=soon())
        backend.fault = gate
        calls = [asyncio.create_task(reuse.run([row(20)], deadline=soon()))]
        await until(lambda: len(backend.batches) == 2)
        calls.append(asyncio.create_task(reuse.run([row(number) for number in range(30, 36)], deadline=soon())))
        await asyncio.sleep(0.01)
        with pytest.raises(Overloaded):
            await reuse.run([row(*IDS), row(40, 41, 42)], deadline=soon())
        known = await reuse.run([row(*IDS)], deadline=soon())
        gate.open()
        await asyncio.gather(*calls)

    np.testing.assert_array_equal(checksum_vector(IDS), known.vectors[0][0])
    assert (40, 41, 42) not in executed(backend)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.booleans(), st.booleans(), st.integers(0, 2)),
        max_size=14,
    ),
    st.sampled_from([0, 1_000, 1_000_000]),
    st.booleans(),
)
def test_every_caller_gets_its_own_vectors_or_an_error_whatever_is_shared(
    calls: list[tuple[list[int], bool, bool, int]], cache_bytes: int, fails_once: bool
) -> None:
    async def scenario() -> None:
        backend, faults = FakeBackend(concurrency=2), [RuntimeError("once")] * fails_once

        def fault(_: object) -> None:
            if faults:
                raise faults.pop()

        backend.fault = fault
        async with reusing(backend, cache_bytes=cache_bytes) as reuse:

            async def call(numbers: list[int], is_bulk: bool, leaves: bool, turns: int) -> None:
                for _ in range(turns):
                    await asyncio.sleep(0)
                work = asyncio.create_task(reuse.run([row(number) for number in numbers], deadline=soon(), is_bulk=is_bulk))
                if leaves:
                    await asyncio.sleep(0)
                    work.cancel()
                try:
                    outcome = await work
                except Unavailable:
                    assert fails_once
                except asyncio.CancelledError:
                    assert leaves
                else:
                    for number, vectors in zip(numbers, outcome.vectors, strict=True):
                        np.testing.assert_array_equal(checksum_vector((number,)), vectors[0])

            await asyncio.gather(*(call(*arguments) for arguments in calls))
        gc.collect()
        assert 0 == len(reuse._flights)

    asyncio.run(scenario())


class PatientWaiter:
    """Waits for as long as it takes, and is told once."""

    is_settled = False

    def __init__(self) -> None:
        self.error: EmbedError | None = None

    def put(self, index: int, vectors: list[FloatArray], queue_seconds: float, inference_seconds: float) -> None:
        raise AssertionError("its deadline has passed")

    def fail(self, error: EmbedError) -> None:
        self.error, self.is_settled = error, True


async def test_who_has_time_does_not_join_one_whose_time_is_over() -> None:
    backend, gate, late = FakeBackend(), Gate(), PatientWaiter()
    backend.fault = gate
    async with reusing(backend) as reuse:
        blocking = asyncio.create_task(reuse.run([row(8)], deadline=soon()))
        await until(lambda: bool(backend.batches))
        reuse.admit([Entry(IDS, (VIEW,), late, 0, time.monotonic(), soon(0.02))])
        await asyncio.sleep(0.05)
        outcome = asyncio.create_task(reuse.run([row(*IDS)], deadline=soon()))
        await asyncio.sleep(0.01)
        gate.open()
        await blocking
        np.testing.assert_array_equal(checksum_vector(IDS), (await outcome).vectors[0][0])

    assert isinstance(late.error, DeadlineExceeded)


async def test_an_error_is_freed_with_who_was_told_it_and_needs_no_collector() -> None:
    backend, gate = FakeBackend(), Gate()
    backend.fault = gate
    async with reusing(backend, cache_bytes=0) as reuse:
        gc.collect()
        gc.disable()
        try:
            with contextlib.suppress(DeadlineExceeded):
                try:
                    await reuse.run([row(1, 2)], deadline=soon(0.02))
                except DeadlineExceeded as error:
                    seen = weakref.ref(error)
                    raise
            gate.open()
            await until(lambda: seen() is None)
        finally:
            gate.open()
            gc.enable()


async def test_vectors_are_freed_with_their_answer_and_need_no_collector() -> None:
    async with reusing(FakeBackend(), cache_bytes=0) as reuse:
        gc.collect()
        gc.disable()
        try:
            outcome = await reuse.run([row(1, 2), row(3)], deadline=soon())
            seen = [weakref.ref(vectors[0]) for vectors in outcome.vectors]
            assert all(vectors() is not None for vectors in seen)
            del outcome
            # The pool's thread may let go of the pass a moment later than it hands it over.
            await until(lambda: all(vectors() is None for vectors in seen))
        finally:
            gc.enable()
