"""One child process of the local stack: started, awaited until it says it is ready, watched, stopped in order."""

import asyncio
import contextlib
import ctypes
import re
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

PR_SET_PDEATHSIG = 1
"""Linux prctl(2): the signal this process gets when its parent dies."""


class StackError(Exception):
    """The stack cannot run; the message is one sentence saying why and what to do."""


class Child:
    """A service process. *ready* matches the line it prints once it serves; what else it says goes to *log*."""

    def __init__(self, name: str, command: list[str], *, ready: re.Pattern[str], log: Path, env: Mapping[str, str]) -> None:
        self.name = name
        self.command = command
        self._ready = ready
        self._log = log
        self._env = dict(env)
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Of the process that runs now."""
        assert self._process is not None
        return self._process.pid

    async def start(self, timeout: float, on_line: Callable[[str], None] = lambda _: None) -> re.Match[str]:
        """Start, and wait at most *timeout* seconds for the ready line; its match is returned.

        *on_line* is told each other line the process says meanwhile, for showing progress.

        Raises:
            StackError: it ended, or said nothing in time. It does not run then.
        """
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._process = await asyncio.create_subprocess_exec(
            *self.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._env,
            limit=1024 * 1024,
            # Ctrl-C is for the supervisor alone: it stops the services in order.
            start_new_session=True,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )
        try:
            async with asyncio.timeout(timeout):
                return await self._until_ready(on_line)
        except TimeoutError:
            await self.stop(0)
            raise StackError(f"{self.name} was not ready within {timeout:.0f} seconds; its log is {self._log}") from None
        except BaseException:
            await self.stop(0)
            raise

    async def ended(self) -> int:
        """Wait for the process to end; its exit status."""
        assert self._process is not None
        return await self._process.wait()

    async def stop(self, grace: float) -> None:
        """SIGTERM, then SIGKILL after *grace* seconds. Nothing when it does not run."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM if grace else signal.SIGKILL)
        try:
            await asyncio.wait_for(process.wait(), grace or None)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _until_ready(self, on_line: Callable[[str], None]) -> re.Match[str]:
        assert self._process is not None
        assert self._process.stdout is not None
        said = ""
        with self._log.open("a", encoding="utf-8") as log:
            while raw := await self._process.stdout.readline():
                line = raw.decode(errors="replace").rstrip()
                if match := self._ready.search(line):
                    self._keep_reading(self._process.stdout)
                    return match
                log.write(line + "\n")
                said = line or said
                on_line(line)
        await self._process.wait()
        raise StackError(f"{self.name} could not start: {said.removeprefix(f'{self.name}: ') or 'it said nothing'}")

    def _keep_reading(self, stdout: asyncio.StreamReader) -> None:
        """A full pipe would block the service, so its further lines are moved to the log for as long as it lives.

        What the log does not take, as on a full disk, is lost.
        """

        async def move() -> None:
            while piece := await stdout.read(65_536):
                with contextlib.suppress(OSError), self._log.open("ab", buffering=0) as log:
                    log.write(piece)

        self._reader = asyncio.create_task(move())


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
