"""Scores to labels, by nothing but the manifest."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from clients.wire.catalogue import Manifest
from gateway.classification import Classification, HeadAnswer
from gateway.ports import FloatArray

DEFAULT_THRESHOLD: Final = 0.5
"""Of a label of multi_label, where neither manifest nor request names one."""


def read_scores(manifest: Manifest, scores: FloatArray, request: Classification) -> list[HeadAnswer]:
    """What *scores*, float32 [texts, labels], say of each text."""
    if manifest.task == "regression":
        return [HeadAnswer(None, value, manifest.version, value=value) for value in scores[:, 0].tolist()]
    if manifest.task == "multi_label":
        confidences = np.maximum(scores, 1.0 - scores).mean(axis=1).tolist()
        return [_several(manifest, row, confidence, request) for row, confidence in zip(scores, confidences, strict=True)]
    best = scores.argmax(axis=1).tolist()
    return [_single(manifest, row, index, request) for row, index in zip(scores, best, strict=True)]


def _single(manifest: Manifest, row: FloatArray, best: int, request: Classification) -> HeadAnswer:
    score = float(row[best])
    label = manifest.labels[best] if request.threshold is None or score >= request.threshold else None
    return HeadAnswer(
        label,
        score,
        manifest.version,
        scores=_ranked(manifest, row, request),
        path=_path(manifest, label),
        ancestors=_ancestors(manifest, row, request),
    )


def _several(manifest: Manifest, row: FloatArray, confidence: float, request: Classification) -> HeadAnswer:
    passing = [index for index, least in enumerate(_thresholds(manifest, request)) if row[index] >= least]
    best = max(passing, key=row.__getitem__) if passing else None
    label = None if best is None else manifest.labels[best]
    return HeadAnswer(
        label,
        float(row.max() if best is None else row[best]),
        manifest.version,
        [manifest.labels[index] for index in passing],
        _ranked(manifest, row, request),
        confidence,
        path=_path(manifest, label),
        ancestors=_ancestors(manifest, row, request),
    )


def _thresholds(manifest: Manifest, request: Classification) -> Sequence[float]:
    if request.threshold is not None:
        return (request.threshold,) * len(manifest.labels)
    return manifest.thresholds or (DEFAULT_THRESHOLD,) * len(manifest.labels)


def _ranked(manifest: Manifest, row: FloatArray, request: Classification) -> dict[str, float] | None:
    if not (request.with_scores or request.top_k):
        return None
    order = np.argsort(-row, kind="stable")[: request.top_k].tolist()
    return {manifest.labels[index]: float(row[index]) for index in order}


def _path(manifest: Manifest, label: str | None) -> list[str] | None:
    return label.split(manifest.label_separator) if label and manifest.label_separator else None


def _ancestors(manifest: Manifest, row: FloatArray, request: Classification) -> dict[str, float] | None:
    """What is above the labels: as likely as all below it together; of multi_label as the likeliest of them."""
    if not (manifest.label_separator and request.with_scores):
        return None
    scores: dict[str, float] = {}
    for label, score in zip(manifest.labels, row.tolist(), strict=True):
        levels = label.split(manifest.label_separator)
        for depth in range(1, len(levels)):
            above = manifest.label_separator.join(levels[:depth])
            known = scores.get(above, 0.0)
            scores[above] = max(known, score) if manifest.task == "multi_label" else known + score
    return scores
