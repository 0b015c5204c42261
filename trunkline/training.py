"""`trunkline train`: from a file to a head that answers, against the running stack or with the embedding service alone."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from clients import EmbeddingClient
from clients.wire.catalogue import LongText, Task
from clients.wire.credentials import Credentials
from head_service.exporting import Export, export_here
from head_service.head_server import scorer_at, wait_until_available
from head_service.lifecycle import Lifecycle
from head_service.pieces import named_steps
from head_service.release import release
from head_service.repository import Repository
from head_service.training.dataset import LABEL_SEPARATOR, read_dataset
from head_service.training.embeddings import EmbeddingCache
from head_service.training.fit import FitOptions
from head_service.training.linear_head import LinearHead
from head_service.training.run import TrainingRequest, TrainingResult, train
from trunkline import paths
from trunkline.keys import key_from_environment
from trunkline.measured import headline
from trunkline.stack import Addresses, Stack, recorded

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
    """How a head is to be made; *weights* is an .npz file of one that is fitted already, see `read_weights`.

    *label_separator* is what stands between several labels in one cell. *preprocess* are names of steps, the newest version of
    each where none is given, and *long_text* is as in `clients.wire.catalogue.Manifest`. *level_separator* is the
    manifest's *label_separator*: what stands between the levels of one label.
    """

    fit: FitOptions = field(default_factory=FitOptions)
    task: Task = "single_label"
    label_separator: str = LABEL_SEPARATOR
    layers: tuple[int, ...] = ()
    weights: Path | None = None
    with_texts: bool = True
    preprocess: tuple[str, ...] = ()
    long_text: LongText = "cut"
    level_separator: str = ""


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
    export: Export = export_here,
) -> TrainingResult:
    """Train *name* on *file* and make it live, if the gate lets it. What *wanted* brings along is only measured on the file.

    *export* is what writes the head's files.
    """
    wanted = wanted or HeadWanted()
    brought = _brought(wanted.weights) if wanted.weights else None
    read = partial(read_dataset, task=wanted.task, label_separator=wanted.label_separator)
    data = read(file, text_column, label_column)
    held_out = read(test_file, text_column, label_column, for_training=False) if test_file else None
    say(f"head {name}: {data}")
    started = time.monotonic()
    repository = Repository(live.repository)
    shown = Credentials(key_from_environment())
    lifecycle = Lifecycle(repository, partial(wait_until_available, live.heads_grpc, credentials=shown))
    with (
        EmbeddingClient(live.embedding_grpc, timeout=120.0, api_key=shown.api_key) as embedder,
        scorer_at(live.heads_grpc, embedder, repository, shown) as scorer,
    ):
        result = train(
            TrainingRequest(
                name,
                data,
                held_out,
                mix_layers=wanted.layers,
                options=wanted.fit,
                brought=brought,
                with_texts=wanted.with_texts,
                preprocess=named_steps(wanted.preprocess),
                long_text=wanted.long_text,
                level_separator=wanted.level_separator,
            ),
            embedder=embedder,
            cache=EmbeddingCache(live.cache_dir / "training-embeddings.sqlite"),
            repository=repository,
            go_live=lambda head, version, remeasure: release(lifecycle, head, version, scorer=scorer, remeasure=remeasure),
            scorer=scorer,
            say=say,
            embedding_progress=_Paced(say, name),
            reports=paths.home() / "reports",
            export=export,
        )
    say(f"head {name}: {_said_of(result, data.task)}; {time.monotonic() - started:.0f} s")
    if result.report is not None:
        say(f"head {name}: report {result.report}")
    return result


def _brought(file: Path) -> LinearHead:
    from head_service.training.brought import read_weights  # noqa: PLC0415 (what few bring along)

    return read_weights(file)


def _said_of(result: TrainingResult, task: Task) -> str:
    metrics = result.metrics
    if task == "regression":
        scored = headline(task, msgspec.structs.asdict(metrics))
    else:
        scored = f"accuracy {metrics.accuracy:.4f}, macro F1 {metrics.macro_f1:.4f}"
    what = f"{scored} on {metrics.num_test} held-out texts"
    if result.comparison is None or result.is_live:
        return f"version {result.version} is published; {what}"
    return f"version {result.version} is not live ({result.comparison.verdict}: {result.comparison.reason}); {what}"


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
    export: Export = export_here,
) -> None:
    """`train_head` against the running stack; without one, *stack*'s embedding service is started for it.

    Ctrl-C ends it at once, and what was started for it.
    """

    def go(live: LiveStack) -> None:
        with _interruptible():
            train_head(
                live,
                file,
                name=head,
                say=say,
                text_column=text_column,
                label_column=label_column,
                test_file=test_file,
                wanted=wanted,
                export=export,
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


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C is raised where the work is. An event loop takes note of it, and acts once the work has had its way."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


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
