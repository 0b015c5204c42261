"""The use case: a dataset in, a live head version out. Files and network are what its parameters are."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from clients.wire.catalogue import Manifest, Metrics, TrunkRef, View
from head_service.catalogue import promote, write_models_config
from head_service.repository import Repository
from head_service.training.dataset import Dataset, split
from head_service.training.embeddings import Embedder, EmbeddingCache, embed_for_training
from head_service.training.linear import accuracy, fit_linear, macro_f1

Say = Callable[[str], None]
EmbeddingProgress = Callable[[int, int], None]
WaitUntilAvailable = Callable[[str, int], None]
"""(head, version): returns when the head server serves it; raises when it refuses to."""


@dataclass(frozen=True, slots=True)
class TrainingRequest:
    """What to train. *held_out* absent: a fifth of *data*."""

    name: str
    data: Dataset
    held_out: Dataset | None = None
    view: View = field(default_factory=View)


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
) -> TrainingResult:
    """Embed, fit, measure, publish, wait for the head server, promote: in this order, so nothing half-done is ever live.

    Raises:
        HeadServiceError: what is wrong, and nothing has changed for callers of the head.
        TrunklineError: the embedding service or the head server cannot be reached.
    """
    data, held = (request.data, request.held_out) if request.held_out else split(request.data)
    trunk = embedder.trunk()
    vectors = embed_for_training(data.texts + held.texts, request.view, embedder, cache, embedding_progress)
    known, unseen = vectors[: len(data.texts)], vectors[len(data.texts) :]
    say(f"fitting {request.name} on {len(known)} texts")
    head = fit_linear(known, data.labels)
    found = head.predict(unseen)
    metrics = Metrics(accuracy(found, held.labels), macro_f1(found, held.labels), len(known), len(unseen), held.digest())

    def export(directory: Path, version: int) -> None:
        from head_service.export import export_linear  # noqa: PLC0415 (TensorFlow: seconds, and only when there is a head)

        manifest = Manifest(
            name=request.name,
            version=version,
            labels=head.labels,
            view=request.view,
            width=vectors.shape[1],
            trunk=TrunkRef(trunk.name, trunk.fingerprint, trunk.engine),
            metrics=metrics,
        )
        export_linear(head, manifest, unseen, held.texts, directory)

    version = repository.publish(request.name, export, fingerprint=trunk.fingerprint)
    write_models_config(repository)
    wait_until_available(request.name, version)
    promote(repository, request.name, version)
    return TrainingResult(version, metrics, repository.path(request.name, version))
