"""Peers of the calling end: grpc.aio's own server, and servers that write frames by hand."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import grpc.aio

from clients.wire.rpc import frames as h2
from clients.wire.rpc.headers import block
from clients.wire.rpc.messages import prefixed

HEADERS = block(((":status", "200"), ("content-type", "application/grpc")))
OK = block((("grpc-status", "0"),))


class Service:
    """What the tests' grpc.aio server does, and what it saw."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.metadata: list[Any] = []

    async def echo(self, request: bytes, context: Any) -> bytes:
        self.metadata = list(context.invocation_metadata())
        return request

    async def never(self, request: bytes, context: Any) -> bytes:
        del request, context
        self.began.set()
        try:
            return await asyncio.get_running_loop().create_future()
        finally:
            self.cancelled.set()

    async def hold(self, request: bytes, context: Any) -> bytes:
        del context
        self.began.set()
        await asyncio.sleep(0.2)
        return request

    async def refuse(self, request: bytes, context: Any) -> bytes:
        number, _, message = request.decode().partition(" ")
        code = next(code for code in grpc.StatusCode if code.value[0] == int(number))
        await context.abort(code, message, (("retry-after-ms", "7"), ("raw-bin", b"\x00\xff")))
        return b""

    async def count(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        del context
        for number in range(int(request)):
            yield str(number).encode()

    async def many(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        del context
        self.began.set()
        try:
            async for request in requests:
                yield request
        finally:
            self.cancelled.set()

    def handlers(self) -> Any:
        return grpc.method_handlers_generic_handler(
            "s",
            {
                "echo": grpc.unary_unary_rpc_method_handler(self.echo),
                "never": grpc.unary_unary_rpc_method_handler(self.never),
                "hold": grpc.unary_unary_rpc_method_handler(self.hold),
                "refuse": grpc.unary_unary_rpc_method_handler(self.refuse),
                "count": grpc.unary_stream_rpc_method_handler(self.count),
                "many": grpc.stream_stream_rpc_method_handler(self.many),
            },
        )


@asynccontextmanager
async def grpc_server(
    address: str = "127.0.0.1:0", credentials: grpc.ServerCredentials | None = None, **options: int
) -> AsyncIterator[tuple[Service, str, grpc.aio.Server]]:
    """A service, its address and its server."""
    service = Service()
    sizes = {"max_receive_message_length": -1, "max_send_message_length": -1, **options}
    server = grpc.aio.server(options=[(f"grpc.{name}", value) for name, value in sizes.items()])
    server.add_generic_rpc_handlers((service.handlers(),))
    port = server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
    await server.start()
    place = address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"
    try:
        yield service, place, server
    finally:
        await server.stop(None)


class Peer:
    """One connection of a server that is written by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self.frames: list[h2.Frame] = []
        """All that came, but for acknowledgements."""

    async def greet(self, **settings: int) -> None:
        """What a server says first; *settings* by their names in `frames`."""
        assert h2.PREFACE == await self._reader.readexactly(len(h2.PREFACE))
        self.send(h2.settings([(getattr(h2, name.upper()), value) for name, value in settings.items()]))

    def send(self, *parts: bytes) -> None:
        """Bytes as they are."""
        self.writer.write(b"".join(parts))

    async def read(self) -> h2.Frame | None:
        """The next frame; None at the end of the connection."""
        try:
            head = await self._reader.readexactly(h2.HEAD_BYTES)
            payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        frame = h2.Frame(head[3], head[4], int.from_bytes(head[5:9], "big"), payload)
        self.frames.append(frame)
        return frame

    async def until(self, kind: int, stream_id: int | None = None, flags: int = 0) -> h2.Frame:
        """The next frame of a *kind*."""
        while (frame := await self.read()) is not None:
            if frame.kind == kind and stream_id in {None, frame.stream_id} and frame.flags & flags == flags:
                return frame
        raise AssertionError("the connection ended before")

    async def call(self) -> int:
        """Read a unary call; its stream."""
        return (await self.until(h2.DATA, flags=h2.END_STREAM)).stream_id

    def answer(self, stream_id: int, message: bytes = b"ok") -> None:
        """A unary answer."""
        self.head(stream_id)
        self.send(h2.frame(h2.DATA, 0, stream_id, prefixed(message)))
        self.end(stream_id)

    def head(self, stream_id: int, content: bytes = HEADERS, *, is_end: bool = False) -> None:
        """A header block."""
        self.send(h2.frame(h2.HEADERS, h2.END_HEADERS | (h2.END_STREAM if is_end else 0), stream_id, content))

    def end(self, stream_id: int, content: bytes = OK) -> None:
        """Trailers."""
        self.head(stream_id, content, is_end=True)

    async def ended(self) -> None:
        """Read until the other end hangs up."""
        while await self.read() is not None:
            pass


Script = Callable[[Peer], Awaitable[None]]


@asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[str]:
    """The address of a server that follows *script* on each connection; what goes wrong in it is raised here."""
    running: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await script(Peer(reader, writer))
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        running.append(asyncio.create_task(serve(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with asyncio.timeout(5):
            await asyncio.gather(*running)
    finally:
        server.close()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await server.wait_closed()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
