"""Labelled texts out of a file, and every complaint about them in words with line numbers."""

import hashlib
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from clients.wire.catalogue import Task
from clients.wire.text import normalize_text
from head_service.errors import DataError
from head_service.training.rows import TEXT_COLUMNS, DataLimits, Row, column_of, read_rows, shown
from head_service.training.splitting import draws, held_out_by_group, held_out_by_labels, held_out_by_value

LABEL_COLUMNS: Final = ("label", "class", "category", "topic", "sentiment", "target")
# What a column of lists or numbers is also called.
MULTI_LABEL_COLUMNS: Final = ("labels", "tags", "classes", "categories", "topics", *LABEL_COLUMNS)
REGRESSION_COLUMNS: Final = ("value", "score", "rating", "stars", *LABEL_COLUMNS)
USUAL_COLUMNS: Final[Mapping[Task, tuple[str, ...]]] = {
    "single_label": LABEL_COLUMNS,
    "multi_label": MULTI_LABEL_COLUMNS,
    "regression": REGRESSION_COLUMNS,
}
REGRESSION_LABEL: Final = "value"
"""The name of a regression's only output."""

LABEL_SEPARATOR: Final = "|"
"""Between several labels in one cell, where nothing else is said."""

MAX_COMPLAINTS: Final = 20
MAX_LABEL_LENGTH: Final = 200
MIN_PER_LABEL: Final = 2
MIN_FOR_REGRESSION: Final = 10
_EMPTY_LEVEL: Final = "a label has an empty level"
_MAX_VALUE: Final = float(np.finfo(np.float32).max)
_NUMBER: Final = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")

Truth = NDArray[np.int64] | NDArray[np.int8] | NDArray[np.float32]
"""int64 [texts]: the label's index; or int8 [texts, labels]: 1 where a text has the label; or float32 [texts]: the number."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row; *line* is where it starts in its file, counted from 1.

    *label* is its answer as one line of words: the label, the labels with commas between, or the number. Of multi_label
    *labels* are the same one by one, sorted, each once, perhaps none; of regression *value* is the number.
    """

    text: str
    label: str
    line: int
    labels: tuple[str, ...] = ()
    value: float = 0.0


@dataclass(frozen=True, slots=True)
class Dataset:
    """Examples of one task, without repetitions; *num_repeated* rows said what another one said already."""

    examples: tuple[Example, ...]
    num_repeated: int = 0
    task: Task = "single_label"

    def __str__(self) -> str:
        answers = "numbers" if self.task == "regression" else f"{len(self.label_names)} labels"
        repeated = f", {self.num_repeated} repeated rows left out" if self.num_repeated else ""
        return f"{len(self.examples)} texts, {answers}{repeated}"

    @property
    def texts(self) -> list[str]:
        """In order."""
        return [example.text for example in self.examples]

    @property
    def labels(self) -> list[str]:
        """In order; each example's `label`."""
        return [example.label for example in self.examples]

    @property
    def label_names(self) -> tuple[str, ...]:
        """What a head trained on this answers: each label once, sorted; of a regression `REGRESSION_LABEL`."""
        if self.task == "regression":
            return (REGRESSION_LABEL,)
        return tuple(sorted({label for example in self.examples for label in self._labels_of(example)}))

    def truth(self, label_names: Sequence[str] | None = None) -> Truth:
        """What answers are held against, see `Truth`; *label_names* absent: this dataset's own.

        Raises:
            DataError: a label is not one of *label_names*; it is told with its lines.
        """
        if self.task == "regression":
            return np.array([example.value for example in self.examples], np.float32)
        names = self.label_names if label_names is None else tuple(label_names)
        self._check_known(names)
        index = {name: place for place, name in enumerate(names)}
        if self.task == "single_label":
            return np.array([index[example.label] for example in self.examples], np.int64)
        indicators = np.zeros((len(self.examples), len(names)), np.int8)
        for row, example in zip(indicators, self.examples, strict=True):
            row[[index[label] for label in example.labels]] = 1
        return indicators

    def digest(self) -> str:
        """SHA-256, in hexadecimal, of all texts and what they are answered with."""
        whole = hashlib.sha256()
        for example in self.examples:
            answers = {"single_label": example.label, "multi_label": example.labels, "regression": example.value}
            whole.update(json.dumps([example.text, answers[self.task]]).encode())
        return whole.hexdigest()

    def _labels_of(self, example: Example) -> tuple[str, ...]:
        return example.labels if self.task == "multi_label" else (example.label,)

    def _check_known(self, names: Sequence[str]) -> None:
        known = set(names)
        strange: dict[str, list[int]] = defaultdict(list)
        for example in self.examples:
            for label in self._labels_of(example):
                if label not in known:
                    strange[label].append(example.line)
        _complain([f"the label {shown(label)} in {_lines(lines)} is none the head knows" for label, lines in strange.items()])


@dataclass(frozen=True, slots=True)
class _Problem:
    """Why a cell cannot be used; *says* goes before "in line …"."""

    says: str


def read_dataset(
    path: Path,
    text_column: str | None = None,
    label_column: str | None = None,
    *,
    for_training: bool = True,
    task: Task = "single_label",
    label_separator: str = LABEL_SEPARATOR,
    limits: DataLimits | None = None,
) -> Dataset:
    """The examples of a .csv, .tsv or .jsonl file.

    The label column holds, by *task*, a label; labels with *label_separator* between them, or a list of them in .jsonl, and
    none at all may be right; or a finite number. Not *for_training*, held-out rows are taken as they are: repetitions, rare and
    contradicting labels included.

    Raises:
        DataError: with every problem found, each with its lines.
    """
    limits = limits or DataLimits()
    if not label_separator.strip() and task == "multi_label" and label_separator != "\t":
        raise DataError("the separator of labels is empty; name one that no label contains, such as |")
    file = read_rows(path, limits)
    text = column_of(file.names, text_column, TEXT_COLUMNS, "text")
    label = column_of(file.names, label_column, USUAL_COLUMNS[task], "label")
    examples, complaints = _examples(file.rows, text, label, task, label_separator)
    if file.overfull:
        complaints.append(
            f"there are more cells than columns in {_lines(file.overfull)}; put quotes around a cell with separators"
        )
    if not for_training:
        _complain(complaints)
        return Dataset(tuple(examples), task=task)
    kept, conflicts, repeated = _without_repetitions(examples)
    _complain(complaints + conflicts + _unlearnable(kept, task, limits))
    return Dataset(tuple(kept), repeated, task)


def split(dataset: Dataset, share: float = 0.2, seed: int = 0) -> tuple[Dataset, Dataset]:
    """(train, held out), the same for the same texts: *share* of each label's examples held out, at least one and never all.

    Rows that come or go move hardly any of the others from one part to the other.

    Of multi_label that is as nearly so as can be, see `held_out_by_labels`; of a regression it is *share* of each tenth of the
    values.
    """
    held = _held_out(dataset, share, seed)
    examples = dataset.examples
    return (
        replace(dataset, examples=tuple(each for place, each in enumerate(examples) if place not in held), num_repeated=0),
        replace(dataset, examples=tuple(each for place, each in enumerate(examples) if place in held), num_repeated=0),
    )


def test_part(dataset: Dataset) -> Dataset:
    """The rows that a training without held-out ones of its own measures on, and that no head learns from."""
    return split(dataset)[1]


def _held_out(dataset: Dataset, share: float, seed: int) -> set[int]:
    drawn = draws(dataset.texts, seed)
    if dataset.task == "multi_label":
        return held_out_by_labels([example.labels for example in dataset.examples], drawn, share)
    if dataset.task == "regression":
        return held_out_by_value([example.value for example in dataset.examples], drawn, share)
    by_label: dict[str, list[int]] = defaultdict(list)
    for place, example in enumerate(dataset.examples):
        by_label[example.label].append(place)
    return held_out_by_group(by_label, drawn, share)


def problem_with(answer: str | tuple[str, ...], task: Task, level_separator: str = "") -> str:
    """Why no head of *task* can be taught *answer*, a label, several, or a number in words; "" where one can."""
    found = _read_answer(list(answer) if isinstance(answer, tuple) else answer, task, LABEL_SEPARATOR)
    if isinstance(found, _Problem):
        return found.says
    labels = (found,) if isinstance(found, str) else found if isinstance(found, tuple) else ()
    return "" if all(has_levels(label, level_separator) for label in labels) else _EMPTY_LEVEL


def _examples(
    rows: Sequence[Row], text_column: str, label_column: str, task: Task, separator: str
) -> tuple[list[Example], list[str]]:
    """The usable rows, and a complaint for each kind of trouble with the others."""
    examples: list[Example] = []
    troubles: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        text = _text(row.cells.get(text_column))
        answer = _read_answer(row.cells.get(label_column), task, separator)
        found = [each.says for each in (text, answer) if isinstance(each, _Problem)]
        for says in found:
            troubles[says].append(row.line)
        if not isinstance(text, _Problem) and not isinstance(answer, _Problem):
            examples.append(_example(text, answer, row.line))
    return examples, [f"{says} in {_lines(lines)}" for says, lines in sorted(troubles.items(), key=_texts_first)]


def _texts_first(trouble: tuple[str, list[int]]) -> tuple[bool, int]:
    return "text" not in trouble[0], trouble[1][0]


def _example(text: str, answer: str | tuple[str, ...] | float, line: int) -> Example:
    if isinstance(answer, str):
        return Example(text, answer, line)
    if isinstance(answer, tuple):
        return Example(text, ", ".join(answer), line, labels=answer)
    return Example(text, repr(answer), line, value=answer)


def _text(cell: object) -> str | _Problem:
    if cell is None:
        return _Problem("there is no text")
    text = _plain(cell)
    if text is None:
        return _Problem("the text is neither a string nor a number")
    if any("\ud800" <= character <= "\udfff" for character in text):
        return _Problem("the text holds half of a surrogate pair, which is no character")
    return text if normalize_text(text) else _Problem("the text is empty")


def _read_answer(cell: object, task: Task, separator: str) -> str | tuple[str, ...] | float | _Problem:
    if task == "multi_label":
        return _several(cell, separator)
    return _number(cell) if task == "regression" else _single(cell)


def _single(cell: object) -> str | _Problem:
    if cell is None:
        return _Problem("there is no label")
    return _label(cell) or _Problem("the label is empty")


def _several(cell: object, separator: str) -> tuple[str, ...] | _Problem:
    if cell is None:
        return _Problem("there are no labels (none at all is an empty cell, or [] in .jsonl)")
    labels = [_label(each) for each in (cell if isinstance(cell, list) else str(_plain(cell) or "").split(separator))]
    if not isinstance(cell, list) and _plain(cell) is None:
        return _Problem("the labels are neither a string nor a list of strings")
    problem = next((label for label in labels if isinstance(label, _Problem)), None)
    return problem or tuple(sorted({label for label in labels if isinstance(label, str) and label}))


def _number(cell: object) -> float | _Problem:
    if cell is None or cell == "":
        return _Problem("there is no number")
    if isinstance(cell, str) and _NUMBER.fullmatch(cell.strip()):
        value = float(cell)
    elif isinstance(cell, int | float) and not isinstance(cell, bool):
        # An integer of JSON can be larger than any float.
        value = float(cell) if abs(cell) <= _MAX_VALUE else math.inf
    else:
        return _Problem("the label is not a number such as 3.5")
    return value if abs(value) <= _MAX_VALUE else _Problem("the number is not finite, or too large for a float32")


def _label(cell: object) -> str | _Problem:
    """One label, "" when the cell is empty. A label is one line: labels.txt holds one a line."""
    if isinstance(cell, list):
        return _Problem("a label is a list, which the task multi_label takes,")
    plain = _plain(cell)
    if plain is None:
        return _Problem("a label is neither a string nor a number")
    label = " ".join(plain.split())
    if len(label) > MAX_LABEL_LENGTH:
        return _Problem(f"a label is longer than {MAX_LABEL_LENGTH} characters (is another column the label?)")
    if any("\ud800" <= character <= "\udfff" for character in label):
        return _Problem("a label holds half of a surrogate pair, which is no character")
    return label


def _plain(cell: object) -> str | None:
    """A cell's words; None for what JSON has beside strings, numbers and truth values."""
    if isinstance(cell, bool):
        return str(cell).lower()
    return str(cell) if isinstance(cell, str | int | float) else None


def complain_of_lines(says: str, lines: Sequence[int]) -> None:
    """Refuse data of which *says* is true in *lines*; nothing where there are none.

    Raises:
        DataError: there are.
    """
    _complain([f"{says} in {_lines(lines)}"] if lines else [])


def check_levels(data: Dataset, separator: str) -> None:
    """See that each label of *data* is levels with *separator* between them, none of which is empty; "" separates nothing.

    Raises:
        DataError: one is not, or the answers are numbers.
    """
    if not separator:
        return
    if data.task == "regression":
        raise DataError("numbers have no levels; leave the level separator out")
    labels = {one.line: one.labels if data.task == "multi_label" else (one.label,) for one in data.examples}
    wrong = [line for line, said in labels.items() if not all(has_levels(label, separator) for label in said)]
    complain_of_lines(_EMPTY_LEVEL, wrong)


def has_levels(label: str, separator: str) -> bool:
    """Whether *label* is levels with *separator* between them, none of which is empty; with "" it is always."""
    return not separator or all(level.strip() for level in label.split(separator))


def _complain(complaints: list[str]) -> None:
    if complaints:
        more = len(complaints) - MAX_COMPLAINTS
        shown = complaints[:MAX_COMPLAINTS] + ([f"and {more} more"] if more > 0 else [])
        raise DataError("the data cannot be used:\n" + "\n".join(f"  - {line}" for line in shown))


def _without_repetitions(examples: list[Example]) -> tuple[list[Example], list[str], int]:
    by_text: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        by_text[normalize_text(example.text)].append(example)
    conflicts = [
        f"one text has different labels in {_lines([example.line for example in same])}"
        for same in by_text.values()
        if len({(example.label, example.labels) for example in same}) > 1
    ]
    return [same[0] for same in by_text.values()], conflicts, len(examples) - len(by_text)


def _unlearnable(examples: list[Example], task: Task, limits: DataLimits) -> list[str]:
    if not examples:
        return []
    if task == "regression":
        return _unlearnable_values([example.value for example in examples])
    sets = [example.labels if task == "multi_label" else (example.label,) for example in examples]
    return _too_few_or_many(sets, limits.max_labels) or _rare(sets, [example.line for example in examples])


def _too_few_or_many(sets: Sequence[tuple[str, ...]], max_labels: int) -> list[str]:
    num_labels = len({label for labels in sets for label in labels})
    if not num_labels:
        return ["no text has a label"]
    if num_labels == 1 and all(sets):
        return ["there is only one label; a classifier needs at least two, or, of multi_label, texts without it"]
    if num_labels > max_labels:
        return [f"there are {num_labels:,} labels, and {max_labels:,} is the most; is another column the label?"]
    return []


def _rare(sets: Sequence[tuple[str, ...]], lines: Sequence[int]) -> list[str]:
    line_of = {label: line for line, labels in zip(lines, sets, strict=True) for label in labels}
    return [
        f"the label {shown(label)} has a single example (line {line_of[label]}); give it more or leave it out"
        for label in rare_labels(sets)
    ]


def rare_labels(sets: Iterable[Iterable[str]]) -> list[str]:
    """The labels that too few of *sets*, the labels of a text each, have for a head to learn them."""
    return [label for label, count in Counter(chain.from_iterable(sets)).items() if count < MIN_PER_LABEL]


def _unlearnable_values(values: Sequence[float]) -> list[str]:
    if len(values) < MIN_FOR_REGRESSION:
        return [f"there are only {len(values)} numbers; a regression needs at least {MIN_FOR_REGRESSION}"]
    return ["all numbers are equal; there is nothing to learn"] if len(set(values)) == 1 else []


def _lines(lines: Sequence[int]) -> str:
    shown = ", ".join(map(str, lines[:10])) + (f" and {len(lines) - 10} more" if len(lines) > 10 else "")
    return f"line{'s' if len(lines) > 1 else ''} {shown}"
