"""A stream of messages, both ways, as a caller holds it."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Self

import grpc
import grpc.aio

from clients.wire.rpc.client_call import CANCELLED, Call, Ending, too_large
from clients.wire.rpc.messages import prefixed


class StreamCall:
    """A stream, with the face of grpc.aio's. It begins with the first thing that is asked of it.

    As there, the call is cancelled when somebody is cancelled who waits for it, and when nobody holds it any more.
    """

    def __init__(self, begin: Callable[[], Awaitable[Call]]) -> None:
        self._begin = begin
        self._call: Call | None = None
        self._beginning: asyncio.Task[None] | None = None
        self._ending: Ending | None = None
        """Why it never began."""

    def __del__(self) -> None:
        call = self._call
        if call is not None and not call.is_over:
            # The collector may run in any thread, and after the loop.
            with contextlib.suppress(RuntimeError):
                call.loop.call_soon_threadsafe(call.cancel)

    async def write(self, message: bytes) -> None:
        """Send *message*, once there is room for it.

        Raises:
            asyncio.InvalidStateError: the call is over; reading says how it ended.
            grpc.aio.AioRpcError: it could not begin.
        """
        call = await self._begun()
        if call.is_over or call.is_ended_here:
            raise asyncio.InvalidStateError("the call is over")
        if len(message) > call.connection.bounds.max_message_bytes:
            call.cancel(too_large(call.connection.bounds))
        else:
            call.connection.send_data(call, prefixed(message), is_end=False)
            try:
                await call.has_room()
            except asyncio.CancelledError:
                call.cancel()
                raise
        if call.is_over:
            raise asyncio.InvalidStateError("the call is over")

    async def done_writing(self) -> None:
        """Say that nothing more is coming."""
        call = await self._begun()
        if not call.is_over and not call.is_ended_here:
            call.connection.send_data(call, b"", is_end=True)

    def cancel(self) -> bool:
        """Give the call up; whether it was still under way."""
        if self._call is not None:
            is_under_way = not self._call.is_over
            self._call.cancel()
            return is_under_way
        is_under_way = self._ending is None
        self._ending = self._ending or CANCELLED
        if self._beginning is not None:
            self._beginning.cancel()
        return is_under_way

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        message = await (await self._begun()).next()
        if message is None:
            raise StopAsyncIteration
        return message

    async def _begun(self) -> Call:
        return self._call or await self._first()

    async def _first(self) -> Call:
        """Whoever comes first begins it, and who comes meanwhile waits for that."""
        if self._ending is None:
            if self._beginning is None:
                self._beginning = asyncio.create_task(self._start())
            await self._wait_for(self._beginning)
        if self._call is None:
            raise (self._ending or CANCELLED).error()
        return self._call

    async def _wait_for(self, beginning: asyncio.Task[None]) -> None:
        try:
            await asyncio.wait((beginning,))
        except asyncio.CancelledError:
            self.cancel()
            raise
        if not beginning.cancelled():
            beginning.result()

    async def _start(self) -> None:
        try:
            self._call = await self._begin()
        except grpc.aio.AioRpcError as error:
            self._ending = self._ending or Ending(error.code(), error.details() or "")
