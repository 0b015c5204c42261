import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients import Deadline
from gateway.backends.budget import Budget, is_within


@pytest.mark.parametrize(
    ("active", "extra", "may"),
    [(0, 2, True), (0, 3, False), (10, 2, True), (10, 3, False), (100, 19, True), (100, 20, False)],
)
def test_a_share_of_what_is_active_or_the_floor(active: int, extra: int, *, may: bool) -> None:
    assert may is is_within(active, extra, share=0.2, floor=3)


async def test_who_gets_no_permit_waits_in_turn() -> None:
    budget, got = Budget(floor=1), []

    async def one(name: int) -> None:
        assert await budget.wait(Deadline.after(5))
        got.append(name)
        await asyncio.sleep(0)
        budget.give_back()

    await asyncio.gather(*(one(name) for name in range(4)))

    assert [0, 1, 2, 3] == got
    assert "<Budget [0 calls, 0 extra, 0 waiting]>" == repr(budget)


async def test_who_waits_too_long_is_told_and_takes_nothing() -> None:
    budget = Budget(floor=1)
    assert budget.take()

    assert not budget.take()
    assert not await budget.wait(Deadline.after(0.01))
    budget.give_back()
    assert budget.take()


async def test_one_who_leaves_the_queue_leaves_no_gap() -> None:
    budget = Budget(floor=1)
    budget.take()
    leaving, staying = (asyncio.create_task(budget.wait(Deadline.after(5))) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.sleep(0)
    budget.give_back()

    assert await staying


async def test_one_who_leaves_with_the_permit_in_hand_gives_it_back() -> None:
    budget = Budget(floor=1)
    budget.take()
    leaving = asyncio.create_task(budget.wait(Deadline.after(5)))
    await asyncio.sleep(0)
    budget.give_back()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving

    assert "<Budget [0 calls, 0 extra, 0 waiting]>" == repr(budget)


@given(st.lists(st.sampled_from(["enter", "leave", "take", "back"]), max_size=200))
def test_there_are_never_more_extra_calls_than_a_permit_allowed(events: list[str]) -> None:
    budget, active, extra = Budget(share=0.2, floor=2), 0, 0
    for event in events:
        if event == "enter":
            budget.enter()
            active += 1
        elif event == "leave" and active:
            budget.leave()
            active -= 1
        elif event == "take" and budget.take():
            assert extra < max(2, 0.2 * active)
            extra += 1
        elif event == "back" and extra:
            budget.give_back()
            extra -= 1
