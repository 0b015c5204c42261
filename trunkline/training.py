"""`trunkline train`: from a file to a head that answers, against the running stack or with the embedding service alone."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from clients import EmbeddingClient, HeadClient, NotFound
from clients.wire.catalogue import Task
from head_service.errors import RepositoryError
from head_service.repository import Repository
from head_service.training.brought import read_weights
from head_service.training.dataset import read_dataset
from head_service.training.embeddings import EmbeddingCache
from head_service.training.fit import FitOptions
from head_service.training.run import TrainingRequest, TrainingResult, train
from trunkline import paths
from trunkline.stack import Addresses, Stack, recorded

AVAILABLE_WITHIN_SECONDS: Final = 60.0
SHOW_EVERY_TEXTS: Final = 500

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class LiveStack:
    """What training needs to know of the running stack; *heads_grpc* is "" when no head server runs."""

    embedding_grpc: str
    heads_grpc: str
    repository: str
    cache_dir: Path

    @classmethod
    def of(cls, addresses: Addresses, repository: str, cache_dir: Path) -> "LiveStack":
        """The stack that listens at *addresses*."""
        return cls(addresses.embedding_grpc, addresses.heads_grpc, repository, cache_dir)


@dataclass(frozen=True, slots=True)
class HeadWanted:
    """How a head is to be made; *weights* is an .npz file of one that is fitted already, see `read_weights`."""

    fit: FitOptions = field(default_factory=FitOptions)
    task: Task = "single_label"
    layers: tuple[int, ...] = ()
    weights: Path | None = None


def train_head(
    live: LiveStack,
    file: Path,
    *,
    name: str,
    say: Say,
    text_column: str | None = None,
    label_column: str | None = None,
    test_file: Path | None = None,
    wanted: HeadWanted | None = None,
) -> TrainingResult:
    """Train *name* on *file* and make it live. What *wanted* brings along already is only measured on it."""
    wanted = wanted or HeadWanted()
    brought = read_weights(wanted.weights) if wanted.weights else None
    data = read_dataset(file, text_column, label_column)
    held_out = read_dataset(test_file, text_column, label_column, for_training=False) if test_file else None
    repeated = f", {data.num_repeated} repeated rows left out" if data.num_repeated else ""
    say(f"head {name}: {len(data.examples)} texts, {len(set(data.labels))} labels{repeated}")
    started = time.monotonic()
    with EmbeddingClient(live.embedding_grpc, timeout=120.0) as embedder:
        result = train(
            TrainingRequest(
                name, data, held_out, mix_layers=wanted.layers, task=wanted.task, options=wanted.fit, brought=brought
            ),
            embedder=embedder,
            cache=EmbeddingCache(live.cache_dir / "training-embeddings.sqlite"),
            repository=Repository(live.repository),
            wait_until_available=lambda head, version: wait_until_available(live.heads_grpc, head, version),
            say=say,
            embedding_progress=_Paced(say, name),
        )
    metrics = result.metrics
    say(
        f"head {name}: version {result.version} is published; accuracy {metrics.accuracy:.4f}, macro F1 {metrics.macro_f1:.4f} "
        f"on {metrics.num_test} held-out texts; {time.monotonic() - started:.0f} s"
    )
    return result


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
            try:
                [status] = client.status(head, version=version)
            except NotFound:
                state = "UNKNOWN"
            else:
                state = status.state
                if state == "AVAILABLE":
                    return
                if status.error_message:
                    raise RepositoryError(f"the head server refuses {head} version {version}: {status.error_message}")
            # The server follows the file system by polling, so there is nothing to be woken by.
            time.sleep(0.1)
    raise RepositoryError(f"{head} version {version} is still {state} in the head server; the version before it keeps answering")


async def train_command(
    file: Path,
    *,
    head: str,
    text_column: str | None,
    label_column: str | None,
    test_file: Path | None,
    stack: Stack,
    say: Say,
    wanted: HeadWanted | None = None,
) -> None:
    """`train_head` against the running stack; without one, *stack*'s embedding service is started for it."""

    def go(live: LiveStack) -> None:
        train_head(
            live,
            file,
            name=head,
            say=say,
            text_column=text_column,
            label_column=label_column,
            test_file=test_file,
            wanted=wanted,
        )

    settings = stack.settings
    running = recorded(paths.home() / "stack.json")
    if running is not None:
        go(LiveStack.of(running, settings.location, settings.cache_dir))
        return
    say("no local stack runs; starting the embedding service for this training")
    try:
        address, _ = await stack.start_embedding()
        go(LiveStack(address, "", settings.location, settings.cache_dir))
    finally:
        await stack.stop()


class _Paced:
    """Says how far embedding is, now and then."""

    def __init__(self, say: Say, name: str) -> None:
        self._say = say
        self._name = name
        self._next = SHOW_EVERY_TEXTS

    def __call__(self, done: int, total: int) -> None:
        if done >= self._next or done == total:
            self._say(f"head {self._name}: {done} of {total} texts embedded")
            self._next = done + SHOW_EVERY_TEXTS
