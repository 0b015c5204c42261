"""One training process, from the worker's side: started, listened to, stopped; it can take nothing down but itself."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from head_service.control.messages import Ended, FromChild, Start, Stop, ToChild, from_child, packed
from head_service.control.words import Outcome

MAX_MESSAGE_BYTES: Final = 1024 * 1024
END_SECONDS: Final = 5.0
"""For a process that has told its outcome, or hung up, to be gone."""

Heard = Callable[[FromChild], Awaitable[ToChild | None]]
"""Told each message but the last; what it returns is sent back."""


class TrainingProcess:
    """A child that trains. Made by `start`; one task awaits `outcome`, any may call `ask_to_stop` and `kill`."""

    def __init__(self, process: asyncio.subprocess.Process, messages: asyncio.StreamReader, close: Callable[[], None]) -> None:
        self._process = process
        self._messages = messages
        self._close = close

    @classmethod
    async def start(cls, start: Start, *, show_errors: bool) -> "TrainingProcess":
        """Start one and tell it what to do."""
        reading, writing = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "head_service.control.child",
                str(writing),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=None if show_errors else asyncio.subprocess.DEVNULL,
                pass_fds=(writing,),
                # Ctrl-C is for the worker alone.
                start_new_session=True,
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        messages = asyncio.StreamReader(limit=MAX_MESSAGE_BYTES)
        pipe = os.fdopen(reading, "rb", buffering=0)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(messages), pipe)
        child = cls(process, messages, transport.close)
        child.tell(start)
        return child

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def tell(self, message: ToChild) -> None:
        """Send *message*; a process that has ended hears nothing."""
        assert self._process.stdin is not None
        if not self._process.stdin.is_closing():
            self._process.stdin.write(packed(message))

    def ask_to_stop(self) -> None:
        """Have it stop at its next step."""
        self.tell(Stop())

    def kill(self) -> None:
        """End it and whatever it started, now."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def outcome(self, heard: Heard) -> Outcome:
        """Listen until it ends. A process that ends without a word is worth another attempt."""
        told: Outcome | None = None
        try:
            while told is None and (line := await self._messages.readline()):
                message = from_child(line)
                if isinstance(message, Ended):
                    told = message.outcome
                elif (answer := await heard(message)) is not None:
                    self.tell(answer)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), END_SECONDS)
        except (msgspec.DecodeError, ValueError):
            told = Outcome(kind="failed", message="the training process said something that makes no sense")
        finally:
            self.kill()
            status = await self._process.wait()
            self._close()
            if self._process.stdin is not None:
                self._process.stdin.close()
        return told or Outcome(kind="lost", message=f"the training process ended without an answer ({_ending(status)})")


def _ending(status: int) -> str:
    if status >= 0:
        return f"status {status}"
    if status == -signal.SIGKILL:
        return "killed, perhaps for want of memory"
    with contextlib.suppress(ValueError):
        return f"by {signal.Signals(-status).name}"
    return f"by signal {-status}"
