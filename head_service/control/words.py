"""The words that cross the control plane's seams: what to train, how far it is, what came of it. Nothing heavy here."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Protocol

import msgspec

from clients.wire.catalogue import LongText, Task, View
from clients.wire.credentials import NO_CREDENTIALS, Credentials
from head_service.repository import Repository

Publish = Literal["live", "version"]
"""What a good version becomes: the one that answers, or only there, to be promoted by hand."""

HeadName = Annotated[str, msgspec.Meta(pattern="^[a-z0-9][a-z0-9_-]{0,63}$")]
StepName = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Column = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class DataSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where the rows are: *upload* names one of `POST /v1/data`, *path* a file below the data directory."""

    upload: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")] | None = None
    path: Annotated[str, msgspec.Meta(min_length=1, max_length=1_000)] | None = None


class TrainingOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What to train.

    *data* and feedback may be given together; where both speak of a text, feedback is right. Feedback rows up to number
    *feedback_until* are taken, so that a second attempt trains on the same ones. *preprocess* and *long_text* become the head's
    own, see `Manifest`; a step without a version is the newest. *level_separator* becomes its *label_separator*.
    """

    head: HeadName
    data: DataSource | None = None
    feedback_until: Annotated[int, msgspec.Meta(ge=0, le=2**62)] = 0
    head_type: Annotated[str, msgspec.Meta(pattern="^[a-z0-9][a-z0-9_-]{0,63}$")] = "linear"
    task: Task = "single_label"
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] = 0
    view: View = msgspec.field(default_factory=View)
    text_column: Column | None = None
    label_column: Column | None = None
    publish: Publish = "live"
    preprocess: Annotated[tuple[StepName, ...], msgspec.Meta(max_length=32)] = ()
    long_text: LongText = "cut"
    level_separator: Annotated[str, msgspec.Meta(max_length=16)] = ""


class RunResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a run left: a *version*, what it scored, where its report lies below the run's folder."""

    version: int | None = None
    is_live: bool = False
    metrics: dict[str, float | int | str | None] = {}
    comparison: dict[str, float | int | str | None] = {}
    report: str = ""


class Outcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How an attempt ended. *lost*: it is worth another attempt. *message* is for people and holds no text of the data."""

    kind: Literal["succeeded", "refused", "failed", "lost", "cancelled"]
    message: str = ""
    result: RunResult = msgspec.field(default_factory=RunResult)


class RunCancelledError(Exception):
    """Raised by `RunContext.say` and `RunContext.progress` once the run is to stop; let it pass."""


@dataclass(frozen=True, slots=True)
class RunContext:
    """What a trainer is given beside its order. All paths exist.

    *data* is the file of rows with *text_column* and *label_column* (None: guess). *folder* is the run's own, for its report.
    *repository* publishes in the run's name: a second attempt finds what the first one published in *published*.
    *say* and *progress* (step, done, total) raise `RunCancelledError` when the run is to stop, unless it has published: a version
    that exists is seen through. *to_embedding* and *to_heads* are what clients show those services. *bundles*: a head that has
    become live belongs into them.
    """

    run_id: str
    data: Path
    text_column: str | None
    label_column: str | None
    folder: Path
    repository: Repository
    published: int | None
    embedding_address: str
    heads_address: str
    cache_dir: Path
    say: Callable[[str], None]
    progress: Callable[[str, int, int], None]
    to_embedding: Credentials = NO_CREDENTIALS
    to_heads: Credentials = NO_CREDENTIALS
    bundles: bool = False


class Trainer(Protocol):
    """Trains one head, in a process of its own; `head_service.control.trainer.train_head` is the one by default.

    What it raises of `HeadServiceError` fails the run with that message; `clients.Unavailable` and `DeadlineExceeded` make it
    worth another attempt; anything else fails the run, and only the exception's class is told.
    """

    def __call__(self, order: TrainingOrder, run: RunContext) -> Outcome:
        """Train."""
        ...
