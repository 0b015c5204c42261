import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress

import pytest

from perf.sockets import Sockets, resolved

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Heard(asyncio.Protocol):
    """Keeps what a connection tells, and says what it is given to say at once."""

    def __init__(self, says: bytes = b"") -> None:
        self.received = b""
        self.lost: list[Exception | None] = []
        self._says = says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._says)

    def data_received(self, data: bytes) -> None:
        self.received += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


@asynccontextmanager
async def listening(serve: Serve) -> AsyncIterator[int]:
    """*serve* on any port, which is yielded; every connection is closed at the end."""
    writers: list[asyncio.StreamWriter] = []

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await serve(reader, writer)

    server = await asyncio.start_server(on_connection, "127.0.0.1", 0)
    async with server, asyncio.timeout(20):
        yield server.sockets[0].getsockname()[1]
        for writer in writers:
            writer.close()
        for writer in writers:
            with suppress(ConnectionError):
                await writer.wait_closed()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
    writer.close()


async def until(happened: Callable[[], bool]) -> None:
    while not happened():
        await asyncio.sleep(0.001)


async def test_what_is_said_before_a_connection_is_there_is_said_once_it_is() -> None:
    async with listening(echo) as port:
        with closing(Sockets()) as sockets:
            several = [Heard(b"%d" % number) for number in range(50)]
            address = await resolved("127.0.0.1", port)
            for heard in several:
                sockets.connect(address, heard)
            await until(lambda: all(heard.received for heard in several))
            several[0].transport.write(b" and more")
            await until(lambda: several[0].received == b"0 and more")

    assert [b"%d" % number for number in range(1, 50)] == [heard.received for heard in several[1:]]


async def test_more_than_the_kernel_takes_at_once_arrives_whole_and_in_order() -> None:
    said = bytes(range(256)) * 80_000
    async with listening(echo) as port:
        with closing(Sockets()) as sockets:
            heard = Heard(said[:10_000_000])
            sockets.connect(await resolved("127.0.0.1", port), heard)
            heard.transport.write(said[10_000_000:])
            await until(lambda: len(heard.received) >= len(said))

    assert said == heard.received


async def test_the_end_is_told_once_whoever_makes_it() -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with listening(hang_up) as port, listening(echo) as other:
        sockets = Sockets()
        theirs, ours, left = Heard(), Heard(), Heard()
        for heard, at in ((theirs, port), (ours, other), (left, other)):
            sockets.connect(await resolved("127.0.0.1", at), heard)
        await until(lambda: theirs.lost == [None])
        ours.transport.close()
        ours.transport.abort()
        ours.transport.write(b"nobody hears this")
        sockets.close()
        await asyncio.sleep(0.01)

    assert [[None]] * 3 == [theirs.lost, ours.lost, left.lost]
    assert ours.transport.is_closing()


async def test_where_nobody_listens_the_connection_ends_with_the_reason() -> None:
    async with listening(echo) as port:
        pass
    with closing(Sockets()) as sockets:
        heard = Heard(b"hello")
        sockets.connect(await resolved("127.0.0.1", port), heard)
        await until(lambda: bool(heard.lost))

    assert [ConnectionRefusedError] == [type(error) for error in heard.lost]


async def test_a_connection_that_is_reset_ends_with_the_reason() -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        writer.transport.abort()

    async with listening(reset) as port:
        with closing(Sockets()) as sockets:
            heard = Heard(b"x" * 1_000_000)
            sockets.connect(await resolved("127.0.0.1", port), heard)
            await until(lambda: bool(heard.lost))

    assert isinstance(heard.lost[0], ConnectionError)
    assert 1 == len(heard.lost)


async def test_one_that_ends_another_is_not_read_from_after_its_end() -> None:
    class Ends(Heard):
        other: Heard

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.other.transport.close()

    async with listening(echo) as port:
        with closing(Sockets()) as sockets:
            first, second = Ends(), Ends()
            first.other, second.other = second, first
            for heard in (first, second):
                sockets.connect(await resolved("127.0.0.1", port), heard)
            for heard in (first, second):
                heard.transport.write(b"now")
            await until(lambda: bool(first.lost or second.lost))
            await asyncio.sleep(0.05)

    assert [b"", b"now"] == sorted([first.received, second.received])


async def test_a_host_that_is_nowhere_is_an_error() -> None:
    with pytest.raises(socket.gaierror):
        await resolved("256.256.256.256", 1)
