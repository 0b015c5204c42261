from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_service.backend import PassCost
from embedding_service.queue import (
    BatchShape,
    Entry,
    Queue,
    QueueLimits,
    Rows,
    cut,
    is_for_one_pass,
    joins_next,
    long_room,
    may_start,
    still_wanted,
)


@dataclass
class FakeTicket:
    is_settled: bool = False


def entry(
    num_tokens: int, *, arrived: float = 0.0, deadline: float = 1e9, bulk: bool = False, ticket: FakeTicket | None = None
) -> Entry:
    return Entry((1,) * num_tokens, (), ticket or FakeTicket(), 0, arrived, deadline, bulk)


def queue_of(*entries: Entry, **limits: float) -> Queue:
    queue = Queue(QueueLimits(**limits), PassCost())  # type: ignore[arg-type]
    queue.append(list(entries))
    return queue


def lengths(batch: list[Entry]) -> list[int]:
    return [item.num_tokens for item in batch]


@pytest.mark.parametrize(
    ("queued", "limits", "expected"),
    [
        pytest.param([7], {}, [7], id="one entry is a batch"),
        pytest.param([40, 3, 3], {}, [3, 3], id="short ones go first and padding is not worth the long one"),
        pytest.param([10, 10, 9], {}, [9, 10, 10], id="near lengths share a batch"),
        pytest.param([10, 9], {"pass_overhead": 0.0}, [9], id="where a pass costs nothing, nothing is padded"),
        pytest.param([60, 9], {"pass_overhead": 1e6}, [9, 60], id="where a pass costs much, anything shares it"),
        pytest.param([8] * 5, {"max_batch_tokens": 16}, [8, 8], id="the token budget bounds a batch"),
        pytest.param([8] * 5, {"max_batch_requests": 3}, [8, 8, 8], id="so does the row bound"),
        pytest.param([64], {"max_batch_tokens": 16}, [64], id="an entry above the budget runs alone"),
        pytest.param([15, 16], {"max_batch_tokens": 31}, [15], id="the budget counts computed tokens, padding included"),
    ],
)
def test_a_batch_is_cut_by_length(queued: list[int], limits: dict[str, float], expected: list[int]) -> None:
    queue = queue_of(*(entry(tokens) for tokens in queued), **limits)

    assert expected == lengths(queue.take(0.0).batch)


@pytest.mark.parametrize(
    ("entries", "limits", "expected"),
    [
        pytest.param([entry(10)] * 2 + [entry(90)], {"max_batch_tokens": 80}, [10, 10], id="a quarter of the tokens is enough"),
        pytest.param([entry(10)] * 2 + [entry(90)], {"max_batch_tokens": 81}, [], id="less is not"),
        pytest.param([entry(2)] * 9, {"max_batch_requests": 8}, [2] * 8, id="nor needed where it has all rows"),
        pytest.param([entry(2)] * 9, {"max_batch_requests": 8, "ahead_share": None}, [], id="none where none should be"),
        pytest.param([entry(8)] * 6 + [entry(8, bulk=True)], {"max_batch_tokens": 48}, [8] * 6, id="bulk rows stay"),
        pytest.param([entry(8)] * 5 + [entry(8, bulk=True)], {"max_batch_tokens": 48}, [], id="and count for nothing"),
        pytest.param([entry(8, bulk=True)] * 9, {"max_batch_tokens": 16}, [], id="even where there is nothing else"),
        pytest.param([entry(300)], {}, [], id="a long row may be passed by short ones"),
        pytest.param([entry(8)] * 40 + [entry(300)], {}, [], id="and short ones take no turn of a long row's"),
        pytest.param([entry(8)] * 40 + [entry(300, bulk=True)], {}, [8] * 32, id="but one of bulk may wait"),
        pytest.param([], {}, [], id="nothing is nothing"),
    ],
)
@pytest.mark.parametrize("has_long_room", [None, True])
def test_what_is_cut_for_a_thread_that_is_not_free_yet(
    entries: list[Entry], limits: dict[str, float], expected: list[int], has_long_room: bool | None
) -> None:
    queue = queue_of(*entries, **limits)

    assert expected == lengths(queue.take_ahead(0.0, has_long_room=has_long_room).batch)
    assert len(entries) - len(expected) == queue.num_entries


@pytest.mark.parametrize("has_long_room", [None, True, False])
def test_nothing_is_cut_ahead_once_it_is_a_bulk_rows_turn(has_long_room: bool | None) -> None:
    for now, expected in ((1.0, [8] * 32), (3.0, [])):
        bulk = entry(8, bulk=True)
        queue = queue_of(*[entry(8, arrived=now)] * 80, bulk, bulk_penalty=4_096, ageing=2_048)
        assert expected == lengths(queue.take_ahead(now, has_long_room=has_long_room).batch)

    assert bulk in queue.take(now, has_long_room=has_long_room).batch
    assert [8] * 32 == lengths(queue.take_ahead(now, has_long_room=has_long_room).batch)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        pytest.param([entry(8)] * 40 + [entry(300)], [8] * 32, id="long rows wait, and it is not their turn"),
        pytest.param([entry(8)] * 31 + [entry(300)] * 9, [], id="the short ones by themselves must be enough for a batch"),
        pytest.param([entry(300)] * 9, [], id="and are none"),
    ],
)
def test_what_is_cut_for_a_thread_that_will_be_for_short_rows(entries: list[Entry], expected: list[int]) -> None:
    queue = queue_of(*entries)

    assert expected == lengths(queue.take_ahead(0.0, has_long_room=False).batch)
    # What left is not counted any more.
    assert [] == lengths(queue.take_ahead(0.0, has_long_room=False).batch)


@pytest.mark.parametrize(
    ("lengths", "budget", "overhead", "expected"),
    [
        ([], 100, 10, 0),
        ([500], 100, 10, 1),
        ([8, 8, 8], 100, 0, 3),
        ([8, 8, 8], 16, 0, 2),
        ([10, 20], 100, 10, 2),
        ([10, 20], 100, 9, 1),
        ([20, 12, 12], 100, 15, 2),
        ([20, 12, 12], 100, 16, 3),
        ([10, 11, 13], 100, 4, 2),
        ([10, 11, 13], 100, 5, 3),
    ],
)
def test_a_batch_grows_until_its_padding_costs_more_than_a_pass(
    lengths: list[int], budget: int, overhead: float, expected: int
) -> None:
    assert expected == cut(lengths, budget=budget, cost=PassCost(overhead))


@pytest.mark.parametrize(
    ("lengths", "cost", "expected"),
    [
        pytest.param([60, 20], PassCost(10.0, padding=1.0), 1, id="a padded row costs as much as the longest"),
        pytest.param([60, 20], PassCost(10.0, padding=0.0), 2, id="where none is computed anything shares a pass"),
        pytest.param([60, 20], PassCost(10.0, padding=0.25), 2, id="exactly the price of a pass is worth it"),
        pytest.param([60, 20], PassCost(10.0, padding=0.0, cell=0.003), 2, id="attention pads an area: 3,200 places for 9.6"),
        pytest.param([60, 20], PassCost(9.0, padding=0.0, cell=0.003), 1, id="which is too much where a pass costs less"),
        pytest.param([300, 20], PassCost(56.0, padding=0.1, cell=0.001), 1, id="so that no short row rides with a long one"),
        pytest.param([60, 20], PassCost(56.0, padding=0.1, cell=0.001), 2, id="as it does with one of middle length"),
    ],
)
def test_what_padding_costs_is_the_engines(lengths: list[int], cost: PassCost, expected: int) -> None:
    assert expected == cut(lengths, budget=1_000, cost=cost)


def test_rows_of_one_length_cost_their_tokens() -> None:
    shape = BatchShape(PassCost(56.0, padding=1.0, cell=0.01), [24] * 5)

    assert (120, 0, 120) == (shape.wanted, shape.padding, shape.computed)


def test_a_setting_takes_the_place_of_the_engines_overhead() -> None:
    entries = [entry(60), entry(9)]

    for limits, expected in ((QueueLimits(), [9, 60]), (QueueLimits(pass_overhead=1.0), [9])):
        queue = Queue(limits, PassCost(1e6))
        queue.append(entries)
        assert expected == lengths(queue.take(0.0).batch)


def test_waiting_makes_a_long_entry_overtake_short_ones() -> None:
    queue = queue_of(entry(500, arrived=0.0), entry(4, arrived=1.0), ageing=1_000)

    assert [500] == lengths(queue.take(1.0).batch)


def test_bulk_goes_after_interactive_but_ages_too() -> None:
    queue = queue_of(entry(4, bulk=True), entry(400), bulk_penalty=1_000, ageing=100)
    late = queue_of(entry(4, bulk=True), entry(400, arrived=20.0), bulk_penalty=1_000, ageing=100)

    assert [400] == lengths(queue.take(0.0).batch)
    assert [4] == lengths(late.take(20.0).batch)


def test_free_slots_share_what_waits() -> None:
    queue = queue_of(*(entry(8) for _ in range(8)))

    assert 4 == len(queue.take(0.0, free_slots=2).batch)
    assert 4 == len(queue.take(0.0, free_slots=1).batch)


@pytest.mark.parametrize(
    ("waiting", "running", "expected"),
    [
        pytest.param(Rows(0, 0), [], False, id="nothing waits"),
        pytest.param(Rows(1, 1), [], True, id="nothing runs"),
        pytest.param(Rows(0, 0), [Rows(1, 1)], False, id="nothing waits beside a pass"),
        pytest.param(Rows(1, 1), [Rows(1, 1)], True, id="one row starts beside one"),
        pytest.param(Rows(1, 1), [Rows(12, 12)], False, id="one row beside many gathers more"),
        pytest.param(Rows(6, 6), [Rows(12, 12)], True, id="half as many start"),
        pytest.param(Rows(6, 6), [Rows(12, 12), Rows(20, 20)], False, id="the largest pass is the measure"),
        pytest.param(Rows(1, 1), [Rows(32, 0)], True, id="an interactive row does not wait for bulk ones"),
        pytest.param(Rows(1, 0), [Rows(32, 0)], False, id="a bulk row does"),
        pytest.param(Rows(17, 1), [Rows(20, 20)], True, id="bulk rows help interactive ones to fill a pass"),
    ],
)
def test_a_pass_starts_beside_others_when_enough_waits(waiting: Rows, running: list[Rows], expected: bool) -> None:
    assert expected == may_start(waiting, running, 0.5)


@pytest.mark.parametrize(
    ("waiting", "lone", "expected"),
    [
        pytest.param(Rows(2, 2, num_tokens=20), Rows(1, 1, num_tokens=20), True, id="little waits for a small pass"),
        pytest.param(Rows(2, 2, num_tokens=21), Rows(1, 1, num_tokens=20), False, id="more does not"),
        pytest.param(Rows(2, 2, num_tokens=2), Rows(1, 1, num_tokens=21), False, id="nor anything for a larger pass"),
        pytest.param(Rows(2, 1, num_tokens=2), Rows(1, 0, num_tokens=2), False, id="nor interactive rows for bulk ones"),
        pytest.param(Rows(1, 1, num_tokens=2), Rows(2, 1, num_tokens=2), False, id="nor for a pass of both"),
        pytest.param(Rows(2, 0, num_tokens=2), Rows(1, 0, num_tokens=2), True, id="bulk rows wait for bulk ones"),
        pytest.param(Rows(2, 0, num_tokens=2), Rows(2, 1, num_tokens=2), True, id="and for interactive ones"),
    ],
)
def test_what_waits_is_left_for_the_end_of_a_small_lone_pass(waiting: Rows, lone: Rows, expected: bool) -> None:
    assert expected == joins_next(waiting, lone, 20)


@pytest.mark.parametrize(
    ("waiting", "expected"),
    [
        pytest.param(Rows(2, 2, num_tokens=20), True, id="little"),
        pytest.param(Rows(2, 2, num_tokens=21), False, id="more"),
        pytest.param(Rows(2, 0, num_tokens=20), True, id="little that is bulk"),
        pytest.param(Rows(2, 1, num_tokens=2), False, id="both would wait for each other"),
    ],
)
def test_little_of_one_class_is_one_pass(waiting: Rows, expected: bool) -> None:
    assert expected == is_for_one_pass(waiting, 20)


@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), max_size=40), st.integers(1, 4))
def test_the_queue_counts_its_rows_whatever_comes_and_goes(queued: list[tuple[int, bool]], free_slots: int) -> None:
    queue = queue_of(*(entry(tokens, bulk=bulk) for tokens, bulk in queued), max_batch_requests=3)
    while True:
        left = list(queue)
        tokens = sum(item.num_tokens for item in left)
        assert Rows(len(left), sum(not item.is_bulk for item in left), num_tokens=tokens) == queue.rows
        if not left:
            break
        taken = queue.take(0.0, free_slots=free_slots)
        assert (len(taken.batch), sum(not item.is_bulk for item in taken.batch)) == (
            taken.rows.num_all,
            taken.rows.num_interactive,
        )
        assert max(lengths(taken.batch), default=0) == taken.rows.longest


def test_departed_and_expired_entries_leave_without_being_run() -> None:
    gone, late, well = entry(5, ticket=FakeTicket(is_settled=True)), entry(5, deadline=1.0), entry(5)
    queue = queue_of(gone, late, well)

    taken = queue.take(2.0)

    assert [well] == taken.batch
    assert [late] == taken.expired
    assert 1 == taken.num_departed
    assert "<Queue [0 entries, 0 tokens, 0 lanes]>" == repr(queue)


def test_a_list_is_admitted_whole_or_refused_whole() -> None:
    queue = queue_of(entry(10), max_queued_tokens=30)

    assert queue.has_room([entry(10), entry(10)])
    assert not queue.has_room([entry(10), entry(11)])


def test_an_empty_queue_takes_even_a_list_above_its_bound() -> None:
    assert Queue(QueueLimits(max_queued_tokens=10), PassCost()).has_room([entry(50)])


entries = st.builds(
    entry,
    st.integers(1, 80),
    arrived=st.floats(0, 10),
    deadline=st.floats(0, 30),
    bulk=st.booleans(),
    ticket=st.builds(FakeTicket, st.booleans()),
)


costs = st.builds(PassCost, st.floats(0, 100), padding=st.floats(0, 1), cell=st.floats(0, 0.01))


@given(st.lists(entries, max_size=60), st.integers(1, 4), costs)
def test_every_entry_leaves_exactly_once_and_every_batch_keeps_its_bounds(
    queued: list[Entry], free_slots: int, cost: PassCost
) -> None:
    queue = Queue(QueueLimits(max_batch_tokens=100, max_batch_requests=8), cost)
    queue.append(queued)
    left: list[int] = []
    departed = 0
    while queue.num_entries:
        taken = queue.take(15.0, free_slots=free_slots)
        departed += taken.num_departed
        left += [id(item) for item in taken.batch + taken.expired]
        assert len(taken.batch) <= 8
        if len(taken.batch) > 1:
            shape = BatchShape(cost, lengths(taken.batch))
            assert shape.computed <= 100
            assert shape.padding <= cost.overhead
        assert all(not item.ticket.is_settled and item.deadline > 15.0 for item in taken.batch)
        assert taken.batch or taken.expired or taken.num_departed

    assert sorted(left) == sorted(id(item) for item in queued if not item.ticket.is_settled)
    assert departed == sum(item.ticket.is_settled for item in queued)
    assert 0 == queue.num_tokens


@given(st.lists(st.integers(1, 64), min_size=1, max_size=30))
def test_nothing_starves_under_a_stream_of_short_texts(others: list[int]) -> None:
    long = entry(512)
    queue = queue_of(long, ageing=1_000)
    now = 0.0
    for _ in range(2_000):
        now += 0.01
        queue.append([entry(tokens, arrived=now) for tokens in others[:2]])
        if long in queue.take(now).batch:
            break
    else:
        pytest.fail("the long entry starved")

    assert now <= 0.6


def test_bulk_leaves_room_for_interactive_entries() -> None:
    queue = queue_of(entry(60), max_queued_tokens=100)

    assert not queue.has_room([entry(16, bulk=True)])
    assert queue.has_room([entry(15, bulk=True)])
    assert queue.has_room([entry(40)])


@pytest.mark.parametrize(
    ("arrivals", "expected"),
    [
        ([], set()),
        ([(0.0, False)], {False}),
        ([(0.0, True), (8.0, False)], {True}),
        ([(0.0, True), (1.0, False)], {True, False}),
        ([(2.0, True), (2.0, False)], set()),
    ],
)
def test_a_class_is_late_when_its_oldest_entry_is(arrivals: list[tuple[float, bool]], expected: set[bool]) -> None:
    queue = queue_of(
        *(entry(5 + number, arrived=at, bulk=bulk) for number, (at, bulk) in enumerate(arrivals)), max_queue_seconds=8.0
    )

    assert expected == queue.late_classes(10.0)


LONG, SHORT = Rows(1, 1, 300), Rows(8, 8, 30)


@pytest.mark.parametrize(
    ("running", "concurrency", "expected"),
    [
        ([], 1, None),
        ([], 2, True),
        ([SHORT], 2, True),
        ([LONG], 2, False),
        ([LONG, SHORT], 4, True),
        ([LONG, LONG, SHORT], 4, False),
        ([Rows(2, 2, 127)], 2, True),
        ([Rows(2, 2, 128)], 2, False),
    ],
)
def test_half_of_the_threads_are_for_long_rows(running: list[Rows], concurrency: int, expected: bool | None) -> None:
    assert expected is long_room(running, concurrency, 128)


@pytest.mark.parametrize(
    ("queued", "has_long_room", "expected"),
    [
        ([(20, False), (300, False)], True, [300]),
        ([(20, False), (300, False)], False, [20]),
        ([(20, False), (300, False)], None, [20]),
        ([(20, False)], True, [20]),
        ([(300, False)], False, [300]),
        ([(20, False), (300, True)], True, [20]),
        ([(20, True), (300, True)], True, [300]),
        ([(300, False), (20, True)], False, [300]),
    ],
)
def test_where_both_wait_the_long_go_when_there_is_room_for_them_but_never_before_a_class_above(
    queued: list[tuple[int, bool]], has_long_room: bool | None, expected: list[int]
) -> None:
    queue = queue_of(*(entry(tokens, bulk=bulk) for tokens, bulk in queued))

    assert expected == lengths(queue.take(0.0, has_long_room=has_long_room).batch)


def test_what_nobody_waits_for_any_more_is_told_apart_before_a_pass() -> None:
    wanted, late, left = entry(5), entry(6, deadline=1.0), entry(7, ticket=FakeTicket(is_settled=True))

    found = still_wanted([left, wanted, late], 1.0)

    assert ([wanted], [late], 1) == (found.batch, found.expired, found.num_departed)
