"""What a report says, as data: everything the page shows, and nothing about how."""

from collections import Counter
from collections.abc import Sequence
from typing import Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from clients.wire.catalogue import LongText
from clients.wire.text import normalize_text
from head_service.training.dataset import Dataset, Truth
from head_service.training.metrics import Evaluation
from head_service.training.thresholds import above_thresholds

FloatArray = NDArray[np.float32]

MAX_ERRORS: Final = 25
MAX_TEXT_LENGTH: Final = 300
MAX_POINTS: Final = 1_000
_QUANTILES: Final = (("lowest", 0.0), ("first quarter", 0.25), ("median", 0.5), ("third quarter", 0.75), ("highest", 1.0))
_LEAST_SCORE: Final = 1e-7


class Candidate(msgspec.Struct, frozen=True):
    """A head type that was tried: its mean headline metric over the folds of cross-validation, and how long that took."""

    head_type: str
    value: float
    seconds: float


class TrainingFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What was trained, and on what. *data* and *test_data* are the digests of the datasets; *fingerprint* is the trunk's.

    *candidates* are those that were compared when the head type was chosen by itself.
    """

    head: str
    version: int
    head_type: str
    trunk: str
    fingerprint: str
    view: str
    data: str
    test_data: str
    num_train: int
    num_test: int
    seconds: float
    created: str = ""
    temperature: float | None = None
    preprocess: tuple[str, ...] = ()
    long_text: LongText = "cut"
    candidates: tuple[Candidate, ...] = ()


class LiveVersion(msgspec.Struct, frozen=True):
    """The version that was live; *same_data*: its evaluation is of the same texts."""

    version: int
    evaluation: Evaluation
    same_data: bool


class HardError(msgspec.Struct, frozen=True):
    """A text answered wrongly. *loss* is the cross-entropy in nats, of a regression the absolute error; *text* None: left out."""

    line: int
    truth: str
    found: str
    loss: float
    text: str | None


class Quantile(msgspec.Struct, frozen=True):
    """One quantile of a regression's true values and of its answers."""

    name: str
    truth: float
    found: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All of a report. *errors* are the worst of *num_errors*, the worst first; of a regression every text has an error.

    *train_counts* are the training texts of each label; *points* are (true value, answer), at most `MAX_POINTS` of them.
    """

    schema: Literal["trunkline.report/1"] = "trunkline.report/1"
    facts: TrainingFacts
    evaluation: Evaluation
    live: LiveVersion | None = None
    train_counts: dict[str, int] = {}
    with_texts: bool = True
    errors: tuple[HardError, ...] = ()
    num_errors: int = 0
    points: tuple[tuple[float, float], ...] = ()
    quantiles: tuple[Quantile, ...] = ()


def build_report(
    facts: TrainingFacts,
    evaluation: Evaluation,
    held_out: Dataset,
    scores: FloatArray,
    *,
    train: Dataset | None = None,
    thresholds: tuple[float, ...] = (),
    live: LiveVersion | None = None,
    with_texts: bool = True,
    max_errors: int = MAX_ERRORS,
) -> Report:
    """The report of a head that answered *scores*, see `evaluate`, for the texts of *held_out*.

    Not *with_texts*, no text of anybody is in it: only lines, labels and numbers.
    """
    known = scores.reshape(len(scores), -1).astype(np.float64)
    targets = held_out.truth(evaluation.labels)
    found = _answers(evaluation, scores, thresholds)
    losses, wrong = _losses(evaluation, known, targets, found)
    worst = [place for place in map(int, np.argsort(-losses, kind="stable")) if wrong[place]][:max_errors]
    values = known[:, 0] if evaluation.task == "regression" else None
    return Report(
        facts=facts,
        evaluation=evaluation,
        live=live,
        train_counts=_train_counts(train) if train else {},
        with_texts=with_texts,
        errors=tuple(_error(held_out, place, found[place], float(losses[place]), with_texts) for place in worst),
        num_errors=int(np.count_nonzero(wrong)),
        points=() if values is None else _points(targets, values),
        quantiles=() if values is None else _quantiles(targets, values),
    )


def _train_counts(train: Dataset) -> dict[str, int]:
    if train.task == "regression":
        return {}
    several = train.task == "multi_label"
    return dict(Counter(label for each in train.examples for label in (each.labels if several else (each.label,))))


def _answers(evaluation: Evaluation, scores: FloatArray, thresholds: tuple[float, ...]) -> list[str]:
    """Each text's answer in words, as `Example.label` is."""
    if evaluation.task == "regression":
        return [f"{value:.4g}" for value in scores.reshape(-1)]
    if evaluation.task == "single_label":
        return [evaluation.labels[place] for place in scores.argmax(axis=1)]
    return [_named(row, evaluation.labels) for row in above_thresholds(scores, thresholds)]


def _named(row: NDArray[np.int8], labels: Sequence[str]) -> str:
    return ", ".join(sorted(labels[int(place)] for place in np.flatnonzero(row)))


def _losses(
    evaluation: Evaluation, scores: NDArray[np.float64], targets: Truth, found: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Each text's loss, and whether it counts as an error."""
    if evaluation.task == "regression":
        errors: NDArray[np.float64] = np.abs(scores[:, 0] - targets)
        return errors, errors > 0.0
    kept = np.clip(scores, _LEAST_SCORE, 1.0 - _LEAST_SCORE)
    if evaluation.task == "single_label":
        truth = [evaluation.labels[int(target)] for target in targets]
        losses = -np.log(kept[np.arange(len(kept)), targets.astype(np.int64)])
    else:
        truth = [_named(row, evaluation.labels) for row in targets.astype(np.int8)]
        losses = -np.log(np.where(targets > 0, kept, 1.0 - kept)).sum(axis=1)
    return losses, np.array([a != b for a, b in zip(truth, found, strict=True)], np.bool_)


def _error(held_out: Dataset, place: int, found: str, loss: float, with_texts: bool) -> HardError:
    example = held_out.examples[place]
    return HardError(example.line, example.label, found, loss, shortened(example.text) if with_texts else None)


def shortened(text: str) -> str:
    """*text* on one line without characters nobody sees, cut at `MAX_TEXT_LENGTH`."""
    # A little more than is shown is normalised, not megabytes of it.
    shown = normalize_text(text[: 4 * MAX_TEXT_LENGTH])
    return shown if len(shown) <= MAX_TEXT_LENGTH and len(text) <= 4 * MAX_TEXT_LENGTH else f"{shown[:MAX_TEXT_LENGTH]}…"


def _points(targets: Truth, values: NDArray[np.float64]) -> tuple[tuple[float, float], ...]:
    """Evenly taken out of the file's order."""
    places = np.unique(np.linspace(0, len(values) - 1, min(len(values), MAX_POINTS)).astype(np.int64))
    return tuple((float(targets[place]), float(values[place])) for place in places)


def _quantiles(targets: Truth, values: NDArray[np.float64]) -> tuple[Quantile, ...]:
    return tuple(
        Quantile(name, float(np.quantile(targets.astype(np.float64), share)), float(np.quantile(values, share)))
        for name, share in _QUANTILES
    )
