"""The worker in this process, its training processes real, the trainer a rehearsal."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from head_service.catalogue import ensure_layout, read_catalogue
from head_service.control.feedback import FeedbackRow, FeedbackStore
from head_service.control.keep import Kept, open_kept
from head_service.control.labelled import Labelled
from head_service.control.messages import Start
from head_service.control.process import TrainingProcess
from head_service.control.publishing import published_by
from head_service.control.runs import RunFacts
from head_service.control.settings import WorkerSettings
from head_service.control.words import DataSource, TrainingOrder
from head_service.control.worker import Rooms, Worker
from head_service.errors import StorageError
from head_service.repository import Repository

ROWS = "text,label\n" + "".join(f"text {n},{'odd' if n % 2 else 'even'}\n" for n in range(8))


@dataclass
class Shop:
    """What is kept, and a worker that works on it."""

    settings: WorkerSettings
    kept: Kept
    worker: Worker
    working: "asyncio.Task[None]"

    def submit(self, head_type: str = "linear", *, milliseconds: int = 0, **more) -> RunFacts:
        given = {"data": DataSource(path="rows.csv"), **more}
        order = TrainingOrder(head="spam", head_type=head_type, seed=milliseconds, **given)
        run, _ = self.kept.runs.submit(order, "ann")
        self.kept.wakeup.wake(run.id)
        return run

    async def until(self, run: RunFacts, is_so: Callable[[RunFacts], bool]) -> RunFacts:
        async with asyncio.timeout(60):
            while not is_so(now := self.kept.runs.get(run.id)):
                await asyncio.sleep(0.02)
        return now

    async def end(self, run: RunFacts) -> RunFacts:
        return await self.until(run, lambda now: now.finished_at is not None)

    @property
    def repository(self) -> Repository:
        return Repository(self.settings.repository)


@pytest.fixture
def settings(tmp_path: Path) -> WorkerSettings:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.csv").write_text(ROWS)
    return WorkerSettings(
        home=tmp_path / "control",
        repository=tmp_path / "heads",
        data_dir=tmp_path / "data",
        cache_dir=tmp_path / "cache",
        trainer="perf.rehearsal:train",
        max_attempts=2,
        retry_seconds=0,
        lease_seconds=10,
        poll_seconds=0.05,
        stop_seconds=0.5,
        drain_seconds=0.2,
        run_timeout_seconds=30,
    )


@contextlib.asynccontextmanager
async def open_shop(settings: WorkerSettings) -> AsyncIterator[Shop]:
    before = psutil.Process().children()
    ensure_layout(settings.repository)
    kept = open_kept(settings)
    worker = Worker(Rooms(kept.runs, kept.wakeup, kept.data, kept.uploads, list), settings)
    working = asyncio.create_task(worker.run())
    try:
        yield Shop(settings, kept, worker, working)
    finally:
        worker.stop()
        worker.stop()
        await working
        kept.close()
        assert before == psutil.Process().children()


async def test_a_run_is_trained_published_and_live_and_its_log_can_be_read(settings):
    async with open_shop(settings) as shop:
        order = TrainingOrder(head="spam", data=DataSource(path="rows.csv"))
        # Nobody is woken for it: the worker finds it in the database.
        run, _ = shop.kept.runs.submit(order, "ann")
        run = await shop.end(run)

        assert ("succeeded", 1, True) == (run.state, run.result.version, run.result.is_live)
        assert 1 == read_catalogue(settings.repository).heads["spam"].stable
        assert 1 == published_by(shop.repository, "spam", run.id)
        assert ["fitting on 8 texts"] == [line.line for line in shop.kept.runs.lines(run.id)]


async def test_each_end_is_told_and_texts_are_not(settings):
    (settings.data_dir / "broken.csv").write_text("text,label\na,x\nb,x\n,y\n")
    async with open_shop(settings.model_copy(update={"concurrency": 3})) as shop:
        asked = [shop.submit(publish="version"), shop.submit("refused"), shop.submit("failing"), shop.submit("faulty")]
        asked.append(shop.submit(data=DataSource(path="broken.csv")))
        kept, refused, failing, faulty, broken = [await shop.end(run) for run in asked]

        assert ("succeeded", False) == (kept.state, kept.result.is_live)
        assert ("refused", "it is worse than the live one") == (refused.state, refused.message)
        assert ("failed", "the rehearsal is to fail") == (failing.state, failing.message)
        assert "failed" == faulty.state
        assert "ValueError (rehearsal.py:" in faulty.message
        assert "nobody may read" not in faulty.message
        assert "failed" == broken.state
        assert "line 4" in broken.message
        assert {kept.result.version, refused.result.version} == set(shop.repository.versions("spam"))
        assert {} == read_catalogue(settings.repository).heads


async def test_a_retraining_goes_well_without_the_corrections_that_nothing_can_be_learnt_from_and_its_log_tells_how_many(
    settings,
):
    async with open_shop(settings) as shop:
        given = [("text 1", "mistyped"), ("text 2", "odd"), ("<br>", "odd"), ("new", 201 * "x")]
        shop.kept.feedback.keep([FeedbackRow("spam", text, label, "ann") for text, label in given])
        run = await shop.end(shop.submit(feedback_until=99, preprocess=("html-strip",)))

        assert "succeeded" == run.state, run.message
        said = [line.line for line in shop.kept.runs.lines(run.id)]
        assert ["3 corrections left out, since nothing can be learnt from them", "fitting on 8 texts"] == said


async def test_how_a_run_failed_is_told_where_the_repository_cannot_be_read(settings, monkeypatch: pytest.MonkeyPatch):
    def away(*_: object) -> int | None:
        raise StorageError("it cannot be read")

    # In this process; the one that trains has its own.
    monkeypatch.setattr("head_service.control.worker.published_by", away)
    async with open_shop(settings) as shop:
        run = await shop.end(shop.submit("failing"))

        assert ("failed", "the rehearsal is to fail", 1) == (run.state, run.message, run.attempt)


async def test_a_training_process_that_is_killed_is_tried_again_and_takes_nothing_down(settings):
    async with open_shop(settings) as shop:
        run = await shop.end(shop.submit("crashing"))

        assert ("failed", 2) == (run.state, run.attempt)
        assert "killed" in run.message
        assert not shop.working.done()


async def test_a_running_run_is_cancelled(settings):
    async with open_shop(settings) as shop:
        run = await shop.until(shop.submit("endless"), lambda now: now.step == "waiting")
        shop.kept.runs.cancel(run.id)

        assert "cancelled" == (await shop.end(run)).state
        assert [] == shop.repository.versions("spam")


async def test_a_run_that_takes_too_long_has_failed(settings):
    async with open_shop(settings.model_copy(update={"run_timeout_seconds": 0.5})) as shop:
        # It does not listen either, and is killed.
        run = await shop.end(shop.submit("deaf"))

        assert "failed" == run.state
        assert "longer than" in run.message


@pytest.fixture
def endless_feedback(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Feedback of which there is always more; set once it is being read."""
    is_read = threading.Event()

    def endless(*_: object) -> Iterator[Labelled]:
        while True:
            yield Labelled("text", "odd")
            is_read.set()
            time.sleep(0.001)

    monkeypatch.setattr(FeedbackStore, "dataset", endless)
    return is_read


async def test_a_run_is_cancelled_while_its_rows_are_gathered(settings, endless_feedback):
    async with open_shop(settings) as shop:
        run = shop.submit(feedback_until=9)
        assert await asyncio.to_thread(endless_feedback.wait, 30)
        shop.kept.runs.cancel(run.id)

        assert "cancelled" == (await shop.end(run)).state


@pytest.mark.usefixtures("endless_feedback")
async def test_the_time_in_which_rows_are_gathered_counts(settings):
    async with open_shop(settings.model_copy(update={"run_timeout_seconds": 0.5})) as shop:
        run = await shop.end(shop.submit(feedback_until=9))

        assert "failed" == run.state
        assert "longer than" in run.message


async def test_rows_are_read_where_memory_is_bounded_and_a_crash_is_nobody_elses(settings, monkeypatch: pytest.MonkeyPatch):
    def nobody_here(*_: object, **__: object) -> None:
        raise AssertionError("read in the worker's own process")

    monkeypatch.setattr("head_service.control.corrections.read_dataset", nobody_here)
    async with open_shop(settings) as shop:
        shop.kept.feedback.keep([FeedbackRow("spam", "text 1", "even", "ann")])
        run = await shop.end(shop.submit(feedback_until=99))

        assert "succeeded" == run.state, run.message


async def test_a_worker_that_is_told_to_stop_gives_its_run_back_and_another_takes_it_up(settings):
    async with open_shop(settings) as shop:
        run = await shop.until(shop.submit("endless"), lambda now: now.step == "waiting")
    kept = open_kept(settings)
    found = kept.runs.get(run.id)
    assert ("queued", 0) == (found.state, found.attempt)
    assert run.id == kept.wakeup.next()
    kept.close()

    async with open_shop(settings) as shop:
        await shop.until(run, lambda now: now.state == "running" and now.attempt == 1)


async def test_a_worker_that_is_told_to_stop_lets_a_short_run_finish(settings):
    async with open_shop(settings.model_copy(update={"drain_seconds": 30.0})) as shop:
        run = await shop.until(shop.submit(milliseconds=400), lambda now: now.state == "running")
        shop.worker.stop()

        assert "succeeded" == (await shop.end(run)).state


async def test_a_worker_that_lost_its_lease_stops_its_training_and_publishes_nothing(settings):
    async with open_shop(settings) as shop:
        run = await shop.until(shop.submit("endless"), lambda now: now.step == "waiting")
        with shop.kept.store.write() as session:
            from sqlalchemy import text

            session.execute(text("update runs set attempt = 2, leased_by = 'another'"))
        async with asyncio.timeout(30):
            while shop.worker._attempts:
                await asyncio.sleep(0.02)

        assert ("running", 2) == (shop.kept.runs.get(run.id).state, shop.kept.runs.get(run.id).attempt)
        assert [] == shop.repository.versions("spam")


async def test_a_training_process_whose_worker_hangs_up_ends(settings, tmp_path: Path):
    """What SIGKILL of the worker leaves of the pipes; the signal itself is in test_restarts."""
    start = Start(
        run_id="a" * 32,
        order=TrainingOrder(head="spam", head_type="deaf"),
        trainer=settings.trainer,
        data=str(settings.data_dir / "rows.csv"),
        corrections="",
        folder=str(tmp_path),
        repository=str(settings.repository),
        cache_dir=str(tmp_path),
        embedding_address="",
        heads_address="",
        max_bytes=0,
    )
    child = await TrainingProcess.start(start, show_errors=False)

    async def hang_up(_):
        child._process.stdin.close()

    assert "status 70" in (await child.outcome(hang_up)).message
