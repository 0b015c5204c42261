"""From what an order names to one file of rows that training reads."""

from collections.abc import Callable, Iterable
from pathlib import Path

from clients import InvalidRequest
from clients.wire.text import normalize_text
from head_service.control.feedback import FeedbackStore, Labelled, is_anything_left, labels_of, render
from head_service.control.uploads import Uploads, data_file
from head_service.control.words import TrainingOrder
from head_service.errors import DataError
from head_service.pieces import named_steps
from head_service.training.dataset import problem_with, rare_labels, read_dataset


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

    def gather(self, order: TrainingOrder, folder: Path, say: Callable[[str], None]) -> tuple[Path, str | None, str | None]:
        """The file with all rows, and the columns of text and label; the feedback is written into *folder*.

        What of it is left out, *say* is told in a line for the run's log.

        Raises:
            InvalidRequest, NotFound: the data is gone.
            DataError: it cannot be used together with the feedback, or a step of the order is not here.
        """
        file = self._file(order, None)
        if file is not None and not order.feedback_until:
            return file, order.text_column, order.label_column
        given = list(self._feedback.dataset(order.head, order.feedback_until))
        steps = named_steps(order.preprocess)
        corrections = [row for row in given if _is_usable(row, order, steps)]
        base: list[Labelled] = []
        if file is not None:
            read = read_dataset(file, order.text_column, order.label_column, task=order.task)
            is_several = order.task == "multi_label"
            base = [Labelled(each.text, each.labels if is_several else each.label) for each in read.examples]
        if order.task != "regression":
            corrections = learnable(base, corrections)
        if not corrections and file is None:
            raise DataError(f"there is no feedback for head {order.head!r} that could be trained on")
        if left_out := len(given) - len(corrections):
            say(f"{left_out} corrections left out, since nothing can be learnt from them")
        path = folder / "rows.jsonl"
        with path.open("w", encoding="utf-8") as rows:
            rows.writelines(render(corrected(base, corrections), "jsonl"))
        return path, "text", "label"

    def _file(self, order: TrainingOrder, owner: str | None) -> Path | None:
        source = order.data
        if source is None:
            return None
        if (source.upload is None) == (source.path is None):
            raise InvalidRequest("data names either an upload or a path")
        if source.upload is not None:
            return self._uploads.path(source.upload, owner)
        return data_file(self._data_dir, source.path or "")


def _is_usable(row: Labelled, order: TrainingOrder, steps: tuple[str, ...]) -> bool:
    """Whether a head can be taught *row*; what was kept before that was asked may be anything."""
    return not problem_with(row.label, order.task, order.level_separator) and is_anything_left(row.text, steps)


def learnable(base: Iterable[Labelled], corrections: Iterable[Labelled]) -> list[Labelled]:
    """*corrections* with which every label has enough examples to be learnt, as every one of *base* has.

    Those are left out whose own label has too few, and, one by one, those that took too many from a label of *base*.
    """
    before = {normalize_text(row.text): row for row in base}
    kept = {normalize_text(row.text): row for row in corrections}
    while rare := set(rare_labels(labels_of(row.label) for row in (before | kept).values())):
        mistyped = [key for key, row in kept.items() if not rare.isdisjoint(labels_of(row.label))]
        for key in mistyped or [next(key for key in kept if key in before and not rare.isdisjoint(labels_of(before[key].label)))]:
            del kept[key]
    return list(kept.values())


def corrected(base: Iterable[Labelled], corrections: Iterable[Labelled]) -> list[Labelled]:
    """*base* in its order, its labels replaced where *corrections* speak of the same text, then the other corrections."""
    rows = {normalize_text(row.text): row for row in base}
    for row in corrections:
        key = normalize_text(row.text)
        rows[key] = Labelled(rows[key].text if key in rows else row.text, row.label)
    return list(rows.values())
