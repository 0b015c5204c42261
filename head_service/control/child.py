"""`python -m head_service.control.child FD`: one attempt at one run, in a process of its own; a worker starts it, nobody else.

It dies with its worker: its stdin ends then. What libraries print goes nowhere near the messages.
"""

import contextlib
import ctypes
import importlib
import importlib.util
import os
import queue
import resource
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final, cast

from clients import DeadlineExceeded, TrunklineError, Unavailable
from clients.wire.http_errors import place_of
from head_service.control.corrections import with_corrections
from head_service.control.errors import ControlError
from head_service.control.messages import AskToPublish, Ended, FromChild, MayPublish, Progress, Said, Start, packed, to_child
from head_service.control.publishing import LeaseLostError, RunRepository, published_by
from head_service.control.words import Outcome, RunCancelledError, RunContext, Trainer
from head_service.errors import HeadServiceError, StorageError
from head_service.repository import Repository

_UNFORESEEN: Final = "it failed in a way it should not"
_PR_SET_PDEATHSIG: Final = 1
"""Linux prctl(2): the signal this process gets when its parent dies."""


class Worker:
    """The other end, as the training process sees it. Two threads write: one at a time."""

    def __init__(self, inward: IO[bytes], outward: IO[bytes]) -> None:
        self._inward = inward
        self._outward = outward
        self._writing = threading.Lock()
        self._answers: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self.is_stop_asked = threading.Event()

    def start_of(self) -> Start:
        """The first message; from then on the others are listened for."""
        message = to_child(self._inward.readline())
        assert isinstance(message, Start)
        threading.Thread(target=self._listen, name="worker", daemon=True).start()
        return message

    def tell(self, message: FromChild) -> None:
        """Send *message*."""
        with self._writing:
            self._outward.write(packed(message))
            self._outward.flush()

    def may_publish(self, seconds: float) -> bool:
        """Whether the lease holds; not, where no answer comes in *seconds*: from then on it is not asked again."""
        self.tell(AskToPublish())
        try:
            return self._answers.get(timeout=seconds)
        except queue.Empty:
            return False

    def _listen(self) -> None:
        for line in self._inward:
            message = to_child(line)
            if isinstance(message, MayPublish):
                self._answers.put(message.is_held)
            else:
                self.is_stop_asked.set()
        # The worker is gone, and with it the right to publish.
        os._exit(70)


class Run:
    """What the trainer calls back."""

    def __init__(self, worker: Worker, published: int | None) -> None:
        self._worker = worker
        self.published = published

    def say(self, line: str) -> None:
        """See `RunContext`."""
        self._check()
        self._worker.tell(Said(line))

    def progress(self, step: str, done: int, total: int) -> None:
        """See `RunContext`."""
        self._check()
        self._worker.tell(Progress(step, done, total))

    def has_published(self, version: int) -> None:
        """From here on the run is seen through."""
        self.published = version

    def _check(self) -> None:
        if self._worker.is_stop_asked.is_set() and self.published is None:
            raise RunCancelledError


def main() -> int:
    """Exit status: 0 when an outcome was told."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The worker's Ctrl-C is the worker's business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    outward = os.fdopen(int(sys.argv[1]), "wb")
    worker = Worker(sys.stdin.buffer, outward)
    outcome = _attempt(worker, worker.start_of())
    # A worker that died meanwhile does not read it.
    with contextlib.suppress(BrokenPipeError):
        worker.tell(Ended(outcome))
    sys.stdout.flush()
    # Threads of libraries may wait for ever.
    os._exit(0)


def _attempt(worker: Worker, start: Start) -> Outcome:
    try:
        if start.max_bytes:
            resource.setrlimit(resource.RLIMIT_AS, (start.max_bytes, start.max_bytes))
        found = published_by(Repository(start.repository), start.order.head, start.run_id)
        run = Run(worker, found)
        data, (text_column, label_column) = _rows(start, run)
        repository = RunRepository(start.repository, start.run_id, worker.may_publish, run.has_published)
        context = RunContext(
            run_id=start.run_id,
            data=data,
            text_column=text_column,
            label_column=label_column,
            folder=Path(start.folder),
            repository=repository,
            published=found,
            embedding_address=start.embedding_address,
            heads_address=start.heads_address,
            cache_dir=Path(start.cache_dir),
            say=run.say,
            progress=run.progress,
            to_embedding=start.to_embedding,
            to_heads=start.to_heads,
            bundles=start.bundles,
        )
        return load_trainer(start.trainer)(start.order, context)
    except BaseException as error:
        return outcome_of(error)


def _rows(start: Start, run: Run) -> tuple[Path, tuple[str | None, str | None]]:
    """The file of rows, and its columns of text and label."""
    columns = (start.order.text_column, start.order.label_column)
    if not start.corrections:
        return Path(start.data), columns
    data = Path(start.data) if start.data else None
    rows = with_corrections(start.order, data, columns, Path(start.corrections), Path(start.folder), run.say)
    return rows, ("text", "label")


def outcome_of(error: BaseException) -> Outcome:
    """How an attempt ended that *error* ended. Words of errors that are not ours may quote a text, and are left out."""
    match error:
        case RunCancelledError():
            return Outcome(kind="cancelled", message="it was cancelled")
        case LeaseLostError():
            return Outcome(kind="lost", message=str(error))
        case Unavailable() | DeadlineExceeded():
            return Outcome(kind="lost", message=f"a service did not answer: {error.message}")
        case HeadServiceError() | TrunklineError():
            return Outcome(kind="lost" if isinstance(error, StorageError) else "failed", message=str(error))
        case OSError():
            return Outcome(kind="lost", message=f"the system refused something: {error.strerror or type(error).__name__}")
        case _:
            why = "there was not enough memory" if isinstance(error, MemoryError) else f"{_UNFORESEEN}: {type(error).__name__}"
            return Outcome(kind="failed", message=why + place_of(error))


def check_trainer(name: str) -> None:
    """See that there is a module for *name*, without the second and the 60 MB that importing it costs a worker.

    Raises:
        ControlError: there is none.
    """
    module, _, function = name.partition(":")
    try:
        is_there = importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        is_there = False
    if not (is_there and function):
        raise _no_trainer(name)


def load_trainer(name: str) -> Trainer:
    """The function that *name*, MODULE:FUNCTION, names.

    Raises:
        ControlError: there is none.
    """
    module, _, function = name.partition(":")
    try:
        found: Callable[..., Outcome] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError):
        raise _no_trainer(name) from None
    return cast("Trainer", found)


def _no_trainer(name: str) -> ControlError:
    return ControlError(f"there is no trainer {name!r}; --trainer is MODULE:FUNCTION")


if __name__ == "__main__":
    sys.exit(main())
