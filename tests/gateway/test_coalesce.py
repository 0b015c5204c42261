import asyncio
from collections.abc import Sequence

import pytest

from clients import Deadline, InvalidResponse
from gateway.coalesce import CallLimits, Coalescer


async def test_arrivals_gather_while_a_call_is_out_and_each_gets_its_own_rows() -> None:
    calls: list[list[int]] = []
    gate = asyncio.Event()

    async def send(rows: Sequence[int], _: Deadline) -> list[int]:
        calls.append(list(rows))
        await gate.wait()
        return [-row for row in rows]

    coalescer = Coalescer(send, CallLimits(max_calls=1))
    tasks = [asyncio.create_task(coalescer.run([n, n + 10], Deadline.after(5))) for n in (1, 2, 3)]
    await asyncio.sleep(0.01)
    tasks[1].cancel()
    gate.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert calls == [[1, 11], [3, 13]]
    assert (answers[0], answers[2]) == ([-1, -11], [-3, -13])


async def test_a_wrong_number_of_rows_is_an_invalid_response() -> None:
    async def send(rows: Sequence[int], _: Deadline) -> list[int]:
        return list(rows)[1:]

    with pytest.raises(InvalidResponse):
        await Coalescer(send, CallLimits()).run([1, 2], Deadline.after(5))
