"""A small HTTP server whose answers a test decides."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

GOOD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"

Answer = Callable[[asyncio.StreamWriter, bytes], Awaitable[None]]
"""Writes the answer to a request with this body; it may close the writer instead."""


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[int]:
    """Serve on any port, which is yielded; every connection is closed at the end."""
    writers: list[asyncio.StreamWriter] = []

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head)
                assert length
                await answer(writer, await reader.readexactly(int(length[1])))
        writer.close()

    server = await asyncio.start_server(on_connection, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in writers:
            writer.close()
        for writer in writers:
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


class Scripted:
    """Answers with *answers* one after another, the last for ever; None drops the connection. Counts and keeps the bodies."""

    def __init__(self, *answers: bytes | None) -> None:
        self._answers = list(answers)
        self.bodies: list[bytes] = []
        self.callers: set[object] = set()

    async def __call__(self, writer: asyncio.StreamWriter, body: bytes) -> None:
        self.bodies.append(body)
        self.callers.add(writer.get_extra_info("peername"))
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        await asyncio.sleep(0.002)
        if answer is None:
            writer.close()
        else:
            writer.write(answer)


async def byte_by_byte(writer: asyncio.StreamWriter, _: bytes) -> None:
    """A good answer in pieces of one byte, each sent for itself."""
    for place in range(len(GOOD)):
        writer.write(GOOD[place : place + 1])
        await writer.drain()
        await asyncio.sleep(0)


class StallsOnce:
    """Answers at once, but from its *after*-th request on holds every answer until one stall of *seconds* is over."""

    def __init__(self, after: int, seconds: float) -> None:
        self._left, self._seconds = after, seconds
        self._over: float | None = None

    async def __call__(self, writer: asyncio.StreamWriter, _: bytes) -> None:
        now = asyncio.get_running_loop().time()
        self._left -= 1
        if self._left == 0:
            self._over = now + self._seconds
        if self._over is not None:
            await asyncio.sleep(max(0.0, self._over - now))
        await asyncio.sleep(0.001)
        writer.write(GOOD)
