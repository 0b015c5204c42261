"""One call at the calling end: messages as they come, and how it ended."""

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

import grpc
import grpc.aio

from clients.wire.rpc import frames as h2
from clients.wire.rpc.connection import Bounds, Stream
from clients.wire.rpc.headers import CODES, HTTP_CODES, MESSAGE, STATUS, Field, is_grpc, read_metadata, unquoted
from clients.wire.rpc.messages import MessageError, MessageReader

if TYPE_CHECKING:
    from clients.wire.rpc.client_connection import ClientConnection

_RESET_CODES: Final = {
    h2.REFUSED_STREAM: grpc.StatusCode.UNAVAILABLE,
    h2.CANCEL: grpc.StatusCode.CANCELLED,
    h2.ENHANCE_YOUR_CALM: grpc.StatusCode.RESOURCE_EXHAUSTED,
    h2.INADEQUATE_SECURITY: grpc.StatusCode.PERMISSION_DENIED,
}
"""What a reset means (doc/PROTOCOL-HTTP2.md); all others are INTERNAL."""


def rpc_error(code: grpc.StatusCode, message: str, trailing: Iterable[Field] = ()) -> grpc.aio.AioRpcError:
    """What a call that did not end well raises, as grpc.aio's do."""
    metadata = grpc.aio.Metadata(*read_metadata(trailing))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, message, None)


class Ending(NamedTuple):
    """How a call ended that did not end well.

    It is kept instead of the error, which is made for each who asks: an error that is raised holds the frames it passed through,
    and so whoever kept it.
    """

    code: grpc.StatusCode
    message: str
    trailing: tuple[Field, ...] = ()

    def error(self) -> grpc.aio.AioRpcError:
        """What to raise."""
        return rpc_error(self.code, self.message, self.trailing)


EXPIRED: Final = Ending(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
CANCELLED: Final = Ending(grpc.StatusCode.CANCELLED, "the call was cancelled")
CLOSED_DURING: Final = Ending(grpc.StatusCode.CANCELLED, "the client was closed during the call")
CLOSED: Final = Ending(grpc.StatusCode.CANCELLED, "the client is closed")


def too_large(bounds: Bounds) -> Ending:
    """That of a call whose message is."""
    return Ending(grpc.StatusCode.RESOURCE_EXHAUSTED, f"a message is larger than {bounds.max_message_bytes} bytes")


class Call(Stream):
    """One call's stream: messages as they come, and how it ended."""

    __slots__ = ("_messages", "_reader", "_waiter", "ending", "has_headers", "is_over", "is_streaming", "loop", "timer")

    def __init__(self, connection: "ClientConnection", stream_id: int, *, is_streaming: bool) -> None:
        super().__init__(connection, stream_id)
        self.is_streaming = is_streaming
        self.has_headers = False
        self.is_over = False
        self.ending: Ending | None = None
        """None while it is under way, and where it ended well."""
        self.loop = asyncio.get_running_loop()
        self.timer: asyncio.TimerHandle | None = None
        self._messages: deque[bytes] = deque()
        self._reader = MessageReader(connection.bounds.max_message_bytes)
        self._waiter: asyncio.Future[None] | None = None

    # Arriving

    def on_headers(self, fields: list[Field], *, is_end: bool) -> None:
        """The first block, or the last, or both in one."""
        if is_end:
            self._end(_outcome(fields, is_alone=not self.has_headers))
            return
        if self.has_headers:
            self._give_up(Ending(grpc.StatusCode.INTERNAL, "the server sent headers twice"), h2.PROTOCOL_ERROR)
            return
        found = dict(fields)
        if found.get(":status", "").startswith("1"):
            return
        self.has_headers = True
        if found.get(":status") != "200" or not is_grpc(found.get("content-type", "")):
            self._give_up(_http_ending(found), h2.CANCEL)

    def on_data(self, content: bytes, *, is_end: bool) -> None:
        """Parts of messages."""
        if not self.has_headers:
            self._give_up(Ending(grpc.StatusCode.INTERNAL, "the server sent data before headers"), h2.PROTOCOL_ERROR)
            return
        connection, before = self.connection, self._reader.num_kept
        try:
            for message in self._reader.feed(content):
                self._messages.append(message)
                if self.is_streaming:
                    self.keep(len(message))
        except MessageError as error:
            code = grpc.StatusCode.RESOURCE_EXHAUSTED if error.is_too_large else grpc.StatusCode.INTERNAL
            connection.num_kept -= before
            self._reader.num_kept = 0
            self._give_up(Ending(code, str(error)), h2.CANCEL)
            return
        connection.num_kept += self._reader.num_kept - before
        if is_end:
            self._end(Ending(grpc.StatusCode.INTERNAL, "the answer ended without a status"))
        elif self._messages:
            self._tell_of_messages()

    def _tell_of_messages(self) -> None:
        if self.is_streaming:
            self._tell()
        elif len(self._messages) > 1:
            self._give_up(Ending(grpc.StatusCode.INTERNAL, "the server answered several messages to a call for one"), h2.CANCEL)

    def on_reset(self, code: int) -> None:
        """See `Stream`."""
        status = _RESET_CODES.get(code, grpc.StatusCode.INTERNAL)
        self._end(Ending(status, f"the server gave the call up (HTTP/2 error {code})"))

    def on_too_large(self) -> None:
        """See `Stream`."""
        self._end(Ending(grpc.StatusCode.RESOURCE_EXHAUSTED, "the server's metadata are larger than they may be"))

    def on_lost(self, why: str) -> None:
        """See `Stream`."""
        self._end(Ending(grpc.StatusCode.UNAVAILABLE, why))

    # Ending

    def expire(self) -> None:
        """The time is over."""
        self._give_up(EXPIRED, h2.CANCEL)

    def cancel(self, ending: Ending = CANCELLED) -> None:
        """Nobody waits for it any more."""
        self._give_up(ending, h2.CANCEL)

    def _give_up(self, ending: Ending, code: int) -> None:
        if not self.is_over:
            self._end(ending)
            self.connection.reset(self, code)

    def _end(self, ending: Ending | None) -> None:
        if self.is_over:
            return
        self.is_over = True
        self.ending = ending
        self.connection.num_kept -= self._reader.num_kept
        self._reader.num_kept = 0
        if self.timer is not None:
            self.timer.cancel()
        if self.is_ended_there and (self.unsent or not self.is_ended_here):
            # It has said all it will, and need not hear the rest.
            self.connection.reset(self, h2.NO_ERROR)
        self.release()
        self._tell()

    # Reading

    def _tell(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        if self._waiter is not None:
            raise asyncio.InvalidStateError("somebody else reads this call")
        self._waiter = self.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    async def answer(self) -> bytes:
        """A unary call's one message."""
        try:
            if not self.is_over:
                await self._wait()
        except BaseException:
            self.cancel()
            raise
        if self.ending is not None:
            raise self.ending.error()
        if len(self._messages) != 1:
            raise rpc_error(grpc.StatusCode.INTERNAL, f"the server answered {len(self._messages)} messages to a call for one")
        return self._messages[0]

    async def next(self) -> bytes | None:
        """A stream's next message; None at its end. Who is cancelled meanwhile has cancelled the call."""
        while not self._messages:
            if self.ending is not None:
                raise self.ending.error()
            if self.is_over:
                return None
            try:
                await self._wait()
            except asyncio.CancelledError:
                self.cancel()
                raise
        message = self._messages.popleft()
        self.consumed(len(message))
        return message


def _outcome(fields: list[Field], *, is_alone: bool) -> Ending | None:
    """What trailers say; *is_alone*: nothing came before them. None: all is well."""
    found = dict(fields)
    status = found.get(STATUS, "")
    if not status:
        is_foreign = is_alone and (found.get(":status") != "200" or not is_grpc(found.get("content-type", "")))
        return _http_ending(found) if is_foreign else Ending(grpc.StatusCode.UNKNOWN, "the answer ended without a status")
    if status == "0":
        return None
    code = CODES.get(int(status)) if len(status) <= 2 and status.isascii() and status.isdigit() else None
    return Ending(code or grpc.StatusCode.UNKNOWN, unquoted(found.get(MESSAGE, "")), tuple(fields))


def _http_ending(found: dict[str, str]) -> Ending:
    status = found.get(":status", "")
    if status == "200":
        return Ending(grpc.StatusCode.UNKNOWN, "what answered is no gRPC server")
    return Ending(HTTP_CODES.get(status, grpc.StatusCode.UNKNOWN), f"the server answered HTTP {status[:3]}")
