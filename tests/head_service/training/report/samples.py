"""Reports of heads that never were: scores drawn around the truth, so that some are wrong."""

from typing import Any

import numpy as np

from clients.wire.catalogue import Task
from head_service.training.dataset import Dataset, Example
from head_service.training.heads import scores_of
from head_service.training.metrics import evaluate
from head_service.training.report import Candidate, LiveVersion, Report, TrainingFacts, build_report
from head_service.training.thresholds import best_thresholds

HOSTILE = '<script src="https://example.org/x.js">alert(1)</script><img src=x onerror="alert(2)"> & \u202eevil\u202c \x00 end'


def facts_of(**changes: Any) -> TrainingFacts:
    known: dict[str, Any] = {
        "head": "topic",
        "version": 4,
        "head_type": "mlp",
        "trunk": "all-MiniLM-L6-v2",
        "fingerprint": "sha256:" + "0123456789abcdef" * 4,
        "view": "mean of the last layer, unit length",
        "data": "f" * 64,
        "test_data": "e" * 64,
        "num_train": 4_000,
        "num_test": 1_000,
        "seconds": 12.34,
        "created": "2025-01-31",
        "temperature": 1.28,
        "candidates": (Candidate("linear", 0.912, 0.8), Candidate("mlp", 0.924, 6.5)),
    }
    return TrainingFacts(**known | changes)


def held_out(task: Task, labels: list[str], count: int, seed: int = 0) -> Dataset:
    random = np.random.default_rng(seed)
    examples = []
    for place in range(count):
        text = HOSTILE if place % 3 == 0 else f"text {place}: " + "what somebody wrote about it, at some length. " * (place % 12)
        if task == "regression":
            value = round(random.normal(3.0, 1.5), 2)
            examples.append(Example(text, repr(value), place + 2, value=value))
        elif task == "multi_label":
            own = tuple(sorted(label for label in labels if random.random() < 0.25))
            examples.append(Example(text, ", ".join(own), place + 2, labels=own))
        else:
            # Every label is there, and the first ones are there more often.
            drawn = min(int(random.exponential(len(labels) / 3)), len(labels) - 1)
            examples.append(Example(text, labels[place if place < len(labels) else drawn], place + 2))
    return Dataset(tuple(examples), task=task)


def report_of(
    task: Task = "single_label", labels: list[str] | None = None, *, count: int = 400, with_texts: bool = True, skill: float = 3.0
) -> Report:
    names = sorted(labels or ["business", HOSTILE[:40], "science & space", "$x^2$ sport"])
    data = held_out(task, names, count)
    if task == "regression":
        names = ["value"]
    targets = data.truth(names)
    random = np.random.default_rng(1)
    if task == "regression":
        scores = (targets + random.normal(0.0, 0.8, len(targets))).astype(np.float32)
        thresholds: tuple[float, ...] = ()
    else:
        onto = targets if targets.ndim == 2 else np.eye(len(names))[targets.astype(int)]
        logits = (skill * onto + random.normal(0.0, 1.3, (count, len(names))) - (task == "multi_label") * 1.5).astype(np.float32)
        scores = scores_of(logits, task)
        thresholds = best_thresholds(scores, targets) if task == "multi_label" else ()
    evaluation = evaluate(task, names, scores, targets, thresholds=thresholds)
    before = evaluate(task, names, np.roll(scores, 1, axis=0) * 0.3 + scores * 0.7, targets, thresholds=thresholds)
    return build_report(
        facts_of(),
        evaluation,
        data,
        scores,
        train=data,
        thresholds=thresholds,
        live=LiveVersion(3, before, same_data=True),
        with_texts=with_texts,
    )
