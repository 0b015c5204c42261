"""Scores to labels, by nothing but the manifest."""

from collections.abc import Sequence

import numpy as np

from clients.wire.catalogue import Manifest
from gateway.classification import Classification, HeadAnswer
from gateway.ports import FloatArray


def of_texts(scores: FloatArray, pieces: Sequence[Sequence[int]]) -> FloatArray:
    """Scores of inputs as scores of texts: *pieces* are the rows that belong to each text, several where it was read in windows.

    Several are averaged.
    """
    if all(len(rows) == 1 for rows in pieces):
        return scores[[rows[0] for rows in pieces]]
    return np.stack([scores[list(rows)].mean(axis=0) for rows in pieces])


def read_scores(manifest: Manifest, scores: FloatArray, request: Classification) -> list[HeadAnswer]:
    """What *scores*, float32 [texts, labels], say of each text."""
    best = scores.argmax(axis=1).tolist()
    return [
        HeadAnswer(
            label=manifest.labels[index] if request.threshold is None or row[index] >= request.threshold else None,
            score=float(row[index]),
            version=manifest.version,
            labels=_passing(manifest, row, request.threshold) if manifest.task == "multi_label" else None,
            scores=_ranked(manifest, row, request.top_k) if request.with_scores or request.top_k else None,
        )
        for index, row in zip(best, scores, strict=True)
    ]


def _passing(manifest: Manifest, row: FloatArray, threshold: float | None) -> list[str]:
    own = manifest.thresholds or (0.5,) * len(manifest.labels)
    thresholds = own if threshold is None else (threshold,) * len(own)
    return [label for label, score, least in zip(manifest.labels, row, thresholds, strict=True) if score >= least]


def _ranked(manifest: Manifest, row: FloatArray, top_k: int | None) -> dict[str, float]:
    order = np.argsort(-row, kind="stable")[:top_k].tolist()
    return {manifest.labels[index]: float(row[index]) for index in order}
