"""What people said a text's label is: kept before it is acknowledged, given out as training data.

Rows that arrive together are committed together: while one commit waits for the disk the next rows gather, so a slow disk costs
latency, and never a row.
"""

import asyncio
import hashlib
import json
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Final

from sqlalchemy import func, select, tuple_
from sqlalchemy.orm import Session

from clients import InvalidRequest, NotFound, Overloaded, TrunklineError, Unavailable
from clients.wire.catalogue import Manifest
from clients.wire.chain import fault_of
from clients.wire.text import normalize_text
from head_service.control.errors import Collision, Conflict
from head_service.control.labelled import Given, Labelled, is_anything_left, labels_of
from head_service.control.schema import Feedback, FeedbackDay
from head_service.control.store import Store
from head_service.training.dataset import problem_with

PAGE_ROWS: Final = 1_000


@dataclass(frozen=True, slots=True)
class FeedbackRow:
    """A row to keep. *owner* is who gave it; with an *idempotency_key*, giving it twice keeps it once."""

    head: str
    text: str
    label: Given
    owner: str
    idempotency_key: str | None = None

    @property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of the normalised text."""
        return hashlib.sha256(normalize_text(self.text).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Kept:
    """An acknowledged row; not *is_new*: its key gave it before."""

    id: str
    is_new: bool


@dataclass(frozen=True, slots=True)
class FeedbackCounts:
    """Of one head.

    Rows, distinct texts, texts by each label of the majority, texts whose rows differ, those left out for a tie, and in *until*
    the number of the newest row.
    """

    num_rows: int
    num_texts: int
    by_label: dict[str, int]
    num_conflicts: int
    num_ties: int
    until: int


def majority(labels: Iterable[Given]) -> Given | None:
    """What is most often said, several labels of a text as a whole; None: two are said equally often."""
    said = list(labels)
    if any(isinstance(label, tuple) for label in said):
        # A head that answers with several may have answered with one before.
        said = [labels_of(label) for label in said]
    counts = Counter(said).most_common(2)
    if len(counts) == 2 and counts[0][1] == counts[1][1]:
        return None
    return counts[0][0]


def checked(given: Given, manifest: Manifest | None, head: str, *, allow_new: bool) -> Given:
    """*given* in the form that the head's task has, held to the labels of the head's live version.

    Raises:
        NotFound: there is no such head.
        InvalidRequest: it is none of them; the message names them and not what was given.
    """
    if manifest is None:
        raise NotFound(f"there is no live head {head!r}; feedback is kept for heads that answer")
    if manifest.task == "multi_label":
        given = given if isinstance(given, tuple) else (given,)
    elif isinstance(given, tuple):
        raise InvalidRequest(f"head {head!r} answers with one label; send label in place of labels")
    if manifest.task == "regression":
        if problem_with(given, manifest.task):
            raise InvalidRequest(f"head {head!r} is a regression; its label is a number such as 3.5")
    elif problem := problem_with(given, manifest.task, manifest.label_separator):
        raise InvalidRequest(problem)
    elif not (allow_new or set(labels_of(given)) <= set(manifest.labels)):
        known = ", ".join(manifest.labels[:20]) + (", …" if len(manifest.labels) > 20 else "")
        raise InvalidRequest(f"the label is none of head {head!r}'s; they are: {known}")
    return given


def check_left(text: str, preprocess: tuple[str, ...]) -> None:
    """Refuse a text that the head's steps leave nothing of: nothing could be learnt from it.

    Where a step is not installed, as it need be only where heads are trained and served, that is not known, and it is taken.

    Raises:
        InvalidRequest: that is so, or a step cannot be done with it.
    """
    if not fault_of(preprocess) and not is_anything_left(text, preprocess):
        raise InvalidRequest(f"nothing is left of the text after {', '.join(preprocess)}")


class FeedbackStore:
    """The rows in the database. Safe between threads and processes."""

    def __init__(self, store: Store, *, max_rows_per_day: int) -> None:
        self._store = store
        self._max_per_day = max_rows_per_day

    def keep(self, rows: Sequence[FeedbackRow]) -> list[Kept | TrunklineError]:
        """Keep all *rows* in one transaction; for each, in order, that it is kept, or why it is not.

        Raises:
            StorageFull, Unavailable: none of them is.
        """
        try:
            return self._keep_all(rows)
        except Collision:
            # Another process kept a row of the same key at the same moment; now it is seen.
            return self._keep_all(rows)

    def _keep_all(self, rows: Sequence[FeedbackRow]) -> list[Kept | TrunklineError]:
        with self._store.write() as session:
            now = self._store.now(session)
            answers: list[Kept | TrunklineError] = []
            for row in rows:
                try:
                    answers.append(self._keep(session, row, now))
                except TrunklineError as refusal:
                    answers.append(refusal)
            return answers

    def counts(self, head: str) -> FeedbackCounts:
        """Of *head*; zeros where there is no feedback."""
        until = self.newest(head)
        by_label: Counter[str] = Counter()
        num_rows = num_texts = num_conflicts = num_ties = 0
        for _, labels in self._texts(head, until):
            num_rows += len(labels)
            num_texts += 1
            num_conflicts += len(set(labels)) > 1
            label = majority(labels)
            num_ties += label is None
            by_label.update(labels_of(label) if label is not None else ())
        return FeedbackCounts(num_rows, num_texts, dict(sorted(by_label.items())), num_conflicts, num_ties, until)

    def dataset(self, head: str, until: int) -> Iterator[Labelled]:
        """Each text of *head* once, of the rows up to number *until*, in an order that only the texts decide; ties left out."""
        for text, labels in self._texts(head, until):
            if (label := majority(labels)) is not None:
                yield Labelled(text, label)

    def newest(self, head: str) -> int:
        """The number of the newest row of *head*; 0: there is none."""
        with self._store.read() as session:
            return session.scalars(select(func.coalesce(func.max(Feedback.seq), 0)).where(Feedback.head == head)).one()

    def num_rows(self) -> dict[str, int]:
        """Rows by head."""
        with self._store.read() as session:
            return dict(session.execute(select(Feedback.head, func.count()).group_by(Feedback.head)).all())

    def num_since(self, head: str, seq: int) -> int:
        """Rows of *head* after number *seq*."""
        with self._store.read() as session:
            return session.scalars(select(func.count()).where(Feedback.head == head, Feedback.seq > seq)).one()

    def _keep(self, session: Session, row: FeedbackRow, now: float) -> Kept:
        if row.idempotency_key is not None:
            query = select(Feedback).where(Feedback.owner == row.owner, Feedback.idempotency_key == row.idempotency_key)
            if known := session.scalars(query).first():
                if (known.head, _given(known.label, known.labels), known.text) != (row.head, row.label, row.text):
                    raise Conflict("this idempotency key was used before, for other feedback; use a new key")
                return Kept(known.id, is_new=False)
        self._count(session, row.owner, now)
        kept = Feedback(
            id=uuid.uuid4().hex,
            head=row.head,
            digest=row.digest,
            text=row.text,
            label=", ".join(labels_of(row.label)),
            labels=json.dumps(row.label, ensure_ascii=False) if isinstance(row.label, tuple) else None,
            owner=row.owner,
            idempotency_key=row.idempotency_key,
            created_at=now,
        )
        session.add(kept)
        session.flush()
        return Kept(kept.id, is_new=True)

    def _count(self, session: Session, owner: str, now: float) -> None:
        day = datetime.fromtimestamp(now, UTC).date().isoformat()
        usage = session.get(FeedbackDay, (owner, day), with_for_update=True)
        if usage is None:
            usage = FeedbackDay(owner=owner, day=day, num_rows=0)
            session.add(usage)
        if usage.num_rows >= self._max_per_day:
            wait = 86_400 - now % 86_400
            raise Overloaded(f"this key's {self._max_per_day} rows of feedback a day are used up", retry_after=wait)
        usage.num_rows += 1

    def _texts(self, head: str, until: int) -> Iterator[tuple[str, list[Given]]]:
        """Each text as its first row wrote it, with the labels of all its rows. Read by the page, so that no writer waits."""
        for _, rows in groupby(self._rows(head, until), key=lambda row: row[0]):
            first, *others = rows
            yield first[1], [first[2], *(row[2] for row in others)]

    def _rows(self, head: str, until: int) -> Iterator[tuple[str, str, Given]]:
        """(digest, text, label) in the order of the digests."""
        last = ("", 0)
        columns = (Feedback.digest, Feedback.seq, Feedback.text, Feedback.label, Feedback.labels)
        query = select(*columns).order_by(Feedback.digest, Feedback.seq)
        while True:
            page = query.where(Feedback.head == head, Feedback.seq <= until, tuple_(Feedback.digest, Feedback.seq) > last).limit(
                PAGE_ROWS
            )
            with self._store.read() as session:
                rows = session.execute(page).all()
            yield from ((digest, text, _given(label, labels)) for digest, _, text, label, labels in rows)
            if len(rows) < PAGE_ROWS:
                return
            last = (rows[-1][0], rows[-1][1])


def _given(label: str, labels: str | None) -> Given:
    """What the columns say; see `schema.Feedback`."""
    return label if labels is None else tuple(json.loads(labels))


class FeedbackWriter:
    """Commits what arrives together in one transaction. Made, used and closed on one event loop, whose owner it is of the queue.

    *keep* runs in a thread; at most *max_batch* rows go into one commit and *max_pending* wait.
    """

    def __init__(
        self,
        keep: Callable[[Sequence[FeedbackRow]], list[Kept | TrunklineError]],
        *,
        max_batch: int = 256,
        max_pending: int = 4_096,
    ) -> None:
        self._keep = keep
        self._max_batch = max_batch
        self._max_pending = max_pending
        self._pending: deque[tuple[FeedbackRow, asyncio.Future[Kept]]] = deque()
        self._arrived = asyncio.Event()
        self._is_closing = False
        self._task = asyncio.create_task(self._run())

    async def write(self, row: FeedbackRow) -> Kept:
        """Keep *row*: it is on the disk when this returns. Who leaves while it waits may find it kept all the same.

        Raises:
            Overloaded: too many wait, or the owner's rows of the day are used up.
            Conflict, StorageFull, Unavailable: see `FeedbackStore`.
        """
        if self._is_closing:
            raise Unavailable("the service is stopping; try again shortly")
        if len(self._pending) >= self._max_pending:
            raise Overloaded("too much feedback is waiting to be written", retry_after=1.0)
        future: asyncio.Future[Kept] = asyncio.get_running_loop().create_future()
        self._pending.append((row, future))
        self._arrived.set()
        return await future

    async def close(self) -> None:
        """Write what waits, then stop; who comes later is refused."""
        self._is_closing = True
        self._arrived.set()
        await self._task

    async def _run(self) -> None:
        while self._pending or not self._is_closing:
            while self._pending:
                await self._commit([self._pending.popleft() for _ in range(min(self._max_batch, len(self._pending)))])
            if not self._is_closing:
                await self._arrived.wait()
                self._arrived.clear()

    async def _commit(self, batch: "list[tuple[FeedbackRow, asyncio.Future[Kept]]]") -> None:
        # A caller that left is left out; the others do not notice.
        batch = [(row, future) for row, future in batch if not future.done()]
        answers: Sequence[Kept | Exception]
        try:
            answers = await asyncio.to_thread(self._keep, [row for row, _ in batch])
        except Exception as error:
            answers = [error] * len(batch)
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
