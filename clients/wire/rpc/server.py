"""The answering end, with the face of `grpc.aio.Server`: grpcio's handlers, interceptors and contexts, on the event loop.

Differences from grpc.aio: no reflection, no compression of answers, no channel arguments; a handler is begun when its request is
whole; what a handler raises is logged, and told to nobody.
"""

import asyncio
import contextlib
import inspect
import logging
import os
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import grpc
import grpc.aio

from clients.wire.rpc.connection import Bounds
from clients.wire.rpc.messages import MessageError
from clients.wire.rpc.server_call import CallDetails, Handler, ServerCall, code_of, status_block
from clients.wire.rpc.server_connection import Patience, ServerConnection
from clients.wire.rpc.server_context import Context, NotParsedError, Requests, request_of
from clients.wire.rpc.sockets import BACKLOG, parse_address, tcp_socket, unix_socket

__all__ = ["MAX_CONNECTIONS", "SERVER_BOUNDS", "AsyncServer", "Patience"]

_log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 8_192

SERVER_BOUNDS: Final = Bounds(max_streams=1_024, stream_window=524_288)
"""The product of the two is what one connection may have waiting for handlers that do not read."""

_OK: Final = grpc.StatusCode.OK


class AsyncServer:
    """Answers calls by grpcio's handlers.

    *interceptors*: `grpc.aio.ServerInterceptor`s, the first one outermost. *max_running* calls are worked on at a time, of all
    callers; more are refused as HTTP/2 refuses streams, which callers read as UNAVAILABLE. Above *max_connections*, new ones are
    hung up on.
    """

    def __init__(
        self,
        interceptors: Sequence[Any] = (),
        *,
        bounds: Bounds | None = None,
        patience: Patience | None = None,
        max_running: int = 65_536,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self.bounds = bounds or SERVER_BOUNDS
        self.patience = patience or Patience()
        self.max_running = max_running
        self.max_connections = max_connections
        self.num_open = 0
        """Calls that came in and are not over."""
        self.connections: set[ServerConnection] = set()
        self.running: set[asyncio.Task[None]] = set()
        self.is_stopping = False
        self._generic: list[Any] = []
        self._interceptors = tuple(interceptors)
        self._listeners: list[tuple[socket.socket, ssl.SSLContext | None]] = []
        self._servers: list[asyncio.Server] = []
        self._paths: list[tuple[str, int]] = []
        self._sweeping: asyncio.Task[None] | None = None
        self._empty = asyncio.Event()
        self._stopped = asyncio.Event()

    # What grpc.aio.Server has

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[Any]) -> None:
        """See grpc.aio."""
        self._generic.extend(generic_rpc_handlers)

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Any]) -> None:
        """What generated code calls beside the above; there is nothing more to know."""

    def add_insecure_port(self, address: str) -> int:
        """Listen on `host:port` or `unix:path`; the port, 0 for a path.

        Raises:
            RuntimeError: it cannot be listened on; what it is from says why.
        """
        return self._listen(address, None)

    def add_secure_port(self, address: str, context: ssl.SSLContext) -> int:
        """`add_insecure_port`'s twin, by TLS."""
        context.set_alpn_protocols(["h2"])
        return self._listen(address, context)

    async def start(self) -> None:
        """Take calls."""
        loop = asyncio.get_running_loop()

        def make() -> ServerConnection:
            return ServerConnection(self, self.bounds)

        for listener, context in self._listeners:
            secure: dict[str, Any] = {} if context is None else {"ssl": context, **_tls_bounds(self.patience)}
            if listener.family == socket.AF_UNIX:
                self._servers.append(await loop.create_unix_server(make, sock=listener, backlog=BACKLOG, **secure))
            else:
                self._servers.append(await loop.create_server(make, sock=listener, backlog=BACKLOG, **secure))
        self._listeners.clear()
        self._sweeping = asyncio.create_task(self._sweep())

    async def stop(self, grace: float | None = None) -> None:
        """Take no more calls; those under way have *grace* seconds, and are cancelled then."""
        self.is_stopping = True
        self._stop_listening()
        for connection in list(self.connections):
            connection.stop()
        if grace:
            await self._wait_until_empty(grace)
        await self._end_all()
        self._stopped.set()

    async def wait_for_termination(self, timeout: float | None = None) -> bool:
        """Wait until it has stopped; whether *timeout* was over before."""
        try:
            async with asyncio.timeout(timeout):
                await self._stopped.wait()
        except TimeoutError:
            return True
        return False

    # Its own

    def handler_of(self, details: CallDetails) -> Handler | None:
        """The handler of a method."""
        for generic in self._generic:
            handler = generic.service(details)
            if handler is not None:
                return handler
        return None

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another call. Handlers may outlast their calls."""
        return max(self.num_open, len(self.running)) >= self.max_running

    def remember(self, connection: ServerConnection) -> None:
        """It has begun."""
        self.connections.add(connection)
        self._empty.clear()

    def forget(self, connection: ServerConnection) -> None:
        """It has ended."""
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()

    async def run(self, call: ServerCall) -> None:
        """Have *call* answered, whatever its handler does."""
        context = Context(call)
        try:
            await self._answer(call, context)
        except NotParsedError:
            call.end(status_block(grpc.StatusCode.INTERNAL, "the request could not be parsed"))
        except MessageError as error:
            call.end(status_block(code_of(error), str(error)))
        except asyncio.CancelledError:
            call.end(status_block(grpc.StatusCode.CANCELLED, "the call was cancelled"))
            raise
        except Exception:  # whatever it is, the caller learns that it was not the request
            _log.exception("a handler of gRPC calls failed")
            call.end(status_block(grpc.StatusCode.UNKNOWN, "the server met an internal error"))
        finally:
            context.through()

    async def _answer(self, call: ServerCall, context: Context) -> None:
        try:
            handler = await self._intercepted(call) if self._interceptors else call.handler
            if handler is None:
                call.end(status_block(grpc.StatusCode.UNIMPLEMENTED, "Method not found!"))
                return
            call.handler = handler
            if handler.response_streaming:
                await self._stream(call, handler, context)
                call.end(context.trailers())
            else:
                await self._single(call, handler, context)
        except grpc.aio.AbortError:
            call.end(context.trailers())

    async def _intercepted(self, call: ServerCall) -> Handler | None:
        async def innermost(details: Any) -> Handler | None:
            return call.handler if details is call.details else self.handler_of(details)

        continuation: Callable[[Any], Awaitable[Any]] = innermost
        for interceptor in reversed(self._interceptors):
            continuation = _around(interceptor, continuation)
        return await continuation(call.details)

    async def _single(self, call: ServerCall, handler: Handler, context: Context) -> None:
        if handler.request_streaming:
            answer = await handler.stream_unary(Requests(call), context)
        else:
            answer = await handler.unary_unary(await request_of(call, handler), context)
        if context.code() is not _OK:
            call.end(context.trailers())
            return
        call.answer(handler.response_serializer(answer) if handler.response_serializer else answer, context.trailers())

    async def _stream(self, call: ServerCall, handler: Handler, context: Context) -> None:
        if handler.request_streaming:
            answers = handler.stream_stream(Requests(call), context)
        else:
            answers = handler.unary_stream(await request_of(call, handler), context)
        if not inspect.isasyncgen(answers) and not hasattr(answers, "__aiter__"):
            # It writes by itself.
            await answers
            return
        serialize = handler.response_serializer
        try:
            async for answer in answers:
                await call.send(serialize(answer) if serialize else answer)
        finally:
            # Iterators that are no generators have nothing to close.
            if hasattr(answers, "aclose"):
                await answers.aclose()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self.patience.sweep)
            now = time.monotonic()
            for connection in list(self.connections):
                connection.sweep(now)

    async def _end_all(self) -> None:
        for connection in list(self.connections):
            for stream in list(connection.streams.values()):
                assert isinstance(stream, ServerCall)
                if stream.unsent:
                    # It hears so from the connection's end: a status would wait behind what it does not take.
                    stream.leave()
                else:
                    stream.refuse(grpc.StatusCode.UNAVAILABLE, "the server is stopping")
            connection.close("the server is stopping")
        if self.running:
            _, left = await asyncio.wait(self.running, timeout=self.patience.close)
            if left:
                _log.warning("%d handlers of gRPC calls go on though their calls are over", len(left))
        await self._wait_until_empty(self.patience.close)
        for connection in list(self.connections):
            connection.transport.abort()
        await self._wait_until_empty(None)
        if self._sweeping is not None:
            self._sweeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeping

    async def _wait_until_empty(self, seconds: float | None) -> None:
        if self.connections:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._empty.wait()

    def _stop_listening(self) -> None:
        """Once: a path may be another server's the next time."""
        servers, self._servers = self._servers, []
        for server in servers:
            server.close()
        listeners, self._listeners = self._listeners, []
        for listener, _ in listeners:
            listener.close()
        paths, self._paths = self._paths, []
        for path, number in paths:
            with contextlib.suppress(OSError):
                if os.stat(path).st_ino == number:  # noqa: PTH116 (a socket's name, as it was bound)
                    os.unlink(path)  # noqa: PTH108

    def _listen(self, address: str, context: ssl.SSLContext | None) -> int:
        try:
            path, host, port = parse_address(address)
            listener = unix_socket(path) if path else tcp_socket(host, port)
        except (OSError, ValueError) as error:
            raise RuntimeError(f"{address} cannot be listened on: {error}") from error
        self._listeners.append((listener, context))
        if path:
            self._paths.append((path, os.stat(path).st_ino))  # noqa: PTH116
            return 0
        return int(listener.getsockname()[1])


def _tls_bounds(patience: Patience) -> dict[str, float]:
    return {"ssl_handshake_timeout": patience.receive, "ssl_shutdown_timeout": 10 * patience.close}


def _around(interceptor: Any, continuation: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
    async def call(details: Any) -> Any:
        return await interceptor.intercept_service(continuation, details)

    return call
