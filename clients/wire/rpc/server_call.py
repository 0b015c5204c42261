"""One call at the answering end: what arrives of it, and its answer."""

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, cast

import grpc

from clients.wire.rpc import frames as h2
from clients.wire.rpc.connection import MESSAGE_COST, Stream
from clients.wire.rpc.headers import CONTENT_TYPE, MESSAGE, STATUS, Field, Metadata, block, metadata_fields, quoted
from clients.wire.rpc.messages import HEAD, MessageError, MessageReader, prefixed

if TYPE_CHECKING:
    from clients.wire.rpc.server import AsyncServer
    from clients.wire.rpc.server_connection import ServerConnection

_TURN_BYTES: Final = 262_144
"""A handler that has so much to say at once lets others have their turn."""

_HEAD_BLOCK: Final = block(
    ((":status", "200"), ("content-type", CONTENT_TYPE), ("grpc-accept-encoding", "identity, deflate, gzip"))
)

Handler = Any
"""`grpc.RpcMethodHandler`."""


class CallDetails(grpc.HandlerCallDetails):
    """What an interceptor learns of a call."""

    def __init__(self, method: str, metadata: Metadata) -> None:
        self.method = method
        self.invocation_metadata = metadata


class ServerCall(Stream):
    """One call: what arrives of it, and its answer."""

    __slots__ = (
        "begun",
        "details",
        "handler",
        "has_sent_head",
        "heard_at",
        "is_over",
        "is_request_streaming",
        "lying_since",
        "messages",
        "num_held",
        "num_lying",
        "num_sent",
        "peer",
        "reader",
        "task",
        "timer",
        "until",
        "waiter",
    )

    def __init__(self, connection: "ServerConnection", stream_id: int, details: CallDetails, handler: Handler) -> None:
        super().__init__(connection, stream_id)
        self.details = details
        self.handler = handler
        self.begun = self.heard_at = connection.heard_at
        self.is_request_streaming = bool(handler.request_streaming)
        """Of what was called; an interceptor may have it answered by a handler of another kind."""
        self.messages: deque[bytes] = deque()
        """As they came: compressed ones still are."""
        self.reader = MessageReader(connection.bounds.max_message_bytes)
        self.waiter: asyncio.Future[None] | None = None
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.until: float | None = None
        self.has_sent_head = False
        self.num_held = 0
        """Bytes of a unary call's message whose request has not ended."""
        self.num_sent = 0
        """Bytes since others had their turn."""
        self.is_over = False
        self.peer = connection.peer
        self.num_lying = 0
        self.lying_since = 0.0

    @property
    def server(self) -> "AsyncServer":
        """Whose it is."""
        return cast("ServerConnection", self.connection).server

    # Arriving

    def on_headers(self, fields: list[Field], *, is_end: bool) -> None:
        """Trailers, which no caller sends; they are the end all the same."""
        del fields
        if self.is_over:
            return
        if not is_end:
            self.refuse(grpc.StatusCode.INTERNAL, "headers came twice")
            return
        self._end_of_request()

    def on_data(self, content: bytes, *, is_end: bool) -> None:
        """Parts of messages."""
        if self.is_over:
            return
        self.heard_at = self.connection.heard_at
        connection, reader = self.connection, self.reader
        before = reader.num_kept
        try:
            messages = reader.cut(content)
        except MessageError as error:
            connection.num_kept -= before
            reader.num_kept = 0
            self.refuse(code_of(error), str(error))
            return
        connection.num_kept += reader.num_kept - before
        self.messages.extend(messages)
        if self.is_request_streaming:
            for message in messages:
                self.keep(len(message))
        elif len(self.messages) > 1:
            self.refuse(grpc.StatusCode.INTERNAL, "a call for one message brought several")
            return
        elif messages and not is_end:
            # Nobody reads it before the request has ended.
            self.num_held = len(messages[0])
            connection.num_kept += self.num_held
        if is_end:
            self._end_of_request()
        elif messages:
            self.tell()

    def _end_of_request(self) -> None:
        if self.reader.num_kept:
            self.refuse(grpc.StatusCode.INTERNAL, "the request ended within a message")
        elif self.is_request_streaming:
            self.tell()
        elif len(self.messages) == 1:
            self.start()
        else:
            self.refuse(grpc.StatusCode.INTERNAL, f"a call for one message brought {len(self.messages)}")

    def on_reset(self, code: int) -> None:
        """See `Stream`."""
        del code
        self.leave()

    def on_lost(self, why: str) -> None:
        """See `Stream`."""
        del why
        self.leave()

    def expire(self) -> None:
        """The time is over."""
        if self.is_over:
            self.connection.reset(self, h2.CANCEL)
            return
        self.refuse(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")

    def start(self) -> None:
        """All is there that the handler needs to begin."""
        self._let_go()
        self.task = asyncio.get_running_loop().create_task(self.server.run(self))
        self.server.running.add(self.task)
        self.task.add_done_callback(self.server.running.discard)

    def leave(self) -> None:
        """Nobody waits for the answer any more."""
        if self.is_over:
            # Its handler was cancelled already, or is through: a second time would cut off what it does at its end.
            return
        self._over()
        if self.task is not None:
            self.task.cancel()

    def _over(self) -> None:
        self.is_over = True
        self.server.num_open -= 1
        self._stop_timer()
        self.connection.num_kept -= self.reader.num_kept
        self.reader.num_kept = 0
        self._let_go()
        self.release()
        self.tell()

    def drop_unsent(self) -> None:
        """See `Stream`."""
        super().drop_unsent()
        self._stop_timer()

    def _stop_timer(self) -> None:
        """An answer that waits for credit still has the call's time to leave."""
        if self.timer is not None and not self.unsent:
            self.timer.cancel()

    def is_late(self, now: float, seconds: float) -> bool:
        """Whether nothing more of its request came for *seconds*, or not all of it in ten times that: nobody has begun it yet."""
        if self.is_over or self.task is not None:
            return False
        return now - self.heard_at > seconds or now - self.begun > 10 * seconds

    def is_left_lying(self, now: float, seconds: float) -> bool:
        """Whether it is answered, and nothing of the rest of its answer left for *seconds*."""
        if not self.is_over or self.num_lying != self.num_unsent:
            self.num_lying, self.lying_since = self.num_unsent, now
        return now - self.lying_since > seconds

    def _let_go(self) -> None:
        self.connection.num_kept -= self.num_held
        self.num_held = 0

    # Reading

    def tell(self) -> None:
        """Who reads looks again."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    async def next(self) -> bytes | None:
        """The next message of a stream; None at its end.

        Raises:
            MessageError: it is not compressed as it says.
        """
        while not self.messages:
            if self.is_ended_there or self.is_over:
                return None
            self.waiter = asyncio.get_running_loop().create_future()
            try:
                await self.waiter
            finally:
                self.waiter = None
        message = self.messages.popleft()
        self.consumed(len(message))
        return self.reader.unpacked(message)

    # Answering

    def answer(self, message: bytes, trailers: bytes) -> None:
        """All of a unary answer, in one piece where there is room for it."""
        if self.is_over:
            return
        connection, size = self.connection, HEAD.size + len(message)
        if self.has_sent_head or not connection.can_send_at_once(self, size):
            self.send_head()
            connection.send_data(self, prefixed(message), is_end=False)
            self.end(trailers)
            return
        connection.spend(self, size)
        self.is_ended_here = True
        connection.write(
            b"".join(
                (
                    h2.frame(h2.HEADERS, h2.END_HEADERS, self.id, _HEAD_BLOCK),
                    h2.head(h2.DATA, 0, self.id, size),
                    HEAD.pack(0, len(message)),
                    message,
                    h2.header_frames(trailers, self.id, h2.END_STREAM, connection.peer_frame_bytes),
                )
            )
        )
        self._ended()

    def send_head(self, metadata: Iterable[tuple[str, str | bytes]] = ()) -> None:
        """What comes before the first message."""
        if not self.has_sent_head and not self.is_over:
            extra = block(metadata_fields(metadata)) if metadata else b""
            self.has_sent_head = True
            self.connection.send_headers(self, _HEAD_BLOCK + extra, is_end=False)

    async def send(self, message: bytes) -> None:
        """A message of a stream, once there is room."""
        self.send_head()
        if not self.is_over:
            self.connection.send_data(self, prefixed(message), is_end=False)
            await self.has_room()
            self.num_sent += len(message) + MESSAGE_COST
            if self.num_sent > _TURN_BYTES:
                self.num_sent = 0
                await asyncio.sleep(0)

    def end(self, trailers: bytes) -> None:
        """The status."""
        if self.is_over:
            return
        if not self.has_sent_head:
            self.has_sent_head = True
            trailers = _HEAD_BLOCK + trailers
        self.connection.send_headers(self, trailers, is_end=True)
        self._ended()

    def _ended(self) -> None:
        self.is_through = True
        self._over()
        self.connection.settle(self)

    def refuse(self, code: grpc.StatusCode, message: str) -> None:
        """End it before its handler does."""
        if self.is_over:
            return
        if self.unsent:
            # A status would wait behind an answer that its caller does not take.
            self.leave()
            self.connection.reset(self, h2.CANCEL)
            return
        self.end(status_block(code, message))
        if self.task is not None:
            self.task.cancel()


def code_of(error: MessageError) -> grpc.StatusCode:
    """The status of a call whose message is refused for *error*."""
    return grpc.StatusCode.RESOURCE_EXHAUSTED if error.is_too_large else grpc.StatusCode.INTERNAL


def status_block(code: grpc.StatusCode, message: str, trailing: Iterable[tuple[str, str | bytes]] = ()) -> bytes:
    """The trailers of a call that ends so."""
    fields: list[Field] = [(STATUS, str(code.value[0]))]
    if message:
        fields.append((MESSAGE, quoted(message)))
    return block([*fields, *metadata_fields(trailing)])
