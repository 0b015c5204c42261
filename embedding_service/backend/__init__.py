"""The seam between scheduling and arithmetic: every word that crosses it, and nothing heavy.

A backend runs one trunk. It knows nothing of requests, queues, callers or time; the batcher knows nothing of graphs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
Pooling = Literal["mean", "cls", "max", "mean_max", "sep", "tokens"]


@dataclass(frozen=True, slots=True)
class View:
    """One way of reading a forward pass, fully resolved: *layer* is negative (-1 is the last), *dims* 0 means all."""

    pooling: Pooling = "mean"
    layer: int = -1
    normalize: bool = True
    dims: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """One forward pass's input.

    *token_ids* are rows of ids of any lengths, special tokens in place; the backend pads them as it likes.
    *views[i]* are the views row i is to be read by. *pair_at[i]* is where in row i the second text of a pair begins, 0 where
    there is only one text; empty when all rows are single texts. Tokens from there on are of segment 1, all others of 0.
    *is_alone*: no other pass was under way on the device when this one began, and none was to start beside it, so it may take all
    of it.
    """

    token_ids: tuple[tuple[int, ...], ...]
    views: tuple[tuple[View, ...], ...]
    pair_at: tuple[int, ...] = ()
    is_alone: bool = False

    @property
    def num_tokens(self) -> int:
        """Tokens without padding."""
        return sum(len(ids) for ids in self.token_ids)


LONE_THREADS: Final = 4
"""At most so many compute a pass that is alone, where passes side by side have one each: small products gain little by more."""

BatchResult = list[list[FloatArray]]
"""result[i][j] is row i read by its view j: float32 [width'] for a pooled view, [tokens, width'] for tokens."""


@dataclass(frozen=True, slots=True)
class TrunkSpec:
    """What a trunk is, whatever engine runs it."""

    name: str
    fingerprint: str
    width: int
    num_layers: int
    vocab_size: int
    max_tokens: int
    default_view: View
    prompt: str
    """Put before every text; part of the fingerprint."""
    tokenizer_json: bytes
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Others that a caller may choose by name."""


@dataclass(frozen=True, slots=True)
class PassCost:
    """What a forward pass takes beside the tokens wanted, told in tokens; `python -m perf.micro.pass_cost` measures it.

    *overhead* is the pass's own: weights read once, kernels set up for another shape. *padding* is of a token that fills a row up
    to the longest: 1 where those are computed, little where rows lie one after another. *cell* is of a place in attention's grid,
    which has rows * longest² of them, where a row by itself has length². The defaults are for an engine that was not measured.
    """

    overhead: float = 40.0
    padding: float = 1.0
    cell: float = 0.0


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What runs it: *label* such as "openvino bf16"; *agreement* is the mean cosine to float32 measured at preparation.

    *concurrency* is how many threads may be inside `Backend.embed` at once, *layers* the negative layer numbers a view may ask
    for. Passes on one *device* share its slots, whatever trunks they are of. Up to *lone_tokens* are done sooner as one pass,
    which has all threads when it is alone, than by passes side by side.
    """

    label: str
    agreement: float
    pass_cost: PassCost
    concurrency: int
    layers: tuple[int, ...]
    device: str = "cpu"
    lone_tokens: int = 0


class BackendError(Exception):
    """A forward pass failed. The batch it happened in is lost; the backend may be asked again."""


class Backend(Protocol):
    """Runs one trunk. Making one is expensive: weights are read and compiled; calling it is not."""

    @property
    def trunk(self) -> TrunkSpec:
        """Constant for the backend's life."""
        ...

    @property
    def engine(self) -> EngineSpec:
        """Constant for the backend's life."""
        ...

    def embed(self, batch: Batch) -> BatchResult:
        """Run one forward pass; every row of the answer is finite.

        Called from worker threads, at most `engine.concurrency` at a time; never from the event loop.
        IMPORTANT: the answer has exactly one entry a row and, in it, one array a view; the batcher treats anything else
        as a fault of the whole batch.

        Raises:
            BackendError: the pass failed, or gave numbers that are not finite.
        """
        ...

    def close(self) -> None:
        """Give back memory and threads. Called once, when no `embed` is under way."""
        ...
