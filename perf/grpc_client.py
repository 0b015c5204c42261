"""A lean gRPC client: one connection, unary calls of one method, their messages made before, some ten microseconds each.

A load generator shares the machine with what it measures (see `perf.http_client`): a client that makes a message of each request
and an array of each answer takes several times as long. Frames are RFC 9113's, messages and trailers gRPC's.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final, cast

from clients.wire.rpc import frames as h2
from clients.wire.rpc.headers import HeaderReader, block
from clients.wire.rpc.messages import prefixed
from perf.load import TIMEOUT_SECONDS, LoadResult, cpu_measured

LOST: Final = "ConnectionLostError"
RESET: Final = "reset"
OK: Final = "0"

_WIDE: Final = 2**30
_CREDIT_AFTER: Final = 2**24
_PREFIX_BYTES: Final = 5

Tell = Callable[[str], None]
"""Called once: gRPC's status code in digits, `RESET`, or `LOST`."""


class Call:
    """A request's frames but for their stream: *message* to *path* of *authority*."""

    __slots__ = ("_block", "_parts", "num_bytes")

    def __init__(self, authority: str, path: str, message: bytes) -> None:
        fields = ((":method", "POST"), (":scheme", "http"), (":path", path), (":authority", authority))
        timeout = ("grpc-timeout", f"{TIMEOUT_SECONDS:.0f}S")
        self._block = block((*fields, ("te", "trailers"), ("content-type", "application/grpc"), timeout))
        content, size = prefixed(message), h2.DEFAULT_FRAME_BYTES
        self._parts = [content[start : start + size] for start in range(0, len(content), size)]
        self.num_bytes = len(content)

    def frames(self, stream_id: int) -> bytes:
        """The request's bytes as the stream *stream_id*."""
        data = [h2.frame(h2.DATA, 0, stream_id, part) for part in self._parts[:-1]]
        last = h2.frame(h2.DATA, h2.END_STREAM, stream_id, self._parts[-1])
        return b"".join((h2.frame(h2.HEADERS, h2.END_HEADERS, stream_id, self._block), *data, last))


class Connection(asyncio.Protocol):
    """One connection to a server that takes as many calls at once as are asked, each within a stream's window."""

    def __init__(self) -> None:
        self._frames = h2.FrameReader(h2.DEFAULT_FRAME_BYTES)
        self._headers = HeaderReader()
        self._told: dict[int, Tell] = {}
        self._with_content: set[int] = set()
        self._waiting: deque[tuple[Call, Tell]] = deque()
        self._window = h2.DEFAULT_WINDOW
        self._stream_window = h2.DEFAULT_WINDOW
        self._num_taken = 0
        self._next_id = 1
        self._out: list[bytes] | None = None
        self._transport: asyncio.Transport | None = None
        self._is_ready = asyncio.Event()

    @classmethod
    async def open(cls, host: str, port: int) -> "Connection":
        """Connect, and hear the server's settings.

        Raises:
            OSError: nobody listens, or no server of HTTP/2.
            TimeoutError: it says nothing.
        """
        _, connection = await asyncio.get_running_loop().create_connection(cls, host, port)
        await connection.begun()
        return connection

    @property
    def is_open(self) -> bool:
        """Whether there is somebody to ask."""
        return self._transport is not None

    async def begun(self) -> None:
        """Wait for the server's settings; raises as `open` does."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await self._is_ready.wait()
        if not self.is_open:
            raise ConnectionError("the server hung up")

    def ask(self, call: Call, tell: Tell) -> None:
        """Send *call*; *tell* hears how it ended."""
        if self._transport is None:
            tell(LOST)
        elif call.num_bytes > self._stream_window:
            raise ValueError("a message larger than a stream's window")
        elif self._waiting or call.num_bytes > self._window:
            self._waiting.append((call, tell))
        else:
            self._send(call, tell)

    def close(self) -> None:
        """End the connection; what was asked is told that it is lost."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self._transport = cast("asyncio.Transport", transport)
        # No table: then a block of headers means the same wherever it stands.
        ours = ((h2.HEADER_TABLE_SIZE, 0), (h2.ENABLE_PUSH, 0), (h2.INITIAL_WINDOW_SIZE, _WIDE))
        self._transport.write(h2.PREFACE + h2.settings(ours) + h2.window_update(0, _WIDE))

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._transport = None
        self._is_ready.set()
        left = [*self._told.values(), *(tell for _, tell in self._waiting)]
        self._told.clear()
        self._waiting.clear()
        for tell in left:
            tell(LOST)

    def data_received(self, data: bytes) -> None:
        """See asyncio. What is asked meanwhile leaves together."""
        self._out = []
        try:
            for one in self._frames.feed(data):
                self._on_frame(one)
        except h2.ProtocolError:
            self.close()
        out, self._out = self._out, None
        if out and self._transport is not None:
            self._transport.write(b"".join(out))

    def _write(self, content: bytes) -> None:
        if self._out is not None:
            self._out.append(content)
        elif self._transport is not None:
            self._transport.write(content)

    def _send(self, call: Call, tell: Tell) -> None:
        stream_id, self._next_id = self._next_id, self._next_id + 2
        self._told[stream_id] = tell
        self._window -= call.num_bytes
        self._write(call.frames(stream_id))

    def _on_frame(self, one: h2.Frame) -> None:
        if one.kind == h2.DATA:
            self._on_data(one)
        elif one.kind == h2.HEADERS:
            # Also what is of no interest: the reader is told all that a server says, in its order.
            fields = self._headers.read(h2.unpadded(h2.HEADERS, one.flags, one.payload))
            if not one.flags & h2.END_HEADERS:
                raise h2.ProtocolError("headers in several frames, which nobody here sends")
            if one.flags & h2.END_STREAM:
                self._ended(one.stream_id, dict(fields).get("grpc-status", RESET))
        elif one.kind == h2.RST_STREAM:
            self._ended(one.stream_id, RESET)
        elif one.kind == h2.WINDOW_UPDATE and not one.stream_id:
            self._window += h2.read_u32(one.payload) & h2.MAX_WINDOW
            while self._waiting and self._waiting[0][0].num_bytes <= self._window:
                self._send(*self._waiting.popleft())
        elif one.kind == h2.SETTINGS and not one.flags & h2.ACK:
            self._stream_window = dict(h2.read_settings(one.payload)).get(h2.INITIAL_WINDOW_SIZE, self._stream_window)
            self._write(h2.frame(h2.SETTINGS, h2.ACK, 0))
            self._is_ready.set()
        elif one.kind == h2.PING and not one.flags & h2.ACK:
            self._write(h2.frame(h2.PING, h2.ACK, 0, one.payload))

    def _on_data(self, one: h2.Frame) -> None:
        if len(one.payload) > _PREFIX_BYTES:
            self._with_content.add(one.stream_id)
        self._num_taken += len(one.payload)
        if self._num_taken > _CREDIT_AFTER:
            self._write(h2.window_update(0, self._num_taken))
            self._num_taken = 0

    def _ended(self, stream_id: int, status: str) -> None:
        tell = self._told.pop(stream_id, None)
        has_content = stream_id in self._with_content
        self._with_content.discard(stream_id)
        if tell is not None:
            # A good answer without a message in it is none.
            tell(status if status != OK or has_content else RESET)


async def closed_loop(
    connection: Connection,
    calls: Sequence[Call],
    *,
    texts: int,
    in_flight: int,
    seconds: float,
    pids: dict[str, int] | None = None,
) -> LoadResult:
    """Keep *in_flight* of *calls*, over and over, under way for *seconds*. See `perf.load.repeated` for what is counted."""
    result, turn, done = LoadResult(), _endless(calls), asyncio.Event()
    num_open = in_flight
    end = result.begin(seconds) + seconds

    def ask(since: float) -> None:
        connection.ask(next(turn), lambda status: answered(status, since))

    def answered(status: str, since: float) -> None:
        nonlocal num_open
        now = time.perf_counter()
        if status == OK:
            result.latencies.append(now - since)
            result.good(texts)
        else:
            result.failed(status, since, texts)
        if now < end and connection.is_open:
            ask(now)
        else:
            num_open -= 1
            if not num_open:
                done.set()

    with cpu_measured(pids or {}, result):
        for _ in range(in_flight):
            ask(time.perf_counter())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds + TIMEOUT_SECONDS):
                await done.wait()
        result.end()
    if num_open:
        # What is not answered by now counts as lost.
        connection.close()
        await done.wait()
    return result


def _endless(calls: Sequence[Call]) -> Iterator[Call]:
    while True:
        yield from calls
