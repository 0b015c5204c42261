import asyncio
from collections.abc import Iterator
from itertools import pairwise

from trunkline.bundles import FIRST_PAUSE_SECONDS, LOOK_SECONDS, MAX_PAUSE_SECONDS, Keeper, Needs

NOTHING: Needs = ((), ())
ONE: Needs = (("bundle-1",), ())
TWO: Needs = (("bundle-1", "bundle-2"), ())


class World:
    """What is needed, look by look, and whether making it works; it ends when there is nothing left to see."""

    def __init__(self, needs: list[Needs], *, works: bool = True) -> None:
        self._needs: Iterator[Needs] = iter(needs)
        self.works = works
        self.num_made = 0
        self.slept: list[float] = []

    async def look(self) -> Needs:
        found = next(self._needs, None)
        if found is None:
            raise asyncio.CancelledError
        return found

    async def make(self) -> bool:
        self.num_made += 1
        return self.works

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    async def run(self) -> None:
        try:
            await Keeper(self.look, self.make, self.sleep).run()
        except asyncio.CancelledError:
            return


async def test_bundles_are_made_once_nothing_changes_any_more() -> None:
    world = World([NOTHING, ONE, TWO])
    await world.run()
    assert 0 == world.num_made

    world = World([NOTHING, ONE, TWO, TWO, NOTHING, NOTHING])
    await world.run()
    assert 1 == world.num_made
    assert {LOOK_SECONDS} == set(world.slept)


async def test_what_could_not_be_made_is_tried_again_later_each_time() -> None:
    world = World([ONE] * 12, works=False)
    await world.run()
    pauses = [seconds for seconds in world.slept if seconds != LOOK_SECONDS]
    assert FIRST_PAUSE_SECONDS == pauses[0]
    assert all(later == min(2 * pause, MAX_PAUSE_SECONDS) for pause, later in pairwise(pauses))
    assert 11 == world.num_made
