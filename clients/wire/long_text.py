"""From scores of windows to scores of texts: the one way, for whoever serves, measures or trains a head."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clients.wire.catalogue import LongText, Manifest, Task

FloatArray = NDArray[np.float32]


def scores_of_texts(manifest: Manifest, scores: FloatArray, pieces: Sequence[Sequence[int]]) -> FloatArray:
    """`joined` as the head of *manifest* has it."""
    return joined(scores, pieces, manifest.long_text, manifest.task)


def joined(scores: FloatArray, pieces: Sequence[Sequence[int]], long_text: LongText, task: Task) -> FloatArray:
    """Scores, float32 [texts, labels], of texts whose windows have *scores*, float32 [windows, labels].

    *pieces* are the rows that belong to each text. Where a head that cuts is asked to read all of a text, its windows are
    averaged. Of single_label the highest scores are scaled to sum to one, as the scores of any text do: which label is best
    does not change, and a text of which two windows say two things surely is no sure answer.
    """
    if all(len(rows) == 1 for rows in pieces):
        return scores[[rows[0] for rows in pieces]]
    if long_text != "max":
        return np.stack([scores[list(rows)].mean(axis=0) for rows in pieces])
    highest = np.stack([scores[list(rows)].max(axis=0) for rows in pieces])
    return highest / highest.sum(axis=1, keepdims=True) if task == "single_label" else highest
