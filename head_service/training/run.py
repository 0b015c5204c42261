"""The use case: a dataset in, a live head version out. Files and network are what its parameters are."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clients import Trunk
from clients.wire.catalogue import Manifest, Metrics, Task, TrunkRef, View
from head_service.catalogue import promote, write_models_config
from head_service.errors import DataError
from head_service.repository import Repository
from head_service.training.dataset import Dataset, split
from head_service.training.embeddings import Embedder, EmbeddingCache, embed_features
from head_service.training.features import Features, take, width_of
from head_service.training.fit import FitOptions, Reading, fit, reading_for
from head_service.training.heads import Fitted, Head, quality
from head_service.training.linear import macro_f1
from head_service.training.targets import Targets, multi_label, regression, single_label

FloatArray = NDArray[np.float32]
Say = Callable[[str], None]
EmbeddingProgress = Callable[[int, int], None]
WaitUntilAvailable = Callable[[str, int], None]
"""(head, version): returns when the head server serves it; raises when it refuses to."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """By what logits are divided, and, of several labels a text, the least score each is answered at; none: one half."""

    temperature: float = 1.0
    thresholds: tuple[float, ...] = ()


Calibrate = Callable[[Fitted], Calibration]
"""What it goes by are the logits of texts that the head had not seen; there may be none."""


def as_it_is(fitted: Fitted) -> Calibration:
    """Leave scores alone."""
    del fitted
    return Calibration()


@dataclass(frozen=True, slots=True)
class TrainingRequest:
    """What to train. *held_out* absent: a fifth of *data*.

    *view* is what pooled heads read; *mix_layers* what is mixed, all that the trunk offers when empty. *brought* is a head that
    is fitted already: then all of the data is held out, and *options* mean nothing.
    """

    name: str
    data: Dataset
    held_out: Dataset | None = None
    view: View = field(default_factory=View)
    mix_layers: tuple[int, ...] = ()
    task: Task = "single_label"
    options: FitOptions = field(default_factory=FitOptions)
    brought: Head | None = None


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What came of it."""

    version: int
    metrics: Metrics
    path: Path


def train(
    request: TrainingRequest,
    *,
    embedder: Embedder,
    cache: EmbeddingCache,
    repository: Repository,
    wait_until_available: WaitUntilAvailable,
    say: Say,
    embedding_progress: EmbeddingProgress,
    calibrate: Calibrate = as_it_is,
) -> TrainingResult:
    """Embed, fit, measure, publish, wait for the head server, promote: in this order, so nothing half-done is ever live.

    Raises:
        HeadServiceError: what is wrong, and nothing has changed for callers of the head.
        TrunklineError: the embedding service or the head server cannot be reached.
    """
    trunk = embedder.trunk()
    made = _brought(request) if request.brought else _fitted(request, trunk, embedder, cache, say, embedding_progress)
    held = made.held
    features = made.features
    if features is None:
        features = embed_features(held.texts, [request.view], embedder, cache, embedding_progress)
    head = made.fitted.head
    if width_of(features) != head.spec.width:
        raise DataError(f"the head takes vectors of {head.spec.width} numbers, trunk {trunk.name!r} gives {width_of(features)}")
    calibration = calibrate(made.fitted)
    metrics = measured(head, features, held, request.task, made.num_train)

    def export(directory: Path, version: int) -> None:
        from head_service.export import export_head  # noqa: PLC0415 (TensorFlow: seconds, and only when there is a head)

        manifest = manifest_of(request.name, version, head, made.reading, trunk, metrics, calibration)
        export_head(head, manifest, features, held.texts, directory)

    version = repository.publish(request.name, export, fingerprint=trunk.fingerprint)
    write_models_config(repository)
    wait_until_available(request.name, version)
    promote(repository, request.name, version)
    return TrainingResult(version, metrics, repository.path(request.name, version))


@dataclass(frozen=True, slots=True)
class _Made:
    """A head, what it reads, and what it is measured on; *features* None: they are not embedded yet."""

    fitted: Fitted
    reading: Reading
    held: Dataset
    features: Features | None
    num_train: int


def _brought(request: TrainingRequest) -> _Made:
    assert request.brought is not None
    if request.brought.task != request.task:
        raise DataError(f"the weights are of a {request.brought.task} head, and {request.task} was asked for")
    labels = request.brought.labels
    nothing = Fitted(request.brought, np.zeros((0, len(labels)), np.float32), targets_of(Dataset(()), request.task, labels))
    return _Made(nothing, Reading(request.view), request.held_out or request.data, None, 0)


def _fitted(
    request: TrainingRequest, trunk: Trunk, embedder: Embedder, cache: EmbeddingCache, say: Say, progress: EmbeddingProgress
) -> _Made:
    data, held = (request.data, request.held_out) if request.held_out else split(request.data)
    reading = reading_for(request.options.head_type, request.view, request.mix_layers, trunk.layers)
    everything = embed_features(data.texts + held.texts, reading.views, embedder, cache, progress)
    known, unseen = (take(everything, np.arange(*ends)) for ends in ((0, len(data.texts)), (len(data.texts), len(everything))))
    say(f"fitting {request.name} ({request.options.head_type}) on {len(known)} texts")
    num_layers = max(1, len(reading.mix_layers))
    fitted = fit(known, targets_of(data, request.task), request.options, num_layers, say)
    say(f"fitted a {fitted.head.head_type} head: {fitted.told}" if fitted.told else f"fitted a {fitted.head.head_type} head")
    if fitted.head.spec.width < width_of(unseen):
        # What was chosen reads the first layer alone, which is the view's own.
        reading = Reading(reading.view)
        assert isinstance(unseen, np.ndarray)
        unseen = np.ascontiguousarray(unseen[:, : fitted.head.spec.width])
    return _Made(fitted, reading, held, unseen, len(known))


def targets_of(data: Dataset, task: Task, known: tuple[str, ...] | None = None) -> Targets:
    """What *data* says, as a head is to say it; several labels are one line with commas between, a number is a number."""
    if task == "multi_label":
        several = [[part.strip() for part in label.split(",") if part.strip()] for label in data.labels]
        return multi_label(several, known)
    if task == "regression":
        try:
            return regression([float(label) for label in data.labels])
        except ValueError:
            raise DataError("a label is not a number, which a regression is trained on") from None
    return single_label(data.labels, known)


def measured(head: Head, features: Features, held: Dataset, task: Task, num_train: int) -> Metrics:
    """*head* on data it has not seen; see `heads.quality` for what stands for accuracy of other tasks."""
    truth = targets_of(held, task, head.labels)
    logits = head.logits(features)
    found = [head.labels[index] for index in logits.argmax(axis=1)]
    f1 = macro_f1(found, held.labels) if task == "single_label" else 0.0
    return Metrics(quality(truth, logits), f1, num_train, len(held.texts), held.digest())


def manifest_of(
    name: str,
    version: int,
    head: Head,
    reading: Reading,
    trunk: Trunk,
    metrics: Metrics | None,
    calibration: Calibration,
) -> Manifest:
    """All but what only the exporter knows."""
    return Manifest(
        name=name,
        version=version,
        task=head.task,
        labels=head.labels,
        temperature=calibration.temperature,
        thresholds=calibration.thresholds,
        view=reading.view,
        mix_layers=reading.mix_layers,
        width=head.spec.width,
        trunk=TrunkRef(trunk.name, trunk.fingerprint, trunk.engine),
        head_type=head.head_type,
        input="tokens" if head.spec.reads_tokens else "embedding",
        mask_input="mask" if head.spec.reads_tokens else "",
        metrics=metrics,
    )
