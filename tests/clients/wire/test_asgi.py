import asyncio
import contextlib
from collections.abc import MutableMapping
from typing import Any

import pytest

from clients.wire.asgi import CallerLeftError, header_of, while_connected


class Caller:
    """What a server's *receive* gives: nothing until the caller hangs up."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.asked = 0

    async def receive(self) -> MutableMapping[str, Any]:
        self.asked += 1
        await self.left.wait()
        return {"type": "http.disconnect"}


async def test_work_is_cancelled_when_the_caller_hangs_up() -> None:
    caller, ended = Caller(), asyncio.Event()

    async def work() -> None:
        async with while_connected(caller.receive, look_after=0.0):
            try:
                await asyncio.sleep(10)
            finally:
                ended.set()

    task = asyncio.create_task(work())
    await asyncio.sleep(0.01)
    caller.left.set()

    with pytest.raises(CallerLeftError):
        await task
    assert ended.is_set()


async def test_quick_work_never_listens() -> None:
    caller = Caller()
    async with while_connected(caller.receive):
        await asyncio.sleep(0)

    assert 0 == caller.asked


async def test_a_cancellation_from_elsewhere_stays_one_and_leaves_no_task() -> None:
    caller = Caller()

    async def work() -> None:
        async with while_connected(caller.receive, look_after=0.0):
            await asyncio.sleep(10)

    task = asyncio.create_task(work())
    await asyncio.sleep(0.01)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert {asyncio.current_task()} == asyncio.all_tasks()


async def test_a_fault_inside_passes_through() -> None:
    async def work() -> None:
        async with while_connected(Caller().receive, look_after=0.0):
            await asyncio.sleep(0.01)
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        await work()


async def test_who_is_told_that_the_caller_left_is_no_longer_being_cancelled() -> None:
    caller = Caller()

    async def work() -> int:
        with contextlib.suppress(CallerLeftError):
            async with while_connected(caller.receive, look_after=0.0):
                await asyncio.sleep(10)
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    task = asyncio.create_task(work())
    await asyncio.sleep(0.01)
    caller.left.set()

    assert 0 == await task


async def test_a_fault_of_work_whose_caller_left_meanwhile_is_the_fault() -> None:
    caller = Caller()

    async def work() -> None:
        async with while_connected(caller.receive, look_after=0.0):
            try:
                await asyncio.sleep(10)
            finally:
                raise ValueError("inside")

    task = asyncio.create_task(work())
    await asyncio.sleep(0.01)
    caller.left.set()

    with pytest.raises(ValueError, match="inside"):
        await task


def test_a_header_is_the_first_of_its_name_or_none() -> None:
    headers = [(b"x-a", b"one"), (b"x-b", b"\xe9"), (b"x-a", b"two")]

    assert ["one", "\xe9", None] == [header_of(headers, name) for name in (b"x-a", b"x-b", b"x-c")]
