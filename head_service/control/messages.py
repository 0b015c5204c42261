"""What a worker and its training process say to each other: JSON lines, over the process's stdin and one pipe of its own."""

import msgspec

from clients.wire.credentials import NO_CREDENTIALS, Credentials
from head_service.control.words import Outcome, TrainingOrder


class Start(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """To the process, first: what to do. All paths are absolute; *repository* may be s3://bucket/prefix.

    *data* is the file of rows, "" where there is none; *corrections*, not "", is what is to be heard of it, see `corrections`.
    """

    run_id: str
    order: TrainingOrder
    trainer: str
    data: str
    corrections: str
    folder: str
    repository: str
    cache_dir: str
    embedding_address: str
    heads_address: str
    max_bytes: int
    to_embedding: Credentials = NO_CREDENTIALS
    to_heads: Credentials = NO_CREDENTIALS
    bundles: bool = False


class MayPublish(msgspec.Struct, frozen=True, tag=True):
    """To the process: the answer to `AskToPublish`."""

    is_held: bool


class Stop(msgspec.Struct, frozen=True, tag=True):
    """To the process: stop at the next step, unless a version is published already."""


class Progress(msgspec.Struct, frozen=True, tag=True):
    """From the process: how far it is. *total* 0: nobody knows."""

    step: str
    done: int
    total: int


class Said(msgspec.Struct, frozen=True, tag=True):
    """From the process: a line for the run's log."""

    line: str


class AskToPublish(msgspec.Struct, frozen=True, tag=True):
    """From the process: does the lease still hold? It waits for `MayPublish`."""


class Ended(msgspec.Struct, frozen=True, tag=True):
    """From the process, last."""

    outcome: Outcome


ToChild = Start | MayPublish | Stop
FromChild = Progress | Said | AskToPublish | Ended


def packed(message: ToChild | FromChild) -> bytes:
    """One line."""
    return msgspec.json.encode(message) + b"\n"


def to_child(line: bytes) -> ToChild:
    """Of what `packed` made; `msgspec.DecodeError` where it is none."""
    message: ToChild = msgspec.json.decode(line, type=ToChild)
    return message


def from_child(line: bytes) -> FromChild:
    """See `to_child`."""
    message: FromChild = msgspec.json.decode(line, type=FromChild)
    return message
