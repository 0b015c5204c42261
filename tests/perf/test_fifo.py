from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_service.backend import PassCost
from embedding_service.backend.fake import FakeBackend
from embedding_service.batching import Batcher
from embedding_service.errors import Overloaded
from embedding_service.queue import Entry, QueueLimits
from perf.fifo import FifoQueue
from tests.embedding_service.test_batching import CountingTelemetry, row, soon
from tests.embedding_service.test_queue import FakeTicket, entry, lengths

LIMITS = QueueLimits(max_batch_tokens=16, max_queued_tokens=64)
FREE = PassCost(padding=0.0)
PADDED = PassCost(padding=1.0)


def fifo_of(*entries: Entry, limits: QueueLimits = LIMITS, cost: PassCost = FREE) -> FifoQueue:
    queue = FifoQueue(limits, cost)
    queue.append(list(entries))
    return queue


@pytest.mark.parametrize(
    ("queued", "cost", "rows", "expected"),
    [
        pytest.param([8, 2, 5, 2], FREE, 9, [[8, 2, 5], [2]], id="as many from the front as the budget takes"),
        pytest.param([9, 8, 1], FREE, 9, [[9], [8, 1]], id="a short one does not overtake the one that does not fit"),
        pytest.param([40, 2], FREE, 9, [[40], [2]], id="one above the budget runs alone"),
        pytest.param([4, 1, 1, 1, 1], PADDED, 9, [[4, 1, 1, 1], [1]], id="padding counts where it is computed"),
        pytest.param([1] * 5, FREE, 2, [[1, 1], [1, 1], [1]], id="the row bound holds too"),
    ],
)
def test_batches_are_cut_from_the_front(queued: list[int], cost: PassCost, rows: int, expected: list[list[int]]) -> None:
    queue = fifo_of(*map(entry, queued), limits=replace(LIMITS, max_batch_requests=rows), cost=cost)
    batches = []
    while batch := queue.take(0.0).batch:
        batches.append(lengths(batch))

    assert expected == batches


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 60), st.floats(0, 1), st.integers(1, 3))
def test_all_leave_once_in_the_order_they_came_and_within_the_budget(
    queued: list[int], budget: int, padding: float, free_slots: int
) -> None:
    entries = [entry(tokens) for tokens in queued]
    queue = fifo_of(*entries, limits=replace(LIMITS, max_batch_tokens=budget), cost=PassCost(padding=padding))
    left = []
    while batch := queue.take(0.0, free_slots=free_slots).batch:
        left += batch
        padded = max(lengths(batch)) * len(batch) - sum(lengths(batch))
        assert len(batch) == 1 or sum(lengths(batch)) + padding * padded <= budget + 1e-6

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
    batcher = Batcher(backend, QueueLimits(), CountingTelemetry(), queue=FifoQueue(replace(LIMITS, max_queued_tokens=8), FREE))
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
    queue = FifoQueue(replace(LIMITS, max_batch_tokens=1_000), replace(PADDED, overhead=10.0), is_cut=True)
    queue.append([entry(length) for length in (5, 9, 60, 58, 7)])

    assert [[5, 9], [60, 58], [7]] == [lengths(queue.take(0.0).batch) for _ in range(3)]
