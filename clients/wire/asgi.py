"""What every HTTP front of ours needs of ASGI: to stop working for a caller that has hung up."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any, Final

LOOK_AFTER: Final = 0.1
"""Seconds. Most answers are out by then, and a task that waits for a caller to hang up costs as much as reading the body."""


class CallerLeftError(Exception):
    """The caller hung up; nobody reads the answer."""


@asynccontextmanager
async def while_connected(
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]], *, look_after: float = LOOK_AFTER
) -> AsyncIterator[None]:
    """Cancel what is inside when the caller hangs up. The body must have been read: *receive* is listened to.

    Raises:
        CallerLeftError: in place of the cancellation.
    """
    task = asyncio.current_task()
    assert task is not None
    watcher: asyncio.Task[None] | None = None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    def look() -> None:
        nonlocal watcher
        watcher = asyncio.create_task(watch())

    waiting = asyncio.get_running_loop().call_later(look_after, look)
    try:
        yield
    except asyncio.CancelledError:
        if not gone:
            raise
        task.uncancel()
        raise CallerLeftError from None
    finally:
        waiting.cancel()
        if watcher is not None:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher
