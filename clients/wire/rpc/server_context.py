"""A call as its handler sees it, and its requests."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Self

import grpc
import grpc.aio

from clients.wire.rpc.headers import STATUS, Metadata, block
from clients.wire.rpc.server_call import Handler, ServerCall, status_block

_log = logging.getLogger(__name__)

_OK: Final = grpc.StatusCode.OK
_OK_BLOCK: Final = block(((STATUS, "0"),))


class Context:
    """A call as its handler sees it; `grpc.aio.ServicerContext`'s face."""

    __slots__ = ("_call", "_callbacks", "_code", "_details", "_trailing")

    def __init__(self, call: ServerCall) -> None:
        self._call = call
        self._code = _OK
        self._details = ""
        self._trailing: tuple[tuple[str, str | bytes], ...] = ()
        self._callbacks: list[Callable[[Any], None]] = []

    def invocation_metadata(self) -> Metadata:
        """What the caller sent beside its request."""
        return self._call.details.invocation_metadata

    def time_remaining(self) -> float | None:
        """Seconds until the caller's deadline; None where it has none."""
        until = self._call.until
        return None if until is None else max(0.0, until - time.monotonic())

    def peer(self) -> str:
        """Who calls, as gRPC writes it."""
        return self._call.peer

    def peer_identities(self) -> None:
        """Not told."""

    def peer_identity_key(self) -> None:
        """Not told."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Nothing: who may call is decided by keys."""
        return {}

    def set_compression(self, compression: grpc.Compression) -> None:
        """Answers are not compressed."""

    def set_code(self, code: grpc.StatusCode) -> None:
        """The status, once the handler is through."""
        self._code = code

    def set_details(self, details: str) -> None:
        """The status's message."""
        self._details = details

    def set_trailing_metadata(self, trailing_metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """What goes with the status."""
        self._trailing = tuple(trailing_metadata)

    def code(self) -> grpc.StatusCode:
        """As it was set."""
        return self._code

    def details(self) -> str:
        """As they were set."""
        return self._details

    def trailing_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """As it was set."""
        return self._trailing

    async def send_initial_metadata(self, initial_metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """What goes before the first message."""
        self._call.send_head(tuple(initial_metadata))

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Iterable[tuple[str, str | bytes]] = ()
    ) -> None:
        """End the call now; raises what nobody should catch.

        Raises:
            grpc.aio.AbortError: always.
        """
        # As grpc.aio does: whoever aborts does not mean that all is well.
        self._code, self._details = (grpc.StatusCode.UNKNOWN, "") if code is _OK else (code, details)
        if trailing_metadata:
            self._trailing = tuple(trailing_metadata)
        raise grpc.aio.AbortError

    async def read(self) -> Any:
        """The next message of a stream, or grpc.aio.EOF."""
        message = await self._call.next()
        return grpc.aio.EOF if message is None else parsed(self._call.handler, message)

    async def write(self, message: Any) -> None:
        """A message of the answer."""
        serialize = self._call.handler.response_serializer
        await self._call.send(serialize(message) if serialize else message)

    def cancelled(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self._call.is_over and not self._call.is_ended_here

    def done(self) -> bool:
        """Whether it is over."""
        return self._call.is_over

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """*callback* is called with this context when the handler is through."""
        self._callbacks.append(callback)

    def through(self) -> None:
        """The handler has ended."""
        for callback in self._callbacks:
            try:
                callback(self)
            except Exception:  # whatever it is, the others are called
                _log.exception("a callback of a gRPC call failed")

    def trailers(self) -> bytes:
        """The status as a header block.

        Raises:
            ValueError: what was set cannot be sent.
        """
        if self._code is _OK and not self._details and not self._trailing:
            return _OK_BLOCK
        return status_block(self._code, self._details, self._trailing)


class Requests:
    """A stream's requests, as its handler iterates over them."""

    __slots__ = ("_call",)

    def __init__(self, call: ServerCall) -> None:
        self._call = call

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        message = await self._call.next()
        if message is None:
            raise StopAsyncIteration
        return parsed(self._call.handler, message)


class NotParsedError(Exception):
    """A request is not the message that it should be."""


def parsed(handler: Handler, message: bytes) -> Any:
    """*message* as *handler* wants it.

    Raises:
        NotParsedError: its parser refuses it.
    """
    if handler.request_deserializer is None:
        return message
    try:
        return handler.request_deserializer(message)
    except Exception:  # whatever a parser raises
        raise NotParsedError from None


async def request_of(call: ServerCall, handler: Handler) -> Any:
    """The one request of a call for one message.

    Raises:
        NotParsedError: there is none, or it is not one.
        MessageError: it is not compressed as it says.
    """
    message = await call.next()
    if message is None:
        # Its interceptor chose a handler for one message, and its caller sent none.
        raise NotParsedError
    return parsed(handler, message)
