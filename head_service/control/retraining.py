"""Retraining on feedback: what it trains on, and when it is due."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from clients import InvalidRequest
from head_service.control.feedback import FeedbackStore
from head_service.control.live import LiveHead
from head_service.control.runs import RunFacts, Runs
from head_service.control.words import DataSource, Publish, TrainingOrder

SCHEDULE: Final = "(schedule)"
"""Who owns the runs of the schedule; no key can have that name."""


@dataclass(frozen=True, slots=True)
class HeadFeedback:
    """Of one head: the newest row, rows since the last run on feedback, and how long ago that run was; None: never."""

    head: str
    newest: int
    num_new: int
    age_seconds: float | None


@dataclass(frozen=True, slots=True)
class Schedule:
    """Retrain when *min_rows* are new, *every_seconds* at most; 0: never."""

    every_seconds: float
    min_rows: int
    publish: Publish = "version"


def due(heads: Sequence[HeadFeedback], schedule: Schedule) -> list[HeadFeedback]:
    """The heads to retrain now."""
    if not schedule.every_seconds:
        return []
    return [
        head
        for head in heads
        if head.num_new >= schedule.min_rows and (head.age_seconds is None or head.age_seconds >= schedule.every_seconds)
    ]


def is_retraining_of(order: TrainingOrder, head: str, publish: Publish, data: DataSource | None) -> bool:
    """Whether *order* is what somebody got who asked for this."""
    asked = order.feedback_until and order.head == head and order.publish == publish
    return bool(asked) and (data is None or order.data == data)


class Retraining:
    """Makes orders out of feedback."""

    def __init__(
        self, runs: Runs, feedback: FeedbackStore, live_head: LiveHead, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._runs = runs
        self._feedback = feedback
        self._live_head = live_head

    def order(self, head: str, publish: Publish, data: DataSource | None = None) -> TrainingOrder:
        """All feedback of *head*, over *data*, or where that is None over what its last successful run was trained on.

        A head that no run has made is trained as its live version says.

        Raises:
            InvalidRequest: there is no feedback.
            RepositoryError: the catalogue cannot be read.
        """
        until = self._feedback.newest(head)
        if not until:
            raise InvalidRequest(f"there is no feedback for head {head!r} yet")
        last = self._runs.last_succeeded(head)
        before = last.order if last else self._as_live(head)
        if data is not None:
            before = msgspec.structs.replace(before, data=data, text_column=None, label_column=None)
        return msgspec.structs.replace(before, feedback_until=until, publish=publish)

    def _as_live(self, head: str) -> TrainingOrder:
        live = self._live_head(head)
        if live is None:
            return TrainingOrder(head=head)
        return TrainingOrder(
            head=head,
            task=live.task,
            head_type=live.head_type,
            view=live.view,
            preprocess=live.preprocess,
            long_text=live.long_text,
            level_separator=live.label_separator,
        )

    def submit_due(self, schedule: Schedule) -> list[RunFacts]:
        """Submit what is due; workers that do this at the same time submit it once."""
        if not schedule.every_seconds:
            return []
        submitted = []
        for head in due(list(self._heads(self._clock())), schedule):
            order = self.order(head.head, schedule.publish)
            run, is_new = self._runs.submit(order, SCHEDULE, f"{head.head}:{head.newest}")
            if is_new:
                submitted.append(run)
        return submitted

    def _heads(self, now: float) -> Iterator[HeadFeedback]:
        for head in self._feedback.num_rows():
            if self._live_head(head) is None:
                # It was removed; its feedback is no reason to bring it back.
                continue
            last = self._runs.last_on_feedback(head)
            since = last.order.feedback_until if last else 0
            age = None if last is None else now - last.created_at
            yield HeadFeedback(head, self._feedback.newest(head), self._feedback.num_since(head, since), age)
