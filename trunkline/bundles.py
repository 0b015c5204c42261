"""Bundles of the local stack, kept current beside it: looked for after every change, made by a process of its own.

That process loads TensorFlow, and is gone again when it is done; see `head_service.bundling`.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from head_service import configuration
from head_service.bundling import needs_of
from head_service.errors import HeadServiceError
from head_service.repository import Repository

LOOK_SECONDS: Final = 1.0
FIRST_PAUSE_SECONDS: Final = 5.0
MAX_PAUSE_SECONDS: Final = 300.0

Needs = tuple[tuple[str, ...], tuple[str, ...]]
"""The bundles to make and those to remove, by name."""


@dataclass(slots=True)
class Keeper:
    """Has bundles made once nothing has changed from one look to the next. *look* and *make* are the world outside.

    *make* returns whether it worked; when it did not, the next try waits, longer each time.
    """

    look: Callable[[], Awaitable[Needs]]
    make: Callable[[], Awaitable[bool]]
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def run(self) -> None:
        """Until cancelled."""
        pause = FIRST_PAUSE_SECONDS
        before: Needs = ((), ())
        while True:
            await self.sleep(LOOK_SECONDS)
            needs = await self.look()
            # Heads that are trained one after the other change things for a while.
            if any(needs) and needs == before:
                if await self.make():
                    pause = FIRST_PAUSE_SECONDS
                else:
                    await self.sleep(pause)
                    pause = min(2 * pause, MAX_PAUSE_SECONDS)
            before = needs


def keeper_of(location: str, heads_address: str, log: Path, say: Callable[[str], None]) -> Keeper:
    """Keeps the bundles of the repository at *location*, which the head server at *heads_address* serves."""
    repository = Repository(location)
    seen: tuple[str, Needs] = ("", ((), ()))

    def look() -> Needs:
        nonlocal seen
        try:
            catalogue, stored = configuration.read_catalogue_of(repository.store)
            tag = stored.tag if stored else ""
            # What cannot be in a bundle is found while one is made, so that only quiet is remembered.
            if tag != seen[0] or any(seen[1]):
                to_make, to_remove = needs_of(repository, catalogue)
                seen = tag, (tuple(to_make), tuple(to_remove))
        except HeadServiceError as error:
            say(f"bundles stay as they are: {error}")
            return (), ()
        return seen[1]

    async def make() -> bool:
        command = [sys.executable, "-m", "head_service.bundling", "--repository", location, "--heads-address", heads_address]
        status = await _run(command, log)
        if status:
            say(f"bundles could not be made, and heads are asked one by one; see {log}")
        return status == 0

    return Keeper(lambda: asyncio.to_thread(look), make)


async def cancelled(task: "asyncio.Task[None]") -> None:
    """Cancel *task*, and wait until it is over."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _run(command: list[str], log: Path) -> int:
    """The exit status of *command*, whose words go to *log*. It ends with whoever waits for it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=file, stderr=file, env=env
        )
    try:
        return await process.wait()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
