"""What every HTTP front of ours needs of ASGI: headers, and to stop working for a caller that has hung up."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final

LOOK_AFTER: Final = 0.1
"""Seconds. Most answers are out by then, and a task that waits for a caller to hang up costs as much as reading the body."""


class CallerLeftError(Exception):
    """The caller hung up; nobody reads the answer."""


class while_connected:  # noqa: N801 (reads as the statement it is)
    """An async context that cancels what is inside when the caller hangs up, and then raises CallerLeftError in its place.

    The body must have been read: *receive* is listened to, from *look_after* seconds on.
    """

    __slots__ = ("_has_left", "_look_after", "_receive", "_task", "_waiting", "_watcher")

    def __init__(self, receive: Callable[[], Awaitable[MutableMapping[str, Any]]], *, look_after: float = LOOK_AFTER) -> None:
        self._receive = receive
        self._look_after = look_after
        self._watcher: asyncio.Task[None] | None = None
        self._has_left = False

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._waiting = asyncio.get_running_loop().call_later(self._look_after, self._look)

    async def __aexit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> None:
        self._waiting.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
        if self._has_left and kind is asyncio.CancelledError:
            self._task.uncancel()
            raise CallerLeftError from None

    def _look(self) -> None:
        self._watcher = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._has_left = True
        self._task.cancel()


def header_of(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str | None:
    """The value of the first of a scope's *headers* called *name*, which is in lower case as they are (ASGI); None without any.

    For the hot path: Starlette's mapping has to be made first, and takes several times as long to find one.
    """
    for one, value in headers:
        if one == name:
            return value.decode("latin-1")
    return None
