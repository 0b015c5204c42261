"""An order's rows once what people said about them is heard: one file that training reads. Done in the training process."""

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from clients.wire.text import normalize_text
from head_service.control.labelled import Labelled, is_anything_left, labels_of, read_labelled, render
from head_service.control.words import TrainingOrder
from head_service.errors import DataError
from head_service.pieces import named_steps
from head_service.training.dataset import MIN_PER_LABEL, problem_with, read_dataset

ROWS_FILE: Final = "rows.jsonl"


def with_corrections(
    order: TrainingOrder,
    data: Path | None,
    columns: tuple[str | None, str | None],
    corrections: Path,
    folder: Path,
    say: Callable[[str], None],
) -> Path:
    """A file in *folder*, columns "text" and "label", with the rows of *data* and of *corrections*.

    *columns* are those of *data*, text and label; *corrections* are what `render` writes as JSONL. What of them is left out,
    *say* is told in a line for the run's log.

    Raises:
        DataError: *data* cannot be read, a step of the order is not here, or there is nothing to train on.
    """
    given = list(read_labelled(corrections))
    steps = named_steps(order.preprocess)
    kept = [row for row in given if _is_usable(row, order, steps)]
    base: list[Labelled] = []
    if data is not None:
        read = read_dataset(data, *columns, task=order.task)
        is_several = order.task == "multi_label"
        base = [Labelled(each.text, each.labels if is_several else each.label) for each in read.examples]
    if order.task != "regression":
        kept = learnable(base, kept)
    if not kept and data is None:
        raise DataError(f"there is no feedback for head {order.head!r} that could be trained on")
    if left_out := len(given) - len(kept):
        say(f"{left_out} corrections left out, since nothing can be learnt from them")
    path = folder / ROWS_FILE
    with path.open("w", encoding="utf-8") as rows:
        rows.writelines(render(corrected(base, kept), "jsonl"))
    return path


def _is_usable(row: Labelled, order: TrainingOrder, steps: tuple[str, ...]) -> bool:
    """Whether a head can be taught *row*; what was kept before that was asked may be anything."""
    return not problem_with(row.label, order.task, order.level_separator) and is_anything_left(row.text, steps)


def learnable(base: Iterable[Labelled], corrections: Iterable[Labelled]) -> list[Labelled]:
    """*corrections* with which every label has enough examples to be learnt, as every one of *base* has.

    Those are left out whose own label has too few, and then, one by one, those that took too many from a label of *base*. Takes
    time in proportion to the rows.
    """
    weighed = _Weighed(base, corrections)
    changed = dict.fromkeys(weighed.counts)
    short: dict[str, None] = {}
    while changed or short:
        if changed:
            label, _ = changed.popitem()
            if not weighed.is_rare(label):
                continue
            if touched := weighed.leave_out_those_of(label):
                changed |= touched
            else:
                short[label] = None
        else:
            label, _ = short.popitem()
            if weighed.is_rare(label):
                changed |= weighed.give_one_back(label)
    return list(weighed.kept.values())


class _Weighed:
    """How many texts have each label, while corrections are left out. The methods give the labels whose counts they changed."""

    def __init__(self, base: Iterable[Labelled], corrections: Iterable[Labelled]) -> None:
        self._before = {normalize_text(row.text): row for row in base}
        self.kept = {normalize_text(row.text): row for row in corrections}
        self.counts = Counter(label for row in (self._before | self.kept).values() for label in labels_of(row.label))
        self._said: defaultdict[str, list[str]] = defaultdict(list)
        self._taken: defaultdict[str, deque[str]] = defaultdict(deque)
        for key, row in self.kept.items():
            for label in labels_of(row.label):
                self._said[label].append(key)
            for label in labels_of(self._before[key].label) if key in self._before else ():
                self._taken[label].append(key)

    def is_rare(self, label: str) -> bool:
        """Whether it has examples, and too few."""
        return 0 < self.counts[label] < MIN_PER_LABEL

    def leave_out_those_of(self, label: str) -> dict[str, None]:
        """Leave out all corrections that say *label*."""
        touched: dict[str, None] = {}
        for key in self._said.pop(label, ()):
            if key in self.kept:
                touched |= self._leave_out(key)
        return touched

    def give_one_back(self, label: str) -> dict[str, None]:
        """Leave out the first correction of a text of the data that had *label*; nothing where there is none."""
        taken = self._taken[label]
        while taken:
            if (key := taken.popleft()) in self.kept:
                return self._leave_out(key)
        return {}

    def _leave_out(self, key: str) -> dict[str, None]:
        said = labels_of(self.kept.pop(key).label)
        before = labels_of(self._before[key].label) if key in self._before else ()
        self.counts.subtract(said)
        self.counts.update(before)
        return dict.fromkeys((*said, *before))


def corrected(base: Iterable[Labelled], corrections: Iterable[Labelled]) -> list[Labelled]:
    """*base* in its order, its labels replaced where *corrections* speak of the same text, then the other corrections."""
    rows = {normalize_text(row.text): row for row in base}
    for row in corrections:
        key = normalize_text(row.text)
        rows[key] = Labelled(rows[key].text if key in rows else row.text, row.label)
    return list(rows.values())
