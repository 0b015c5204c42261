from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_service.backend.fake import FakeBackend
from embedding_service.batching import Batcher
from embedding_service.errors import Overloaded
from embedding_service.queue import Entry, QueueLimits
from perf.fifo import FifoQueue
from tests.embedding_service.test_batching import CountingTelemetry, row, soon
from tests.embedding_service.test_queue import FakeTicket, entry, lengths

LIMITS = QueueLimits(max_batch_tokens=16, max_queued_tokens=64, padding_cost=0.0)


def fifo_of(*entries: Entry, limits: QueueLimits = LIMITS) -> FifoQueue:
    queue = FifoQueue(limits)
    queue.append(list(entries))
    return queue


@pytest.mark.parametrize(
    ("queued", "changes", "expected"),
    [
        pytest.param([8, 2, 5, 2], {}, [[8, 2, 5], [2]], id="as many from the front as the budget takes"),
        pytest.param([9, 8, 1], {}, [[9], [8, 1]], id="a short one does not overtake the one that does not fit"),
        pytest.param([40, 2], {}, [[40], [2]], id="one above the budget runs alone"),
        pytest.param([4, 1, 1, 1, 1], {"padding_cost": 1.0}, [[4, 1, 1, 1], [1]], id="padding counts where it is computed"),
        pytest.param([1] * 5, {"max_batch_requests": 2}, [[1, 1], [1, 1], [1]], id="the row bound holds too"),
    ],
)
def test_batches_are_cut_from_the_front(queued: list[int], changes: dict[str, float], expected: list[list[int]]) -> None:
    queue = fifo_of(*map(entry, queued), limits=replace(LIMITS, **changes))  # type: ignore[arg-type]
    batches = []
    while batch := queue.take(0.0).batch:
        batches.append(lengths(batch))

    assert expected == batches


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 60), st.floats(0, 1), st.integers(1, 3))
def test_all_leave_once_in_the_order_they_came_and_within_the_budget(
    queued: list[int], budget: int, padding_cost: float, free_slots: int
) -> None:
    entries = [entry(tokens) for tokens in queued]
    queue = fifo_of(*entries, limits=replace(LIMITS, max_batch_tokens=budget, padding_cost=padding_cost))
    left = []
    while batch := queue.take(0.0, free_slots=free_slots).batch:
        left += batch
        assert len(batch) == 1 or sum(lengths(batch)) <= budget

    assert entries == left
    assert (0, 0) == (queue.num_entries, queue.num_tokens)


def test_what_waits_is_shared_among_batches_that_can_start_now() -> None:
    queue = fifo_of(*(entry(2) for _ in range(4)))

    assert [2, 2] == lengths(queue.take(0.0, free_slots=2).batch)


@pytest.mark.parametrize(("waiting", "expected"), [([15], []), ([9, 7], [9, 7]), ([1] * 32, [1] * 16), ([20], [20])])
def test_what_is_full_is_cut_ahead(waiting: list[int], expected: list[int]) -> None:
    queue = fifo_of(*map(entry, waiting))

    assert expected == lengths(queue.take_ahead(0.0).batch)


def test_bulk_entries_wait_for_nobody_and_nobody_for_them() -> None:
    queue = fifo_of(entry(1, bulk=True), entry(2))

    assert [1, 2] == lengths(queue.take(0.0).batch)


def test_the_dead_leave_without_being_run() -> None:
    late, left = entry(1, deadline=1.0), entry(2, ticket=FakeTicket(is_settled=True))
    taken = fifo_of(late, left, entry(3)).take(2.0)

    assert [late] == taken.expired
    assert taken.num_departed == 1
    assert [3] == lengths(taken.batch)


def test_a_list_is_admitted_whole_or_not_at_all() -> None:
    queue = fifo_of(entry(60))

    assert queue.has_room([entry(4)])
    assert not queue.has_room([entry(4), entry(1)])
    assert fifo_of().has_room([entry(100)]), "an empty queue takes any"


def test_emptying_gives_all_back() -> None:
    entries = [entry(1), entry(2)]
    queue = fifo_of(*entries)

    assert entries == queue.take_all()
    assert (0, 0) == (queue.num_entries, queue.num_tokens)


async def test_a_batcher_runs_on_it_and_refuses_what_does_not_fit() -> None:
    backend = FakeBackend(concurrency=1)
    batcher = Batcher(backend, QueueLimits(), CountingTelemetry(), queue=FifoQueue(replace(LIMITS, max_queued_tokens=8)))
    try:
        outcome = await batcher.run([row(1, 1, 1), row(1, 1), row(1)], deadline=soon())
        batcher.admit([entry(8, deadline=soon())])
        with pytest.raises(Overloaded):
            await batcher.run([row(1)], deadline=soon())
    finally:
        batcher.queue.take_all()
        await batcher.drain(5)

    assert len(outcome.vectors) == 3
    assert [3, 2, 1] == [len(ids) for batch in backend.batches for ids in batch.token_ids]


def test_with_cuts_a_batch_ends_where_padding_would_cost_more_than_another_pass() -> None:
    limits = replace(LIMITS, padding_cost=1.0, pass_overhead=10.0, max_batch_tokens=1_000)
    queue = FifoQueue(limits, is_cut=True)
    queue.append([entry(length) for length in (5, 9, 60, 58, 7)])

    assert [[5, 9], [60, 58], [7]] == [lengths(queue.take(0.0).batch) for _ in range(3)]
