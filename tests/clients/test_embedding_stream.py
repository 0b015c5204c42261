import asyncio
from collections.abc import AsyncIterator

import pytest

from clients import Deadline, DeadlineExceeded
from clients._embedding_stream import MAX_INPUTS, AsyncEmbeddingStream
from clients._embedding_wire import EmbedOptions


class CallThatIsNotRead:
    """The other side keeps the connection, and reads nothing."""

    def __init__(self) -> None:
        self.never = asyncio.Event()

    async def write(self, _: bytes) -> None:
        await self.never.wait()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        await self.never.wait()
        yield b""

    def cancel(self) -> None:
        self.never.set()


async def test_who_has_left_a_service_that_does_not_read_is_forgotten() -> None:
    stream = AsyncEmbeddingStream(CallThatIsNotRead, EmbedOptions(), max_open=10_000)
    first = asyncio.create_task(stream.embed(["it is being written"], Deadline.after(60)))
    await asyncio.sleep(0)
    for _ in range(20):
        with pytest.raises(DeadlineExceeded):
            await stream.embed(["a"] * 100, Deadline.after(0.001))

    assert 1 == stream.num_open
    assert len(stream._unsent) <= 2 + MAX_INPUTS
    first.cancel()
    await stream.close()
