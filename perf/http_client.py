"""A lean HTTP/1.1 client: one keep-alive connection, one request at a time, some tens of microseconds each.

A load generator shares the machine with what it measures; a general client would cost as much as the service.
"""

import asyncio
from typing import cast

import httptools


class ConnectionLostError(Exception):
    """The connection ended before the answer was complete."""


class Connection(asyncio.Protocol):
    """One connection. `request` is called again only after it returned; any failure closes it."""

    def __init__(self, host: str) -> None:
        self._host = host.encode()
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._body = bytearray()

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
        if self._transport is None:
            raise ConnectionLostError
        self._answer = asyncio.get_running_loop().create_future()
        head = b"POST %b HTTP/1.1\r\nhost: %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        self._transport.write(head % (path, self._host, len(body)) + body)
        try:
            async with asyncio.timeout(timeout):
                return await self._answer
        except BaseException:
            self.close()
            raise

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
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionLostError())

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
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((self._parser.get_status_code(), bytes(self._body)))
        if not self._parser.should_keep_alive():
            self.close()
