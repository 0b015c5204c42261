"""The trainer by default: from an order's rows to a head version, by `head_service.training`. Runs in the training process."""

import time
from typing import Any, Final, NoReturn

import msgspec

from clients import EmbeddingClient, HeadClient, NotFound
from clients.wire.catalogue import Metrics
from head_service.catalogue import promote, read_catalogue, write_models_config
from head_service.control.words import Outcome, RunContext, RunResult, TrainingOrder
from head_service.errors import DataError, RepositoryError
from head_service.manifest import read_manifest
from head_service.training.dataset import read_dataset
from head_service.training.embeddings import EmbeddingCache
from head_service.training.run import TrainingRequest, train

AVAILABLE_WITHIN_SECONDS: Final = 60.0
EMBED_TIMEOUT_SECONDS: Final = 120.0
"""For one part of the texts; it waits where the service is full."""


class _KeptBackError(RepositoryError):
    """The version is there, and the order says that it shall not answer yet."""


def train_head(order: TrainingOrder, run: RunContext) -> Outcome:
    """See `words.Trainer`."""
    if run.published is not None:
        return _see_through(order, run, run.published)
    _check(order)
    data = read_dataset(run.data, run.text_column, run.label_column)
    run.say(f"{len(data.examples)} texts, {len(set(data.labels))} labels, {data.num_repeated} repeated rows left out")
    published: list[int] = []

    def available(head: str, version: int) -> None:
        published.append(version)
        if order.publish == "version":
            raise _KeptBackError("the order says so")
        wait_until_available(run.heads_address, head, version)

    try:
        with EmbeddingClient(run.embedding_address, timeout=EMBED_TIMEOUT_SECONDS) as embedder:
            train(
                TrainingRequest(order.head, data, view=order.view),
                embedder=embedder,
                cache=EmbeddingCache(run.cache_dir / "training-embeddings.sqlite"),
                repository=run.repository,
                wait_until_available=available,
                say=run.say,
                embedding_progress=lambda done, total: run.progress("embedding", done, total),
            )
    except _KeptBackError:
        return _succeeded(order, run, published[-1], is_live=False)
    return _succeeded(order, run, published[-1], is_live=True)


def wait_until_available(address: str, head: str, version: int) -> None:
    """Wait until the head server at *address* serves *version*; nothing when there is none.

    Raises:
        RepositoryError: it refuses to, or does not within `AVAILABLE_WITHIN_SECONDS`.
    """
    if not address:
        return
    give_up = time.monotonic() + AVAILABLE_WITHIN_SECONDS
    with HeadClient(address) as client:
        while time.monotonic() < give_up:
            state, message = _status(client, head, version)
            if state == "AVAILABLE":
                return
            if message:
                raise RepositoryError(f"the head server refuses {head} version {version}: {message}")
            # The server follows the file system by polling, so there is nothing to be woken by.
            time.sleep(0.1)
    raise RepositoryError(f"{head} version {version} is not served in time; the version before it keeps answering")


def _status(client: HeadClient, head: str, version: int) -> tuple[str, str]:
    try:
        [status] = client.status(head, version=version)
    except NotFound:
        return "UNKNOWN", ""
    return status.state, status.error_message


def _check(order: TrainingOrder) -> None:
    """Refuse what this trainer does not do, in place of doing something else."""
    if order.head_type != "linear":
        _refuse(f"head_type {order.head_type} is not known here; leave it out or say linear")
    if order.task != "single_label":
        _refuse(f"task {order.task} cannot be trained here; leave it out or say single_label")
    if order.seed:
        _refuse("seed has no meaning for a linear head; leave it out")


def _refuse(message: str) -> NoReturn:
    raise DataError(message)


def _see_through(order: TrainingOrder, run: RunContext, version: int) -> Outcome:
    """An attempt before this one published *version* and died; what comes after publishing is done again, never backwards."""
    run.say(f"version {version} was published by an attempt before this one")
    write_models_config(run.repository)
    if order.publish == "version":
        return _succeeded(order, run, version, is_live=False)
    wait_until_available(run.heads_address, order.head, version)
    live = read_catalogue(run.repository.root).heads.get(order.head)
    if live is None or live.stable < version:
        promote(run.repository, order.head, version)
        return _succeeded(order, run, version, is_live=True)
    return _succeeded(order, run, version, is_live=live.stable == version)


def _succeeded(order: TrainingOrder, run: RunContext, version: int, *, is_live: bool) -> Outcome:
    metrics = read_manifest(run.repository.path(order.head, version)).metrics
    result = RunResult(version=version, is_live=is_live, metrics=_plain(metrics))
    return Outcome(kind="succeeded", message=f"version {version} is {'live' if is_live else 'published'}", result=result)


def _plain(metrics: Metrics | None) -> dict[str, Any]:
    return {} if metrics is None else msgspec.to_builtins(metrics)
