"""One connection to a server, made by a channel."""

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from clients.wire.rpc import frames as h2
from clients.wire.rpc.client_call import Call
from clients.wire.rpc.connection import Bounds, Connection, Stream
from clients.wire.rpc.headers import Field
from clients.wire.rpc.messages import prefixed
from clients.wire.rpc.turns import TurnTransport

if TYPE_CHECKING:
    from clients.wire.rpc.channel import AsyncChannel

_LATE_SECONDS: Final = 0.02

MAX_PINGS_WITHOUT_DATA: Final = 2
"""Servers take more for an attack: grpc's own send no more either (GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA)."""

_LAST_STREAM_ID: Final = 2**30


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds.

    A connection is made within *connect*; after a failed attempt the next waits *backoff*, twice as long each time, at most
    *max_backoff*, and calls wait for it no longer than *again*. Where calls wait and nothing came for *keepalive*, the server is
    asked, and given up when it does not answer within *keepalive_timeout*.
    """

    connect: float = 5.0
    again: float = 0.2
    backoff: float = 0.1
    max_backoff: float = 1.0
    keepalive: float = 10.0
    keepalive_timeout: float = 5.0


class ClientConnection(Connection):
    """One connection to a server, until it breaks or the server gives it up."""

    def __init__(self, channel: "AsyncChannel", bounds: Bounds, patience: Patience, keepalive: float) -> None:
        super().__init__(bounds)
        self._channel = channel
        self.patience = patience
        self.keepalive = keepalive
        self.takes_calls = True
        loop = asyncio.get_running_loop()
        self.greeted: asyncio.Future[None] = loop.create_future()
        """Done once the server's settings came, or it is clear that they will not."""
        self.ended: asyncio.Future[None] = loop.create_future()
        self._next_id = 1
        self._waiting: dict[asyncio.Future[None], None] = {}
        self._num_called = 0
        """Of those that waited, who were called and did not begin yet; their places are theirs."""
        self._watch: asyncio.TimerHandle | None = None
        self._pings = 0
        self._pinged_at = 0.0

    @property
    def is_full(self) -> bool:
        """Whether the server takes no other call now, or others were first."""
        return bool(self._waiting) or len(self.streams) + self._num_called >= self.peer_max_streams

    @property
    def why(self) -> str:
        """Why it takes no calls."""
        return self._why

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        super().connection_made(TurnTransport(transport, self.streams))
        self._channel.remember(self)
        bounds = self.bounds
        ours = (
            (h2.ENABLE_PUSH, 0),
            (h2.INITIAL_WINDOW_SIZE, bounds.stream_window),
            (h2.MAX_FRAME_SIZE, bounds.max_frame_bytes),
            (h2.MAX_HEADER_LIST_SIZE, bounds.max_header_bytes),
        )
        self.write(h2.PREFACE + h2.settings(ours) + h2.window_update(0, bounds.connection_window - h2.DEFAULT_WINDOW))

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        super().connection_lost(exc)
        self._channel.forget(self)
        self.ended.set_result(None)
        if self._watch is not None:
            self._watch.cancel()

    def on_settings(self) -> None:
        """See `Connection`."""
        if not self.greeted.done():
            self.greeted.set_result(None)
        self._call_in()

    def fail(self, why: str, code: int) -> None:
        """See `Connection`."""
        super().fail(why if self.greeted.done() else "what answered does not speak HTTP/2", code)

    def on_down(self) -> None:
        """See `Connection`."""
        self.takes_calls = False
        self._channel.leave(self)
        if not self.greeted.done():
            self.greeted.set_result(None)
        self._call_in()

    def open_stream(self, stream_id: int, fields: list[Field], *, is_end: bool) -> None:
        """A server opens none."""
        raise h2.ProtocolError("a server opened a stream")

    def on_peer_goes(self, last_stream_id: int, code: int) -> None:
        """See `Connection`."""
        if code == h2.ENHANCE_YOUR_CALM:
            self._channel.calm_down()
        self.on_down()
        for stream in [stream for stream in self.streams.values() if stream.id > last_stream_id]:
            self.streams.pop(stream.id, None)
            stream.drop_unsent()
            stream.on_lost("the server is stopping and did not take the call")
        self._close_when_idle()

    def on_stream_over(self) -> None:
        """See `Connection`."""
        self._call_in()
        self._close_when_idle()

    def _close_when_idle(self) -> None:
        if not self.takes_calls and not self.streams and not self.is_lost:
            self.close("the server is stopping")

    def send_data(self, stream: Stream, content: bytes, *, is_end: bool) -> None:
        """See `Connection`."""
        self._pings = 0
        super().send_data(stream, content, is_end=is_end)

    async def room(self) -> None:
        """Wait until the server takes another call; who does not begin it then calls `give_back`."""
        if not self.is_full or not self.takes_calls:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = None
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                self._waiting.pop(waiter, None)
            else:
                self._num_called -= 1
                self._call_in()
            raise
        self._num_called -= 1

    def give_back(self) -> None:
        """A place is free again that nobody took."""
        self._call_in()

    def _call_in(self) -> None:
        """As many of those that wait as there are places; all, where there will be none."""
        while self._waiting and (not self.takes_calls or len(self.streams) + self._num_called < self.peer_max_streams):
            waiter = next(iter(self._waiting))
            del self._waiting[waiter]
            if not waiter.done():
                self._num_called += 1
                waiter.set_result(None)

    def begin(self, head: bytes, message: bytes | None, *, is_streaming: bool) -> Call:
        """Open a stream with *head*, a header block, and, where there is one, its only message."""
        content = None if message is None else prefixed(message)
        call = Call(self, self._next_id, is_streaming=is_streaming)
        self.last_id, self._next_id = call.id, call.id + 2
        if self._next_id > _LAST_STREAM_ID:
            self.on_down()
        self.streams[call.id] = call
        self._pings = 0
        if self._watch is None:
            self._watch = asyncio.get_running_loop().call_later(self.keepalive, self._look)
        self._send_beginning(call, head, content)
        return call

    def _send_beginning(self, call: Call, head: bytes, content: bytes | None) -> None:
        if content is None:
            self.send_headers(call, head, is_end=False)
            return
        size = len(content)
        if len(head) <= self.peer_frame_bytes and self.can_send_at_once(call, size):
            self.spend(call, size)
            call.is_ended_here = True
            first = h2.frame(h2.HEADERS, h2.END_HEADERS, call.id, head)
            self.write(first + h2.head(h2.DATA, h2.END_STREAM, call.id, size) + content)
            return
        self.send_headers(call, head, is_end=False)
        self.send_data(call, content, is_end=True)

    # Is anybody there

    def _look(self) -> None:
        """After a while with calls: ask a server that is silent, and give it up when it stays so."""
        self._watch = None
        if self.is_lost or not self.streams:
            return
        now = time.monotonic()
        if self._pinged_at > self.heard_at:
            due = self._pinged_at + self.patience.keepalive_timeout
            if now >= due + _LATE_SECONDS:
                self.abort("the server does not answer any more")
                return
            if now >= due:
                # A loop that was held up looks at its clocks before it reads what has come meanwhile.
                due = now + _LATE_SECONDS
        elif now < self.heard_at + self.keepalive:
            due = self.heard_at + self.keepalive
        elif self._pings < MAX_PINGS_WITHOUT_DATA:
            self._pings += 1
            self._pinged_at = now
            self.write(h2.frame(h2.PING, 0, 0, b"trunklin"))
            due = now + self.patience.keepalive_timeout
        else:
            due = now + self.keepalive
        self._watch = asyncio.get_running_loop().call_later(due - now, self._look)
