"""What a head is to say of each text, as one matrix whatever the task; and how rows are parted, each label by its share."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from clients.wire.catalogue import Task
from head_service.errors import DataError

FloatArray = NDArray[np.float32]
RowNumbers = NDArray[np.int64]

VALUE: Final = "value"
"""The one label of a regression."""

_REGRESSION_STRATA: Final = 10


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """*matrix* is float32 [texts, labels]: 1 at the labels that are right, else 0; of a regression the one number itself.

    A text whose label is none of *labels* (held-out data may have such) has a row of zeros, and no answer to it is right.
    Where long texts are read in windows a row is a window, and *texts*, int64 [windows], says which text it is of.
    """

    task: Task
    labels: tuple[str, ...]
    matrix: FloatArray
    texts: RowNumbers | None = None

    def __len__(self) -> int:
        return len(self.matrix)

    def take(self, rows: RowNumbers) -> "Targets":
        """Those of *rows*."""
        return Targets(self.task, self.labels, self.matrix[rows], None if self.texts is None else self.texts[rows])

    def in_windows(self, windows: Sequence[Sequence[int]]) -> "Targets":
        """The same with a row a window, which is to be answered as its text is; *windows* are the rows that belong to each."""
        texts = np.repeat(np.arange(len(windows)), [len(rows) for rows in windows])
        return self if len(texts) == len(self) else Targets(self.task, self.labels, self.matrix[texts], texts)

    @property
    def windows(self) -> list[list[int]]:
        """The rows of each text, in the order of the texts' numbers."""
        windows: dict[int, list[int]] = {}
        for row, text in enumerate(range(len(self)) if self.texts is None else self.texts.tolist()):
            windows.setdefault(text, []).append(row)
        return [windows[text] for text in sorted(windows)]

    @property
    def indices(self) -> RowNumbers:
        """Of a single-label task, each text's label by its place, int64 [texts]."""
        return np.asarray(self.matrix.argmax(axis=1), np.int64)

    @property
    def strata(self) -> RowNumbers:
        """What a fair part has the same share of: the label, the rarest of several, or the tenth a number falls into."""
        if self.task == "regression":
            ranks = self.matrix[:, 0].argsort(kind="stable").argsort(kind="stable")
            return np.asarray(ranks * _REGRESSION_STRATA // max(1, len(ranks)), np.int64)
        if self.task == "multi_label":
            rarity = self.matrix / np.maximum(1.0, self.matrix.sum(axis=0))
            return np.where(self.matrix.any(axis=1), rarity.argmax(axis=1), len(self.labels)).astype(np.int64)
        return self.indices


def single_label(labels: Sequence[str], known: Sequence[str] | None = None) -> Targets:
    """One label a text; *known* are all there are, those that occur when absent, sorted."""
    return multi_label([(label,) for label in labels], known, task="single_label")


def multi_label(labels: Sequence[Collection[str]], known: Sequence[str] | None = None, *, task: Task = "multi_label") -> Targets:
    """Any number of labels a text; *known* as in `single_label`."""
    names = tuple(sorted({label for some in labels for label in some}) if known is None else known)
    places = {name: place for place, name in enumerate(names)}
    matrix = np.zeros((len(labels), len(names)), np.float32)
    for row, some in zip(matrix, labels, strict=True):
        row[[places[label] for label in some if label in places]] = 1.0
    return Targets(task, names, matrix)


def regression(values: Sequence[float]) -> Targets:
    """One number a text.

    Raises:
        DataError: one is not finite.
    """
    matrix = np.asarray(values, np.float32).reshape(-1, 1)
    if not np.isfinite(matrix).all():
        raise DataError("a value is not a finite number")
    return Targets("regression", (VALUE,), matrix)


def label_weights(targets: Targets) -> FloatArray:
    """float32 [labels]: texts / (labels * texts of the label), with which all labels weigh the same in a loss."""
    counts = targets.matrix.sum(axis=0)
    return np.asarray(len(targets) / (len(targets.labels) * np.maximum(1.0, counts)), np.float32)


def part(targets: Targets, share: float, seed: int) -> tuple[RowNumbers, RowNumbers]:
    """(rows to learn from, rows held out), both ascending: about *share* of each stratum is held out, never all of one."""
    if targets.texts is not None:
        return _windows_of(targets, part(_of_texts(targets), share, seed))
    order, _ = _dealt(targets, seed)
    steps = np.floor(np.arange(len(order) + 1) * share + 0.5)
    held = order[np.diff(steps) > 0]
    return np.setdiff1d(np.arange(len(targets)), held), np.sort(held)


def folds(targets: Targets, count: int, seed: int) -> list[tuple[RowNumbers, RowNumbers]]:
    """*count* times (rows to learn from, rows held out); each row is held out once, and a stratum's only one never."""
    if targets.texts is not None:
        return [_windows_of(targets, parted) for parted in folds(_of_texts(targets), count, seed)]
    order, _ = _dealt(targets, seed)
    everything = np.arange(len(targets))
    helds = [np.sort(order[start::count]) for start in range(count)]
    return [(np.setdiff1d(everything, held), held) for held in helds]


def _of_texts(targets: Targets) -> Targets:
    """One row a text, in the order of their numbers: windows of one text overlap, and are never parted."""
    return Targets(targets.task, targets.labels, targets.matrix[[rows[0] for rows in targets.windows]])


def _windows_of(targets: Targets, parted: tuple[RowNumbers, RowNumbers]) -> tuple[RowNumbers, RowNumbers]:
    """Texts as their windows."""
    windows = targets.windows
    learnt, held = (np.array(sorted(row for text in texts for row in windows[text]), np.int64) for texts in parted)
    return learnt, held


def _dealt(targets: Targets, seed: int) -> tuple[RowNumbers, RowNumbers]:
    """The rows of strata with more than one, stratum after stratum, each in an order that *seed* draws; and their strata."""
    strata = targets.strata
    shuffled = np.random.default_rng(seed).permutation(len(strata))
    order = shuffled[strata[shuffled].argsort(kind="stable")]
    common = np.bincount(strata, minlength=1)[strata[order]] > 1
    return order[common], strata[order][common]
