"""The runs, in the database: the truth about each. Every change of state goes through `states.after`.

Who claims a run holds a lease and the attempt's number with it. Every later write names both, so that a worker that was thought
dead and comes back can change nothing any more.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

import msgspec
from sqlalchemy import ColumnElement, CursorResult, func, select, update
from sqlalchemy.orm import Session

from clients import NotFound
from head_service.control.errors import Collision, Conflict
from head_service.control.schema import Run, RunLine
from head_service.control.states import FINAL, STATES, Event, Standing, State, after
from head_service.control.store import Store
from head_service.control.words import Outcome, RunResult, TrainingOrder

MAX_LINES: Final = 2_000
"""Of one run; beyond it a last line says so."""

MAX_LINE_CHARACTERS: Final = 1_000
MAX_DOUBLINGS: Final = 8
"""Of the wait before an attempt."""


_EVENTS: Final[dict[str, Event]] = {
    "succeeded": Event.SUCCEEDED,
    "refused": Event.REFUSED,
    "failed": Event.FAILED,
    "lost": Event.LOST,
    "cancelled": Event.CANCELLED,
}


@dataclass(frozen=True, slots=True)
class RunFacts:
    """A run as others may see it. Times are seconds since 1970."""

    id: str
    seq: int
    state: State
    order: TrainingOrder
    owner: str
    attempt: int
    max_attempts: int
    is_cancel_asked: bool
    step: str
    done: int
    total: int
    message: str
    result: RunResult
    created_at: float
    started_at: float | None
    finished_at: float | None


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to work on a run, for as long as it is renewed."""

    run: RunFacts
    worker: str

    @property
    def attempt(self) -> int:
        """Which attempt it is for."""
        return self.run.attempt


@dataclass(frozen=True, slots=True)
class Line:
    """A line a run said."""

    number: int
    attempt: int
    at: float
    line: str


@dataclass(frozen=True, slots=True)
class RunStatistics:
    """For metrics: runs by state, the oldest queued one's age, and (how many, seconds) of finished ones by state."""

    by_state: dict[State, int]
    oldest_queued_seconds: float
    finished: dict[State, tuple[int, float]] = field(default_factory=dict)


class Runs:
    """See the module. Safe between threads and processes.

    A lost attempt is followed by the next after *retry_seconds*; the third waits twice as long, and so on.
    """

    def __init__(self, store: Store, *, max_attempts: int = 3, retry_seconds: float = 5.0) -> None:
        self._store = store
        self._retry_seconds = retry_seconds
        self._max_attempts = max_attempts

    def submit(self, order: TrainingOrder, owner: str, idempotency_key: str | None = None) -> tuple[RunFacts, bool]:
        """A queued run, and whether it is new: *idempotency_key* of the same *owner* gives the run it gave before.

        Raises:
            Conflict: the key was used for another order.
        """
        encoded = msgspec.json.encode(order, order="deterministic").decode()
        try:
            return self._submit(order, encoded, owner, idempotency_key)
        except Collision:
            # Another process submitted with the same key at the same moment; now it is seen.
            return self._submit(order, encoded, owner, idempotency_key)

    def submitted(self, owner: str, idempotency_key: str | None) -> RunFacts | None:
        """The run that *owner* submitted with that key."""
        if idempotency_key is None:
            return None
        with self._store.read() as session:
            run = session.scalars(select(Run).where(Run.owner == owner, Run.idempotency_key == idempotency_key)).first()
            return None if run is None else _facts(run)

    def _submit(self, order: TrainingOrder, encoded: str, owner: str, idempotency_key: str | None) -> tuple[RunFacts, bool]:
        with self._store.write() as session:
            if known := self._known(session, owner, idempotency_key, encoded):
                return known, False
            run = Run(
                id=uuid.uuid4().hex,
                state="queued",
                head=order.head,
                training_order=encoded,
                owner=owner,
                idempotency_key=idempotency_key,
                max_attempts=self._max_attempts,
                created_at=self._store.now(session),
            )
            session.add(run)
            session.flush()
            return _facts(run), True

    def get(self, run_id: str, owner: str | None = None) -> RunFacts:
        """One run; of *owner* only, where one is given.

        Raises:
            NotFound: there is none.
        """
        with self._store.read() as session:
            return _facts(_named(session, run_id, owner))

    def page(
        self, *, owner: str | None = None, state: State | None = None, head: str | None = None, before: int = 0, limit: int = 50
    ) -> list[RunFacts]:
        """The newest first; *before*: only those with a smaller *seq*."""
        query = select(Run).order_by(Run.seq.desc()).limit(limit)
        if owner is not None:
            query = query.where(Run.owner == owner)
        if state is not None:
            query = query.where(Run.state == state)
        if head is not None:
            query = query.where(Run.head == head)
        if before:
            query = query.where(Run.seq < before)
        with self._store.read() as session:
            return [_facts(run) for run in session.scalars(query)]

    def lines(self, run_id: str, owner: str | None = None, *, offset: int = 0, limit: int = 500) -> list[Line]:
        """What it said, from line *offset* on.

        Raises:
            NotFound: there is no such run.
        """
        with self._store.read() as session:
            seq = _named(session, run_id, owner).seq
            found = session.scalars(
                select(RunLine).where(RunLine.run_seq == seq, RunLine.number >= offset).order_by(RunLine.number).limit(limit)
            )
            return [Line(line.number, line.attempt, line.at, line.line) for line in found]

    def cancel(self, run_id: str, owner: str | None = None) -> RunFacts:
        """Ask it to stop: a queued one never starts, a running one is stopped by its worker, of a finished one nothing changes.

        Raises:
            NotFound: there is none.
        """
        with self._store.write() as session:
            run = _named(session, run_id, owner, for_update=True)
            now = self._store.now(session)
            if self._happen(run, Event.CANCEL_ASKED, now) and run.cancel_asked_at is None:
                run.cancel_asked_at = now
            return _facts(run)

    def claim(self, worker: str, lease_seconds: float, run_id: str | None = None) -> Lease | None:
        """Take *run_id*, or the one that has waited longest; None when there is none to take."""
        with self._store.write() as session:
            now = self._store.now(session)
            query = select(Run).where(Run.state == "queued", Run.not_before <= now).order_by(Run.seq).limit(1)
            if run_id is not None:
                query = query.where(Run.id == run_id)
            # On SQLite the transaction itself is the lock.
            run = session.scalars(query.with_for_update(skip_locked=True)).first()
            if run is None or not self._happen(run, Event.CLAIMED, now):
                return None
            run.lease_until, run.leased_by = now + lease_seconds, worker
            run.step, run.done, run.total = "", 0, 0
            run.started_at = run.started_at or now
            return Lease(_facts(run), worker)

    def renew(self, lease: Lease, lease_seconds: float, progress: tuple[str, int, int] | None = None) -> bool | None:
        """Hold the lease longer and tell *progress* (step, done, total). Whether cancelling is asked; None: the lease is lost."""
        with self._store.write() as session:
            values: dict[str, Any] = {"lease_until": self._store.now(session) + lease_seconds}
            if progress is not None:
                values |= dict(zip(("step", "done", "total"), progress, strict=True))
            done = cast("CursorResult[Any]", session.execute(update(Run).where(*_held(lease)).values(**values)))
            if done.rowcount == 0:
                return None
            return session.scalars(select(Run.cancel_asked_at).where(Run.id == lease.run.id)).one() is not None

    def say(self, lease: Lease, said: Sequence[str]) -> None:
        """Keep lines, as long as there is room for more of this run."""
        with self._store.write() as session:
            seq = lease.run.seq
            number = session.scalars(select(func.coalesce(func.max(RunLine.number) + 1, 0)).where(RunLine.run_seq == seq)).one()
            at = self._store.now(session)
            for line in said[: max(0, MAX_LINES - number)]:
                whole = (
                    "further lines are left out" if number == MAX_LINES - 1 else line[:MAX_LINE_CHARACTERS].replace("\x00", "")
                )
                session.add(RunLine(run_seq=seq, number=number, attempt=lease.attempt, at=at, line=whole))
                number += 1

    def finish(self, lease: Lease, outcome: Outcome) -> RunFacts | None:
        """Write down how the attempt ended; None: the lease is lost, and with it the say."""
        with self._store.write() as session:
            run = session.scalars(select(Run).where(*_held(lease)).with_for_update()).first()
            if run is None or not self._happen(run, _EVENTS[outcome.kind], self._store.now(session)):
                return None
            run.message = outcome.message[:MAX_LINE_CHARACTERS].replace("\x00", "")
            run.result = msgspec.json.encode(outcome.result).decode()
            return _facts(run)

    def give_back(self, lease: Lease) -> RunFacts | None:
        """Let another worker take it at once; the attempt does not count. None: the lease is lost."""
        with self._store.write() as session:
            run = session.scalars(select(Run).where(*_held(lease)).with_for_update()).first()
            if run is None or not self._happen(run, Event.GIVEN_BACK, self._store.now(session)):
                return None
            run.not_before = 0.0
            return _facts(run)

    def recover(self) -> list[RunFacts]:
        """Find the runs whose lease ran out, and have each tried again or given up; those that changed."""
        with self._store.write() as session:
            now = self._store.now(session)
            query = select(Run).where(Run.state == "running", Run.lease_until < now).with_for_update(skip_locked=True)
            found = list(session.scalars(query))
            for run in found:
                worker = run.leased_by
                self._happen(run, Event.LOST, now)
                run.message = f"worker {worker} was not heard of any more, in attempt {run.attempt} of {run.max_attempts}"
            return [_facts(run) for run in found]

    def statistics(self) -> RunStatistics:
        """Counts over all runs."""
        with self._store.read() as session:
            now = self._store.now(session)
            counts = dict(session.execute(select(Run.state, func.count()).group_by(Run.state)).all())
            oldest = session.scalars(select(func.min(Run.created_at)).where(Run.state == "queued")).one()
            seconds = func.sum(Run.finished_at - Run.started_at)
            ended = select(Run.state, func.count(), seconds).where(Run.started_at.is_not(None), Run.finished_at.is_not(None))
            finished = {
                cast("State", state): (count, float(took or 0.0))
                for state, count, took in session.execute(ended.group_by(Run.state))
            }
        return RunStatistics(
            {state: counts.get(state, 0) for state in STATES}, 0.0 if oldest is None else max(0.0, now - oldest), finished
        )

    def last_succeeded(self, head: str) -> RunFacts | None:
        """The newest run of *head* that succeeded."""
        return next(iter(self.page(state="succeeded", head=head, limit=1)), None)

    def last_on_feedback(self, head: str) -> RunFacts | None:
        """The newest run of *head* that read feedback, whatever became of it."""
        query = select(Run).where(Run.head == head).order_by(Run.seq.desc())
        with self._store.read() as session:
            found = (_facts(run) for run in session.scalars(query.execution_options(yield_per=50)))
            return next((run for run in found if run.order.feedback_until), None)

    def uploads_in_use(self) -> set[str]:
        """The uploads that a queued or running run will read, and those that a retraining would start from."""
        last = select(func.max(Run.seq)).where(Run.state == "succeeded").group_by(Run.head)
        query = select(Run.training_order).where(Run.state.in_(("queued", "running")) | Run.seq.in_(last))
        with self._store.read() as session:
            orders = [msgspec.json.decode(order, type=TrainingOrder) for order in session.scalars(query)]
        return {order.data.upload for order in orders if order.data and order.data.upload}

    def _happen(self, run: Run, event: Event, now: float) -> bool:
        """Apply *event* to the row; whether it can happen."""
        before = Standing(cast("State", run.state), run.attempt, run.max_attempts, run.cancel_asked_at is not None)
        then = after(before, event)
        if then is None:
            return False
        run.state, run.attempt = then.state, then.attempt
        if then.state != "running":
            run.lease_until = run.leased_by = None
        if then.state in FINAL:
            run.finished_at = now
        if event is Event.LOST:
            run.not_before = now + self._retry_seconds * 2 ** min(then.attempt - 1, MAX_DOUBLINGS)
        return True

    @staticmethod
    def _known(session: Session, owner: str, key: str | None, encoded: str) -> RunFacts | None:
        if key is None:
            return None
        run = session.scalars(select(Run).where(Run.owner == owner, Run.idempotency_key == key)).first()
        if run is not None and run.training_order != encoded:
            raise Conflict("this idempotency key was used before, for another order; use a new key")
        return None if run is None else _facts(run)


def _held(lease: Lease) -> "tuple[ColumnElement[bool], ...]":
    return (
        Run.id == lease.run.id,
        Run.state == "running",
        Run.leased_by == lease.worker,
        Run.attempt == lease.attempt,
    )


def _named(session: Session, run_id: str, owner: str | None, *, for_update: bool = False) -> Run:
    query = select(Run).where(Run.id == run_id)
    if owner is not None:
        query = query.where(Run.owner == owner)
    run = session.scalars(query.with_for_update() if for_update else query).first()
    if run is None:
        raise NotFound("there is no such run")
    return run


def _facts(run: Run) -> RunFacts:
    return RunFacts(
        id=run.id,
        seq=run.seq,
        state=cast("State", run.state),
        order=msgspec.json.decode(run.training_order, type=TrainingOrder),
        owner=run.owner,
        attempt=run.attempt or 0,
        max_attempts=run.max_attempts,
        is_cancel_asked=run.cancel_asked_at is not None,
        step=run.step or "",
        done=run.done or 0,
        total=run.total or 0,
        message=run.message or "",
        result=msgspec.json.decode(run.result or "{}", type=RunResult),
        created_at=run.created_at,
        started_at=run.started_at,
        finished_at=run.finished_at,
    )
