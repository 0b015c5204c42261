"""What the command asks of a campaign, and what it hears from it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from embedding_service.models.prepare import Engine
from perf.results import Micro, Results

Say = Callable[[str], None]
Advance = Callable[[float, str], None]
"""Told which share of all is done, from 0 to 1, and what is measured now."""

TimeParts = Callable[[Say, Advance], tuple[Micro, ...]]
"""Times our own parts."""

Save = Callable[[Results], None]
"""Told what was found so far."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The command line of `quick` and `all`, read. Empty *plans*, *heads* and *workloads*, and None: what the command says."""

    is_quick: bool
    command: str
    plans: tuple[str, ...]
    heads: tuple[int, ...]
    workloads: tuple[str, ...]
    out: Path
    price_per_hour: float
    embedding_address: str | None
    peers_dir: Path
    with_peers: bool
    rounds: int | None
    seconds: float | None
    engine: Engine
    max_waits: int | None
    with_micro: bool = True


class Measure(Protocol):
    """A campaign; whatever it started is stopped when it ends, also when it is cancelled.

    Raises:
        ValueError, OSError: it cannot begin; in one sentence.
    """

    def __call__(self, asked: Asked, *, say: Say, progress: Advance, save: Save) -> Awaitable[Results]:
        """All that was found."""
        ...
