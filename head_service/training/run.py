"""The use case: a dataset in, a version that passed the gate out. Files and network are what its parameters are."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from clients import Trunk
from clients.wire.catalogue import LongText, Manifest, Metrics, Task, TrunkRef, View
from clients.wire.long_text import joined
from clients.wire.text import normalize_text
from head_service.errors import DataError
from head_service.exporting import Export, export_here
from head_service.gate import Comparison, Remeasure, Scorer
from head_service.pieces import pieces_of, prepared
from head_service.repository import Repository
from head_service.training.calibration import fit_sigmoid_temperature, fit_temperature
from head_service.training.dataset import Dataset, check_levels, complain_of_lines, has_levels, split
from head_service.training.embeddings import Embedder, EmbeddingCache, embed_features
from head_service.training.features import Features, take, width_of
from head_service.training.fit import FitOptions, Reading, fit, reading_for
from head_service.training.heads import Fitted, Head, scores_of
from head_service.training.measured import LiveOnTestPart, metrics_of
from head_service.training.metrics import Evaluation, evaluate, validation_summary
from head_service.training.report import LiveVersion, TrainingFacts, build_report, write_report
from head_service.training.targets import Targets, multi_label, regression, single_label
from head_service.training.thresholds import best_thresholds

FloatArray = NDArray[np.float32]
Say = Callable[[str], None]
EmbeddingProgress = Callable[[int, int], None]

GoLive = Callable[[str, int, Remeasure], Comparison | None]
"""(head, version, how the live version is measured on the candidate's test part): what the gate found; None: it was not asked."""

MIN_TO_CALIBRATE: Final = 20
"""Texts. Fewer say too little about how sure a head may be."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """By what logits are divided, and, of several labels a text, the least score each is answered at; none: one half."""

    temperature: float = 1.0
    thresholds: tuple[float, ...] = ()


Calibrate = Callable[[Fitted], Calibration]
"""What it goes by are the logits of texts that the head had not seen; there may be none."""


def calibrated(fitted: Fitted, long_text: LongText = "cut") -> Calibration:
    """Scores as sure as the head was right on texts it had not seen, and the thresholds that were best there.

    Where these were read in windows, each window is to be as sure as it is right, and thresholds are of the texts' own scores.
    """
    task, seen = fitted.head.task, fitted.validation
    if task == "regression" or len(seen) < MIN_TO_CALIBRATE:
        return Calibration()
    if task == "single_label":
        return Calibration(fit_temperature(fitted.validation_logits, seen.indices))
    truth = seen.matrix.astype(np.int64)
    temperature = fit_sigmoid_temperature(fitted.validation_logits, truth)
    rows = seen.windows
    scores = joined(scores_of(fitted.validation_logits, task, temperature), rows, long_text, task)
    return Calibration(temperature, best_thresholds(scores, truth[[some[0] for some in rows]]))


@dataclass(frozen=True, slots=True)
class TrainingRequest:
    """What to train. *held_out* absent: a fifth of *data*.

    *view* is what pooled heads read; *mix_layers* what is mixed, all that the trunk offers when empty. *brought* is a head that
    is fitted already: then all of the data is held out, and *options* mean nothing. Not *with_texts*, the report shows none.
    *preprocess*, names of steps with their versions, and *long_text* become the head's own, see `Manifest`;
    *level_separator* becomes its *label_separator*.
    """

    name: str
    data: Dataset
    held_out: Dataset | None = None
    view: View = field(default_factory=View)
    mix_layers: tuple[int, ...] = ()
    options: FitOptions = field(default_factory=FitOptions)
    brought: Head | None = None
    with_texts: bool = True
    preprocess: tuple[str, ...] = ()
    long_text: LongText = "cut"
    level_separator: str = ""

    @property
    def task(self) -> Task:
        """What the head is to answer."""
        return self.data.task


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What came of it. *comparison* is what the gate found; None: it was not asked. *report*: the page for people."""

    version: int
    metrics: Metrics
    comparison: Comparison | None
    report: Path | None

    @property
    def is_live(self) -> bool:
        """Whether the gate let the version through; it answers by now, where *go_live* promotes what passes."""
        return self.comparison is not None and self.comparison.verdict == "passed"


def train(
    request: TrainingRequest,
    *,
    embedder: Embedder,
    cache: EmbeddingCache,
    repository: Repository,
    go_live: GoLive,
    scorer: Scorer,
    say: Say,
    embedding_progress: EmbeddingProgress,
    reports: Path | None = None,
    calibrate: Calibrate | None = None,
    export: Export = export_here,
) -> TrainingResult:
    """Embed, fit, calibrate, measure, publish, pass the gate: in this order, so nothing half-done is ever live.

    *scorer* gives the scores of a version that is served. *reports*: where the report goes, in a folder a head and version.
    It is written once the version answers. *export* is what writes the head's files.

    Raises:
        HeadServiceError: what is wrong, and nothing has changed for callers of the head.
        TrunklineError: the embedding service or the head server cannot be reached.
    """
    began = time.monotonic()
    for data in (request.data, request.held_out):
        _check_something_is_left(data, request.preprocess)
        if data:
            check_levels(data, request.level_separator)
    trunk = embedder.trunk()
    source = _Source(request, embedder, cache, embedding_progress)
    made = _brought(request, source) if request.brought else _fitted(request, trunk, source, say)
    held, features, rows = made.held, made.features, made.rows
    head = made.fitted.head
    if width_of(features) != head.spec.width:
        raise DataError(f"the head takes vectors of {head.spec.width} numbers, trunk {trunk.name!r} gives {width_of(features)}")
    calibration = (calibrate or partial(calibrated, long_text=request.long_text))(made.fitted)
    scores = joined(scores_of(head.logits(features), head.task, calibration.temperature), rows, request.long_text, head.task)
    evaluation = evaluate(head.task, head.labels, scores, held.truth(head.labels), thresholds=calibration.thresholds)
    metrics = metrics_of(evaluation, held, made.num_train)

    def write(directory: Path, version: int) -> None:
        manifest = manifest_of(request, version, made, trunk, metrics, calibration, scores)
        export(head, manifest, features, held.texts, directory, rows)

    version = repository.publish(request.name, write, fingerprint=trunk.fingerprint)
    live = LiveOnTestPart(held, scorer)
    comparison = go_live(request.name, version, live.remeasure)
    measured = _Measured(trunk, calibration, scores, evaluation, time.monotonic() - began)
    report = reports and _write_report(reports, version, request, made, measured, live.seen)
    return TrainingResult(version, metrics, comparison, report)


@dataclass(frozen=True, slots=True)
class _Measured:
    """What a head scored on the held-out texts, and how long it took to come so far."""

    trunk: Trunk
    calibration: Calibration
    scores: FloatArray
    evaluation: Evaluation
    seconds: float


def _write_report(
    reports: Path, version: int, request: TrainingRequest, made: "_Made", measured: _Measured, live: LiveVersion | None
) -> Path:
    """The page's place: below *reports*, in a folder a head and version."""
    facts = TrainingFacts(
        head=request.name,
        version=version,
        head_type=made.fitted.head.head_type,
        trunk=measured.trunk.name,
        fingerprint=measured.trunk.fingerprint,
        view=_view_in_words(made.reading),
        data=request.data.digest(),
        test_data=made.held.digest(),
        num_train=made.num_train,
        num_test=len(made.held.examples),
        seconds=measured.seconds,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        temperature=measured.calibration.temperature,
        preprocess=request.preprocess,
        long_text=request.long_text,
    )
    told = build_report(
        facts,
        measured.evaluation,
        made.held,
        measured.scores,
        train=None if request.brought else request.data,
        thresholds=measured.calibration.thresholds,
        live=live,
        with_texts=request.with_texts,
    )
    return write_report(told, reports / request.name / str(version))


@dataclass(frozen=True, slots=True)
class _Made:
    """A head, what it reads, and what it is measured on: *rows* of *features* are of each of the texts *held* out."""

    fitted: Fitted
    reading: Reading
    held: Dataset
    features: Features
    rows: Sequence[Sequence[int]]
    num_train: int


@dataclass(frozen=True, slots=True)
class _Source:
    """Where features come from."""

    request: TrainingRequest
    embedder: Embedder
    cache: EmbeddingCache
    progress: EmbeddingProgress

    def features(self, data: Dataset, views: Sequence[View]) -> tuple[Features, list[range]]:
        """What the head reads of *data*, and which rows of that are of each text."""
        request = self.request
        pieces = pieces_of(data.texts, request.preprocess, request.long_text, self.embedder)
        return embed_features(pieces.inputs, views, self.embedder, self.cache, self.progress), pieces.rows


def _check_something_is_left(data: Dataset | None, preprocess: tuple[str, ...]) -> None:
    if data and preprocess:
        texts = zip(data.examples, prepared(data.texts, preprocess), strict=True)
        complain_of_lines(
            f"{', '.join(preprocess)} leaves nothing of the text", [one.line for one, text in texts if not normalize_text(text)]
        )


def _brought(request: TrainingRequest, source: _Source) -> _Made:
    assert request.brought is not None
    if request.brought.task != request.task:
        raise DataError(f"the weights are of a {request.brought.task} head, and {request.task} was asked for")
    labels = request.brought.labels
    if not all(has_levels(label, request.level_separator) for label in labels):
        raise DataError("a label of the weights has an empty level")
    nothing = Fitted(request.brought, np.zeros((0, len(labels)), np.float32), targets_of(Dataset((), task=request.task), labels))
    held = request.held_out or request.data
    return _Made(nothing, Reading(request.view), held, *source.features(held, [request.view]), 0)


def _fitted(request: TrainingRequest, trunk: Trunk, source: _Source, say: Say) -> _Made:
    data, held = (request.data, request.held_out) if request.held_out else split(request.data)
    reading = reading_for(request.options.head_type, request.view, request.mix_layers, trunk.layers)
    both = Dataset(data.examples + held.examples, task=data.task)
    everything, rows = source.features(both, reading.views)
    windows, rows_held = rows[: len(data.examples)], rows[len(data.examples) :]
    end = windows[-1].stop
    known, unseen = (take(everything, np.arange(*ends)) for ends in ((0, end), (end, len(everything))))
    in_windows = f", {len(known)} windows of them" if len(known) > len(windows) else ""
    say(f"fitting {request.name} ({request.options.head_type}) on {len(windows)} texts{in_windows}")
    num_layers = max(1, len(reading.mix_layers))
    fitted = fit(known, targets_of(data).in_windows(windows), request.options, num_layers, say)
    say(f"fitted {request.name}: {fitted.head.head_type}{f', {fitted.told}' if fitted.told else ''}")
    if fitted.head.spec.width < width_of(unseen):
        # What was chosen reads the first layer alone, which is the view's own.
        reading = Reading(reading.view)
        assert isinstance(unseen, np.ndarray)
        unseen = np.ascontiguousarray(unseen[:, : fitted.head.spec.width])
    return _Made(fitted, reading, held, unseen, [range(some.start - end, some.stop - end) for some in rows_held], len(windows))


def targets_of(data: Dataset, known: Sequence[str] | None = None) -> Targets:
    """What *data* says, as a head is to say it; *known* are the labels, those that occur when absent."""
    if data.task == "multi_label":
        return multi_label([example.labels for example in data.examples], known)
    if data.task == "regression":
        return regression([example.value for example in data.examples])
    return single_label(data.labels, known)


def manifest_of(
    request: TrainingRequest,
    version: int,
    made: _Made,
    trunk: Trunk,
    metrics: Metrics,
    calibration: Calibration,
    scores: FloatArray,
) -> Manifest:
    """All but what only the exporter knows; *scores* are of the held-out texts."""
    head = made.fitted.head
    return Manifest(
        name=request.name,
        version=version,
        task=head.task,
        labels=head.labels,
        temperature=calibration.temperature,
        thresholds=calibration.thresholds,
        view=made.reading.view,
        mix_layers=made.reading.mix_layers,
        width=head.spec.width,
        trunk=TrunkRef(trunk.name, trunk.fingerprint, trunk.engine),
        head_type=head.head_type,
        input="tokens" if head.spec.reads_tokens else "embedding",
        mask_input="mask" if head.spec.reads_tokens else "",
        preprocess=request.preprocess,
        long_text=request.long_text,
        label_separator=request.level_separator,
        metrics=metrics,
        validation=validation_summary(head.task, head.labels, scores, thresholds=calibration.thresholds),
    )


def _view_in_words(reading: Reading) -> str:
    layers = ", ".join(map(str, reading.mix_layers or (reading.view.layer,)))
    return f"{reading.view.pooling} of layer {layers}" if not reading.mix_layers else f"{reading.view.pooling} of layers {layers}"
