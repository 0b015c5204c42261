"""A lean HTTP/1.1 client: one keep-alive connection, one request at a time, some tens of microseconds each.

A load generator shares the machine with what it measures; a general client would cost as much as the service.
"""

import asyncio
from collections.abc import Callable
from typing import Final, cast

import httptools

LOST: Final = 0
"""The status of an answer that does not come: the connection has ended."""

Tell = Callable[[int, bytes], None]
"""Called once, with status and body."""


class ConnectionLostError(Exception):
    """The connection ended before the answer was complete."""


class Connection(asyncio.Protocol):
    """One connection. `request` is called again only after it returned; any failure closes it."""

    def __init__(self, host: str) -> None:
        self._host = host.encode()
        self._transport: asyncio.Transport | None = None
        self._tell: Tell | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._body = bytearray()
        self.failure = ConnectionLostError.__name__
        """Of a connection that has ended, why: the name of an exception."""

    @classmethod
    async def open(cls, host: str, port: int) -> "Connection":
        """Connect; OSError when nobody listens."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: cls(f"{host}:{port}"), host, port)
        return connection

    @property
    def is_open(self) -> bool:
        """Whether another request may be sent."""
        return self._transport is not None and not self._transport.is_closing()

    async def request(self, path: bytes, body: bytes, timeout: float) -> tuple[int, bytes]:
        """POST *body* as JSON; status and body of the answer.

        Raises:
            ConnectionLostError, TimeoutError: and the connection is closed.
        """
        answer: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()

        def tell(status: int, content: bytes) -> None:
            if not answer.done():
                answer.set_result((status, content))

        self.ask(path, body, tell)
        try:
            async with asyncio.timeout(timeout):
                status, content = await answer
        except BaseException:
            self.close()
            raise
        if status == LOST:
            raise ConnectionLostError
        return status, content

    def ask(self, path: bytes, body: bytes, tell: Tell) -> None:
        """POST *body* as JSON; *tell* gets status and body of the answer, or `LOST`."""
        if self._transport is None:
            tell(LOST, b"")
            return
        self._tell = tell
        head = b"POST %b HTTP/1.1\r\nhost: %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        self._transport.write(head % (path, self._host, len(body)) + body)

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._transport = None
        self.failure = ConnectionLostError.__name__ if exc is None else type(exc).__name__
        self._settle(LOST)

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    def on_message_begin(self) -> None:
        """See httptools."""
        self._body.clear()

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        self._body += body

    def on_message_complete(self) -> None:
        """See httptools."""
        goes_on = self._parser.should_keep_alive()
        # First: a transport may tell at once that it is closed, and an answer would count as lost.
        self._settle(self._parser.get_status_code())
        if not goes_on:
            self.close()

    def _settle(self, status: int) -> None:
        tell, self._tell = self._tell, None
        if tell is not None:
            tell(status, bytes(self._body))
