"""From what an order names to the files that training reads."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from clients import InvalidRequest
from head_service.control.feedback import FeedbackStore
from head_service.control.labelled import render
from head_service.control.uploads import Uploads, data_file
from head_service.control.words import RunCancelledError, TrainingOrder

CORRECTIONS_FILE: Final = "corrections.jsonl"


@dataclass(frozen=True, slots=True)
class Gathered:
    """An order's rows: of its *data*, and in *corrections*, what `labelled.render` writes as JSONL, what people said since."""

    data: Path | None
    corrections: Path | None


class TrainingData:
    """Finds and gathers the rows of orders. *data_dir* is the one folder below which a path may lead."""

    def __init__(self, uploads: Uploads, feedback: FeedbackStore, data_dir: Path | None) -> None:
        self._uploads = uploads
        self._feedback = feedback
        self._data_dir = data_dir

    def check(self, order: TrainingOrder, owner: str | None) -> None:
        """Refuse an order whose rows are not there, or not *owner*'s.

        Raises:
            InvalidRequest, NotFound: they are not.
        """
        if order.data is None and not order.feedback_until:
            raise InvalidRequest("the order has neither data nor feedback to train on")
        self._file(order, owner)

    def gather(self, order: TrainingOrder, folder: Path, is_stopped: Callable[[], bool]) -> "Gathered":
        """Where the rows are; the feedback is written into *folder*, a page at a time however much it is.

        Raises:
            InvalidRequest, NotFound: the data is gone.
            RunCancelledError: *is_stopped*, which is asked between two texts.
        """
        file = self._file(order, None)
        if not order.feedback_until:
            return Gathered(file, None)
        path = folder / CORRECTIONS_FILE
        with path.open("w", encoding="utf-8") as rows:
            for row in render(self._feedback.dataset(order.head, order.feedback_until), "jsonl"):
                if is_stopped():
                    raise RunCancelledError
                rows.write(row)
        return Gathered(file, path)

    def _file(self, order: TrainingOrder, owner: str | None) -> Path | None:
        source = order.data
        if source is None:
            return None
        if (source.upload is None) == (source.path is None):
            raise InvalidRequest("data names either an upload or a path")
        if source.upload is not None:
            return self._uploads.path(source.upload, owner)
        return data_file(self._data_dir, source.path or "")
