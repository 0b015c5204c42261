"""What a deployment is to those who measure it: something that starts, says what its processes are, and labels texts.

All plans are given the same trunk directory, the same heads and the same texts, and must answer the same labels.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedding_service.models.prepare import Engine
from perf.load import Target
from perf.workloads import Workload

FloatArray = NDArray[np.float32]

Labels = Mapping[str, str]
"""The label of one text by head."""

Classify = Callable[[Sequence[str]], Awaitable[list[Labels]]]
"""Labels of texts, in order; texts of one call travel together where the deployment lets them. Raises what its client does."""

Say = Callable[[str], None]

MOST_HEADS: Final = 32


@dataclass(frozen=True, slots=True, eq=False)
class HeadWeights:
    """A linear head: logits = vector @ kernel + bias; *kernel* float32 [width, labels], *bias* float32 [labels].

    The vector is the trunk's mean of the last layer, normalised to length 1.
    """

    name: str
    labels: tuple[str, ...]
    kernel: FloatArray
    bias: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class HeadSet:
    """`MOST_HEADS` heads fitted to real data on one trunk, and where deployments find them.

    *repository* holds them as published versions, stable and allowed to be served. *weights_file* is an .npz of
    `kernel_<name>`, `bias_<name>` and `labels_<name>` (strings) for processes that know nothing of repositories, in the order
    of *heads*. *texts* and *truth* are a labelled set that the first head was not fitted to.
    """

    heads: tuple[HeadWeights, ...]
    repository: Path
    weights_file: Path
    texts: tuple[str, ...]
    truth: tuple[str, ...]

    def first(self, count: int) -> tuple[HeadWeights, ...]:
        """The first *count* of them."""
        return self.heads[:count]


@dataclass(frozen=True, slots=True)
class Given:
    """What every plan starts from. *num_heads* of *heads* are asked for with each text."""

    trunk: Path
    heads: HeadSet
    num_heads: int
    cache_dir: Path
    peers_dir: Path
    log_dir: Path
    engine: Engine = "auto"
    embedding_address: str | None = None
    """gRPC address of an embedding service elsewhere; None: plans three and four start their own."""

    say: Say = print


@dataclass(frozen=True, slots=True)
class RunningPlan:
    """A deployment that answers. *pids* are the roots of its processes, by name; the caller's own is not among them.

    *classify* is the caller as its users write it, conversions included. *target*, where one HTTP request a text is all a caller
    does, gives the same requests to a generator that costs less. *start_seconds*: from the first process to the first answer.
    *notes* say what a reader of the numbers must know.
    """

    name: str
    num_heads: int
    pids: Mapping[str, int]
    start_seconds: float
    classify: Classify
    target: Callable[[Workload], Target] | None = None
    notes: tuple[str, ...] = ()
    addresses: Mapping[str, str] = field(default_factory=dict)
    """`gateway` (URL), `embedding` and `heads` (gRPC), where there are such."""


class CannotStart(Exception):
    """A plan cannot be had on this machine; the message is one line that says why."""


@dataclass(frozen=True, slots=True)
class Plan:
    """*start* raises `CannotStart`, and leaves no process behind. *least_agreement* is asked of its labels, from 0 to 1."""

    name: str
    title: str
    start: Callable[[Given], AbstractAsyncContextManager[RunningPlan]]
    least_agreement: float = 1.0
