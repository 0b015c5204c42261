"""One stream's inputs between arrival and answer. It knows the messages' meaning, not how they travel.

Inputs are started by number and settle one by one; what settled together is answered together.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from embedding_service.backend import FloatArray, TrunkSpec, View
from embedding_service.backend.tables import TableSpec
from embedding_service.errors import EmbedError
from embedding_service.exchange import Exchange
from embedding_service.infer import EmbedAnswer, EmbedCall, Infer, gather
from embedding_service.telemetry import Telemetry, Timings, longest
from embedding_service.tokenization import InputFacts

MAX_ANSWER_BYTES: Final = 16 * 2**20
"""Of the vectors in one message; callers refuse messages of more than 64 MiB, and with them the stream."""


@dataclass(frozen=True, slots=True)
class Answered:
    """Inputs that have their vectors: *numbers* in the order of the rows of *answer*, and the *dtype* they asked for."""

    numbers: list[int]
    answer: EmbedAnswer
    dtype: int


@dataclass(frozen=True, slots=True)
class Failed:
    """Inputs that failed alike."""

    numbers: list[int]
    error: EmbedError


@dataclass(slots=True)
class Settled:
    """What there is to say at one moment."""

    answered: list[Answered] = field(default_factory=list)
    failed: list[Failed] = field(default_factory=list)


class Conversation:
    """Single owner of one stream's inputs. All methods belong to the event loop.

    At most *max_open* inputs are taken and not yet answered: whoever reads the stream awaits `room` before the next message.
    *begin*, where somebody wants to know, opens an exchange for each message: it ends when the last of its inputs has settled.
    """

    def __init__(
        self, infer: Infer, telemetry: Telemetry, *, max_open: int = 8_192, begin: Callable[[], Exchange] | None = None
    ) -> None:
        self._infer = infer
        self._begin = begin
        self._telemetry = telemetry
        self._max_open = max_open
        self._open: dict[int, _Input] = {}
        self._ready: dict[_Input, None] = {}
        """Of the open ones those that have settled, in that order."""
        self._starting: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._closed = False

    def __repr__(self) -> str:
        return f"<Conversation [{len(self._open)} open, {len(self._ready)} ready]>"

    async def room(self) -> None:
        """Wait until another message may be started."""
        await self._room.wait()

    def start(self, call: EmbedCall, numbers: Sequence[int], deadlines: Sequence[float], dtype: int) -> None:
        """Start the inputs of *call*, by *numbers* that are not open: whoever uses one twice has left the first."""
        self.abandon([number for number in numbers if number in self._open])
        part = _Part(self._begin(), len(numbers)) if self._begin is not None else None
        inputs = [_Input(number, dtype, self, part) for number in numbers]
        self._open.update((item.number, item) for item in inputs)
        starting = asyncio.create_task(self._infer.embed_each(call, deadlines, inputs))
        self._starting.add(starting)
        starting.add_done_callback(self._starting.discard)
        self._note()

    def abandon(self, numbers: Sequence[int]) -> None:
        """Nobody waits for these any more."""
        for number in numbers:
            item = self._open.pop(number, None)
            if item is None:
                continue
            if item.is_settled:
                # It was counted as what it came to.
                self._ready.pop(item, None)
                continue
            if item.part is not None:
                item.part.ended(item, "cancelled")
            item.is_settled = True
            self._telemetry.request_ended("cancelled", 1, None)
        self._note()

    def close(self) -> None:
        """Nothing more will be started; `settled` ends after the last answer."""
        self._closed = True
        self._note()

    def abandon_all(self) -> None:
        """The other side is gone."""
        self.close()
        self.abandon(list(self._open))

    async def settled(self) -> AsyncIterator[Settled]:
        """What settled since the last time, whenever there is something; ends when closed and nothing is open."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._ready:
                yield self._take_ready()
            if self._closed and not self._open:
                return

    def _take_ready(self) -> Settled:
        ready, self._ready = self._ready, {}
        for item in ready:
            self._open.pop(item.number, None)
        self._note()
        answered: dict[tuple[str, tuple[View, ...], int], list[_Input]] = defaultdict(list)
        failed: dict[tuple[str, str], list[_Input]] = defaultdict(list)
        for item in ready:
            if item.error is None:
                answered[item.trunk.name, item.views, item.dtype].append(item)
            else:
                failed[item.error.code, str(item.error)].append(item)
        joined = [_join(part) for items in answered.values() for part in _portions(items)]
        return Settled(joined, [_alike(items) for items in failed.values()])

    def _note(self) -> None:
        if len(self._open) < self._max_open:
            self._room.set()
        else:
            self._room.clear()
        if self._ready or (self._closed and not self._open):
            self._changed.set()

    def _settle(self, item: "_Input") -> None:
        """*item* has its vectors or its error."""
        item.is_settled = True
        self._ready[item] = None
        if item.part is not None:
            item.part.ended(item, item.error.code if item.error else "")
        self._telemetry.request_ended(item.error.code if item.error else "ok", 1, item.timings())
        self._changed.set()


class _Part:
    """The inputs of one message, told of as one request once the last of them has settled."""

    def __init__(self, exchange: Exchange, count: int) -> None:
        exchange.asked(count)
        self._exchange = exchange
        self._left = count

    def ended(self, item: "_Input", failure: str) -> None:
        """*item* has its vectors, or *failure* says why not."""
        self._left -= 1
        timings = item.timings()
        if failure:
            self._exchange.failed(failure)
        elif timings is not None:
            self._exchange.answered(item.trunk.name, item.facts.num_tokens, timings)
        if not self._left:
            self._exchange.end()


class _Input:
    """One input; see `infer.InputWaiter`."""

    __slots__ = (
        "_conversation",
        "arrived",
        "dtype",
        "error",
        "facts",
        "inference_seconds",
        "is_settled",
        "number",
        "part",
        "queue_seconds",
        "tokenization_seconds",
        "trunk",
        "vectors",
        "views",
    )

    def __init__(self, number: int, dtype: int, conversation: Conversation, part: "_Part | None" = None) -> None:
        self.number = number
        self.dtype = dtype
        self.part = part
        self.arrived = time.monotonic()
        self.is_settled = False
        self.error: EmbedError | None = None
        self.views: tuple[View, ...] = ()
        self.vectors: list[FloatArray] = []
        self.queue_seconds = self.inference_seconds = 0.0
        self.trunk: TrunkSpec | TableSpec
        self.facts: InputFacts
        self.tokenization_seconds = 0.0
        self._conversation = conversation

    def begin(self, trunk: TrunkSpec | TableSpec, views: tuple[View, ...], facts: InputFacts, tokenization: float) -> None:
        self.trunk, self.views, self.facts, self.tokenization_seconds = trunk, views, facts, tokenization

    def put(self, index: int, vectors: list[FloatArray], queue_seconds: float, inference_seconds: float) -> None:
        del index
        if not self.is_settled:
            self.vectors, self.queue_seconds, self.inference_seconds = vectors, queue_seconds, inference_seconds
            self._conversation._settle(self)  # noqa: SLF001 (one unit, two classes)

    def fail(self, error: EmbedError) -> None:
        if not self.is_settled:
            self.error = error
            self._conversation._settle(self)  # noqa: SLF001

    def timings(self) -> Timings | None:
        if self.error is not None:
            return None
        total = time.monotonic() - self.arrived
        return Timings(self.tokenization_seconds, self.queue_seconds, self.inference_seconds, total)


def _portions(items: list[_Input]) -> Iterator[list[_Input]]:
    """*items* in order, in parts that are messages of `MAX_ANSWER_BYTES` at most, or of one input."""
    part: list[_Input] = []
    num_bytes = 0
    for item in items:
        size = sum([vector.nbytes for vector in item.vectors])
        if part and num_bytes + size > MAX_ANSWER_BYTES:
            yield part
            part, num_bytes = [], 0
        part.append(item)
        num_bytes += size
    yield part


def _join(items: list[_Input]) -> Answered:
    """Inputs of the same views as one answer; timings are the longest."""
    timings = [timing for item in items if (timing := item.timings())]
    answer = EmbedAnswer(
        trunk=items[0].trunk,
        views=[gather([item.vectors[index] for item in items], view) for index, view in enumerate(items[0].views)],
        inputs=[item.facts for item in items],
        timings=longest(timings),
    )
    return Answered([item.number for item in items], answer, items[0].dtype)


def _alike(items: list[_Input]) -> Failed:
    error = items[0].error
    assert error is not None
    return Failed([item.number for item in items], error)
