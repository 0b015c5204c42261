import asyncio
import itertools

import pytest

from gateway.turns import Turns


async def until_a_turn_is_over() -> None:
    """Callbacks scheduled before this one have run, and the tasks that they woke."""
    for _ in range(2):
        await asyncio.sleep(0)


async def test_who_finds_room_does_not_wait() -> None:
    turns = Turns(2)
    for _ in range(2):
        with pytest.raises(StopIteration):
            turns.take().send(None)


async def test_the_others_go_in_later_turns_in_the_order_in_which_they_came() -> None:
    turns, began = Turns(2), list[int]()

    async def work(number: int) -> None:
        await turns.take()
        began.append(number)

    tasks = [asyncio.create_task(work(number)) for number in range(7)]
    await asyncio.sleep(0)
    seen = [list(began)]
    while len(began) < 7:
        await asyncio.sleep(0)
        if len(began) > len(seen[-1]):
            seen.append(list(began))
    await asyncio.gather(*tasks)

    assert list(range(7)) == began
    steps = [len(after) - len(before) for before, after in zip([[], *seen], seen, strict=False)]
    assert max(steps) <= 2


async def test_between_two_turns_the_loop_does_something_else() -> None:
    turns, happened = Turns(1), list[str]()

    async def work() -> None:
        await turns.take()
        happened.append("work")

    async def hear() -> None:
        while happened.count("work") < 4:
            happened.append("heard")
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(work())
        group.create_task(hear())

    places = [place for place, what in enumerate(happened) if what == "work"]
    assert all("heard" in happened[before:after] for before, after in itertools.pairwise(places))


async def test_who_leaves_while_waiting_takes_no_turn_from_others() -> None:
    turns = Turns(1)
    first, leaving, staying = [asyncio.create_task(turns.take()) for _ in range(3)]
    await asyncio.sleep(0)
    leaving.cancel()
    async with asyncio.timeout(10):
        await staying
    await first
    assert leaving.cancelled()


async def test_after_a_rush_there_is_room_again() -> None:
    turns = Turns(3)
    async with asyncio.timeout(10):
        await asyncio.gather(*(turns.take() for _ in range(100)))
        for _ in range(10):
            await turns.take()
            await until_a_turn_is_over()
