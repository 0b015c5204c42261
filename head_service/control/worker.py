"""The worker: takes runs, lets each train in a process of its own, keeps its lease, and writes down what came of it.

It may be killed at any time. The lease then runs out, some worker finds that, and the run is tried again; what the run had
published by then is found by its id (see `publishing`). Told to stop, it gives its runs time to finish, then gives them back.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from clients import TrunklineError, Unavailable
from clients.wire.credentials import CredentialsError, embedding_credentials, head_credentials
from head_service.control.corrections import ROWS_FILE
from head_service.control.data import CORRECTIONS_FILE, Gathered, TrainingData
from head_service.control.messages import AskToPublish, FromChild, MayPublish, Progress, Said, Start, ToChild
from head_service.control.process import TrainingProcess
from head_service.control.publishing import published_by
from head_service.control.runs import Lease, Runs
from head_service.control.settings import WorkerSettings
from head_service.control.uploads import Uploads
from head_service.control.wakeup import Wakeup
from head_service.control.words import Outcome, RunCancelledError, RunResult
from head_service.errors import HeadServiceError
from head_service.repository import Repository

SWEEP_SECONDS: Final = 3_600.0
"""Between two looks for uploads and folders that nobody needs."""

_LISTEN_SECONDS: Final = 0.1
"""Between two looks into the queue, which is a file by default and wakes nobody by itself."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rooms:
    """What a worker works with."""

    runs: Runs
    wakeup: Wakeup
    data: TrainingData
    uploads: Uploads
    retrain: Callable[[], list[str]]
    """Submits what is due on the schedule; the runs' ids."""


class Attempt:
    """One attempt at one run, while it lasts. Ends by the outcome, by losing the lease, or by being given back."""

    def __init__(self, lease: Lease, rooms: Rooms, settings: WorkerSettings) -> None:
        self._lease = lease
        self._rooms = rooms
        self._settings = settings
        self._child: TrainingProcess | None = None
        self._progress: tuple[str, int, int] | None = None
        self._lines: list[str] = []
        self._lines_lock = asyncio.Lock()
        self._is_lost = False
        self._is_ending = False
        self._why_stopped: Outcome | None = None
        self.is_given_back = False

    @property
    def run_id(self) -> str:
        """Of the run."""
        return self._lease.run.id

    async def run(self) -> None:
        """Train, and write down what came of it. Raises nothing."""
        async with self._kept():
            try:
                outcome = await self._train()
            except Exception as error:  # a run must not take the worker down
                _log.error("run %s: the worker failed in a way it should not (%s)", self.run_id, type(error).__name__)
                outcome = Outcome(kind="lost", message=f"the worker failed in a way it should not: {type(error).__name__}")
        await self._settle(self._why_stopped or outcome if outcome.kind in {"cancelled", "lost"} else outcome)

    def stop(self, why: Outcome) -> None:
        """Have it end soon, for the first reason given; a version that is published is seen through all the same."""
        if self._is_ending:
            return
        self._is_ending = True
        self._why_stopped = why
        if self._child is not None:
            self._stop_child(self._child)

    def give_back(self) -> None:
        """Have it end soon, for another worker to take it up."""
        self.is_given_back = True
        self.stop(Outcome(kind="lost", message="the worker was told to stop"))

    async def _train(self) -> Outcome:
        folder = (self._settings.runs_dir / self.run_id).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        timeout = asyncio.get_running_loop().call_later(self._settings.run_timeout_seconds, self._time_out)
        try:
            start = self._start(folder, await self._gathered(folder))
            child = await TrainingProcess.start(start, show_errors=self._settings.show_child_errors)
            self._have(child)
            return await child.outcome(self._heard)
        except RunCancelledError:
            return Outcome(kind="cancelled", message="it was cancelled")
        except (Unavailable, CredentialsError) as error:
            return Outcome(kind="lost", message=str(error))
        except TrunklineError as error:
            return Outcome(kind="failed", message=str(error))
        finally:
            timeout.cancel()

    async def _gathered(self, folder: Path) -> Gathered:
        gathered = await asyncio.to_thread(self._rooms.data.gather, self._lease.run.order, folder, lambda: self._is_ending)
        if self._is_ending:
            raise RunCancelledError
        return gathered

    def _have(self, child: TrainingProcess) -> None:
        """From here on `stop` stops *child*; at once where it was called while the child was being started."""
        self._child = child
        if self._is_ending:
            self._stop_child(child)

    def _stop_child(self, child: TrainingProcess) -> None:
        child.ask_to_stop()
        asyncio.get_running_loop().call_later(self._settings.stop_seconds, child.kill)

    def _start(self, folder: Path, gathered: Gathered) -> Start:
        s = self._settings
        return Start(
            run_id=self.run_id,
            order=self._lease.run.order,
            trainer=s.trainer,
            data=_absolute(gathered.data),
            corrections=_absolute(gathered.corrections),
            folder=str(folder),
            repository=s.location,
            cache_dir=str(s.cache_dir.absolute()),
            embedding_address=s.embedding_address,
            heads_address=s.heads_address,
            max_bytes=s.max_child_bytes,
            to_embedding=embedding_credentials(s),
            to_heads=head_credentials(s),
            bundles=s.bundles,
        )

    async def _heard(self, message: FromChild) -> ToChild | None:
        if isinstance(message, Progress):
            self._progress = (message.step, message.done, message.total)
        elif isinstance(message, Said):
            self._lines.append(message.line)
        elif isinstance(message, AskToPublish):
            return MayPublish(await self._may_publish())
        return None

    @contextlib.asynccontextmanager
    async def _kept(self) -> AsyncIterator[None]:
        """The lease is renewed meanwhile."""
        keeping = asyncio.create_task(self._keep())
        try:
            yield
        finally:
            keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeping

    async def _keep(self) -> None:
        # A database that does not answer for a moment is not the end of a lease; not answering for a whole one is.
        kept_at = time.monotonic()
        pause = min(self._settings.poll_seconds, self._settings.lease_seconds / 4)
        while True:
            await asyncio.sleep(pause)
            try:
                await self._renew()
                kept_at = time.monotonic()
            except TrunklineError as error:
                _log.warning("run %s: its lease could not be renewed: %s", self.run_id, error.message)
                if time.monotonic() - kept_at > self._settings.lease_seconds:
                    self._lose()

    async def _renew(self) -> bool:
        """Renew the lease and hand over what the run said since; whether it holds."""
        progress = self._progress
        asked = await asyncio.to_thread(self._rooms.runs.renew, self._lease, self._settings.lease_seconds, progress)
        if asked is None:
            self._lose()
            return False
        if self._progress is progress:
            self._progress = None
        await self._hand_over_lines()
        if asked:
            self.stop(Outcome(kind="cancelled", message="it was cancelled"))
        return True

    async def _hand_over_lines(self) -> None:
        async with self._lines_lock:
            if lines := self._lines[:]:
                await asyncio.to_thread(self._rooms.runs.say, self._lease, lines)
                del self._lines[: len(lines)]

    async def _may_publish(self) -> bool:
        """Whether the lease holds, after the database has said so; it is waited for as long as the lease may hold."""
        give_up = time.monotonic() + self._settings.lease_seconds
        while time.monotonic() < give_up:
            try:
                return await self._renew() and not self._is_ending
            except TrunklineError:
                await asyncio.sleep(self._settings.poll_seconds)
        return False

    def _lose(self) -> None:
        if not self._is_lost:
            _log.warning("run %s: another worker has taken it over", self.run_id)
            self._is_lost = True
            self.stop(Outcome(kind="lost", message="another worker has taken it over"))
            if self._child is not None:
                self._child.kill()

    def _time_out(self) -> None:
        self.stop(Outcome(kind="failed", message=f"it took longer than {self._settings.run_timeout_seconds:.0f} seconds"))

    async def _settle(self, outcome: Outcome) -> None:
        """Write down *outcome*. While the database cannot be written it is tried again, as long as the lease may hold."""
        give_up = time.monotonic() + self._settings.lease_seconds
        while not self._is_lost:
            try:
                await self._write_down(outcome)
            except TrunklineError as error:
                _log.warning("run %s: its end could not be written down: %s", self.run_id, error.message)
                if time.monotonic() > give_up:
                    return
                await asyncio.sleep(self._settings.poll_seconds)
            else:
                return

    async def _write_down(self, outcome: Outcome) -> None:
        runs = self._rooms.runs
        await self._hand_over_lines()
        if self.is_given_back and outcome.kind == "lost":
            facts = await asyncio.to_thread(runs.give_back, self._lease)
            if facts is not None and facts.state == "queued":
                await asyncio.to_thread(self._rooms.wakeup.wake, self.run_id)
            return
        facts = await asyncio.to_thread(runs.finish, self._lease, await asyncio.to_thread(self._with_version, outcome))
        _log.info("run %s: attempt %d: %s", self.run_id, self._lease.attempt, facts.state if facts else "taken over")

    def _with_version(self, outcome: Outcome) -> Outcome:
        """A run that was stopped, or failed, after it had published says which version that is."""
        if outcome.result.version is not None or outcome.kind == "lost":
            return outcome
        found = None
        # How it ended is written down whether or not the repository can be read.
        with contextlib.suppress(HeadServiceError, OSError):
            found = published_by(Repository(self._settings.location), self._lease.run.order.head, self.run_id)
        if found is None:
            return outcome
        message = f"{outcome.message}; version {found} had been published"
        return Outcome(kind=outcome.kind, message=message, result=RunResult(version=found))


def _absolute(path: Path | None) -> str:
    return "" if path is None else str(path.absolute())


class Worker:
    """Takes runs until told to stop."""

    def __init__(self, rooms: Rooms, settings: WorkerSettings) -> None:
        self._rooms = rooms
        self._settings = settings
        self.name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._attempts: dict[asyncio.Task[None], Attempt] = {}
        self._stopping = asyncio.Event()
        self._hurrying = asyncio.Event()

    def stop(self) -> None:
        """Take no more runs, and end; the second time: without waiting for those under way."""
        (self._hurrying if self._stopping.is_set() else self._stopping).set()

    async def run(self) -> None:
        """Work until `stop`."""
        caring = asyncio.create_task(self._care())
        try:
            while not self._stopping.is_set():
                await self._take()
            await self._drain()
        finally:
            caring.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await caring

    async def _take(self) -> None:
        """Take a run when there is room and one to take, else wait for either."""
        if len(self._attempts) >= self._settings.concurrency:
            await self._first_of(*self._attempts)
            return
        until = time.monotonic() + self._settings.poll_seconds
        woken = await self._next_wake(until)
        if self._stopping.is_set():
            if woken is not None:
                await asyncio.to_thread(self._rooms.wakeup.wake, woken)
            return
        try:
            lease = await asyncio.to_thread(self._rooms.runs.claim, self.name, self._settings.lease_seconds, woken)
        except TrunklineError as error:
            _log.warning("no run can be taken: %s", error.message)
            await self._first_of(timeout=self._settings.poll_seconds)
            return
        if lease is not None:
            self._begin(lease)

    def _begin(self, lease: Lease) -> None:
        _log.info("run %s: attempt %d for head %s", lease.run.id, lease.attempt, lease.run.order.head)
        attempt = Attempt(lease, self._rooms, self._settings)
        task = asyncio.create_task(attempt.run())
        self._attempts[task] = attempt
        task.add_done_callback(self._attempts.pop)

    async def _next_wake(self, until: float) -> str | None:
        """The id somebody was woken for; None after *until*, for a look into the database."""
        while not self._stopping.is_set():
            woken = await asyncio.to_thread(self._rooms.wakeup.next)
            if woken is not None or time.monotonic() >= until:
                return woken
            await self._first_of(timeout=_LISTEN_SECONDS)
        return None

    async def _first_of(self, *tasks: "asyncio.Task[None]", timeout: float | None = None) -> None:
        """Wait for one of *tasks*, or to be told to stop, *timeout* seconds at most."""
        told = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait([*tasks, told], timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            told.cancel()

    async def _drain(self) -> None:
        """Let what is under way finish, then give it back."""
        tasks = list(self._attempts)
        if not tasks:
            return
        hurried = asyncio.create_task(self._hurrying.wait())
        finished = asyncio.ensure_future(asyncio.wait(tasks))
        await asyncio.wait([hurried, finished], timeout=self._settings.drain_seconds, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        for attempt in self._attempts.values():
            attempt.give_back()
        await finished

    async def _care(self) -> None:
        """What any worker does for all: lost runs are found, old files removed, due retrainings submitted."""
        swept_at = -SWEEP_SECONDS
        while True:
            try:
                await asyncio.to_thread(self._recover)
                if time.monotonic() - swept_at >= SWEEP_SECONDS:
                    swept_at = time.monotonic()
                    await asyncio.to_thread(self._sweep)
            except (TrunklineError, HeadServiceError, OSError) as error:
                _log.warning("the store could not be looked after (%s); it is tried again", type(error).__name__)
            except Exception:  # whatever it was, runs that are lost later must be found
                _log.exception("looking after the store failed unexpectedly")
            await asyncio.sleep(min(self._settings.lease_seconds / 4, 5.0))

    def _recover(self) -> None:
        for run in self._rooms.runs.recover():
            _log.warning("run %s: %s; it is %s now", run.id, run.message, run.state)
            if run.state == "queued":
                self._rooms.wakeup.wake(run.id)
        for run_id in self._rooms.retrain():
            self._rooms.wakeup.wake(run_id)

    def _sweep(self) -> None:
        keep_seconds = self._settings.keep_uploads_days * 86_400
        self._rooms.uploads.sweep(keep_seconds, self._rooms.runs.uploads_in_use())
        # A run's gathered rows hold texts; its report stays.
        for name in (CORRECTIONS_FILE, ROWS_FILE):
            for rows in self._settings.runs_dir.glob(f"*/{name}"):
                if time.time() - rows.stat().st_mtime > keep_seconds:
                    rows.unlink(missing_ok=True)
        for folder in self._settings.runs_dir.glob("*"):
            if folder.is_dir() and not any(folder.iterdir()) and time.time() - folder.stat().st_mtime > keep_seconds:
                shutil.rmtree(folder, ignore_errors=True)
