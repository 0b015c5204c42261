"""The ports of the trunk, by our clients: one or several replicas of the embedding service."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Final

from clients import (
    AsyncEmbeddingClient,
    AsyncEmbeddingStream,
    Deadline,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidResponse,
    ServerFault,
    Trunk,
    TrunklineError,
    View,
)
from clients.wire import catalogue
from clients.wire.chain import UnknownStepError
from clients.wire.text import Encoded, TextEncoder, chain_before_normalizer
from gateway.backends.budget import Budget
from gateway.backends.facts import BackendFacts
from gateway.backends.pool import Habits, Pool, for_backend
from gateway.backends.replicas import NONE, Policy
from gateway.ports import LiveTrunk, PriorityName, Rows

_log = logging.getLogger(__name__)

Views = tuple[catalogue.View, ...]
StreamKey = tuple[str, Views, PriorityName]
"""Trunk fingerprint, views, priority: what all inputs of a stream have in common."""

ASK_SECONDS: Final = 2.0
"""For one replica to describe its trunk, while there is another to ask."""

FINISH_SECONDS: Final = 60.0
"""For what is under way on a stream of another trunk; no request takes longer."""

MAX_STREAMS: Final = 32
"""Open to one replica: what views a request reads is its caller's choice of heads, and each choice has a stream of its own."""

_GREETINGS: Final = 5
_GREET_AGAIN_SECONDS: Final = 0.2
_UNLIKE: Final = "another"
"""Stands for the fingerprint of a replica that refused the one it was asked for."""


class ClientTrunks:
    """Asks the embedding service once, and again when told to forget. Waiters share one question.

    Args:
        clients: one for each replica.
        in_order: their numbers in the order in which they are asked; the first that answers is believed.
        quick_tokens: as `TextEncoder` has it.
    """

    def __init__(
        self,
        clients: Sequence[AsyncEmbeddingClient],
        in_order: Callable[[], Sequence[int]] | None = None,
        *,
        quick_tokens: bool = False,
    ) -> None:
        self._clients = clients
        self._quick_tokens = quick_tokens
        self._in_order = in_order or (lambda: range(len(clients)))
        self._known: LiveTrunk | None = None
        self._asking: asyncio.Task[LiveTrunk] | None = None

    @property
    def known(self) -> LiveTrunk | None:
        """What is known now, without asking."""
        return self._known

    def forget(self, trunk: LiveTrunk) -> None:
        """See `gateway.ports.Trunks`."""
        if self._known is trunk:
            self._known = None

    async def trunk(self, deadline: Deadline) -> LiveTrunk:
        """See `gateway.ports.Trunks`."""
        if self._known is not None:
            return self._known
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
            self._asking.add_done_callback(_retrieve)
        try:
            async with asyncio.timeout(deadline.remaining()):
                return await asyncio.shield(self._asking)
        except TimeoutError:
            raise DeadlineExceeded("the embedding service did not describe its trunk in time") from None

    async def _ask(self) -> LiveTrunk:
        found = await self._first_answer()
        try:
            chain = chain_before_normalizer(found.normalizer)
        except UnknownStepError as error:
            raise InvalidResponse(f"the embedding service prepares texts as this gateway cannot: {error}") from None
        try:
            # A tokenizer of many languages takes a second to read.
            encoder = await asyncio.to_thread(
                TextEncoder,
                found.tokenizer_json,
                max_tokens=found.max_tokens,
                prompt=found.prompt,
                chain=chain,
                quick_tokens=self._quick_tokens,
            )
        # The tokenizers library raises plain Exceptions.
        except Exception as error:
            raise InvalidResponse("the embedding service's tokenizer cannot be read") from error
        if encoder.why_not_quick:
            _log.warning("texts are read by the tokenizers library: %s", encoder.why_not_quick)
        self._known = LiveTrunk(found.name, found.fingerprint, encoder, found.max_request_inputs, _both_names(found))
        return self._known

    async def _first_answer(self) -> Trunk:
        *others, last = self._in_order()
        for number in others:
            with contextlib.suppress(TrunklineError):
                return await self._clients[number].trunk(with_tokenizer=True, timeout=ASK_SECONDS)
        return await self._clients[last].trunk(with_tokenizer=True, timeout=5.0)


def _both_names(trunk: Trunk) -> frozenset[int]:
    """The layers on offer, each counted from 0, the embedding layer, and back from -1, the last one."""
    count = trunk.num_layers + 1
    return frozenset(name for layer in trunk.layers for name in (layer % count, layer % count - count))


def _retrieve(asking: "asyncio.Task[LiveTrunk]") -> None:
    """Whoever waited may have left; the error is told to the next who asks."""
    if not asking.cancelled():
        asking.exception()


class ClientEmbedder:
    """Embeds over a stream for each replica, trunk, set of views and priority, shared by all requests.

    A replica that has another trunk than the one asked for is left out until it has it. Single owner of the streams and of what
    is known of the replicas' trunks. All methods belong to one event loop.
    """

    def __init__(
        self,
        clients: Sequence[AsyncEmbeddingClient],
        *,
        max_open: int,
        policy: Policy | None = None,
        probe_seconds: float = 0.1,
        facts: BackendFacts | None = None,
    ) -> None:
        self.clients = clients
        self._max_open = max_open
        self._fingerprints = [""] * len(clients)
        self._streams: list[dict[StreamKey, AsyncEmbeddingStream]] = [{} for _ in clients]
        self._background: set[asyncio.Task[None]] = set()
        habits = Habits(
            "embedding",
            probe=self._probe,
            greet=self._greet,
            worked_at=self._worked_at,
            faults=(ServerFault, InvalidResponse),
            probe_seconds=probe_seconds,
        )
        self.pool = Pool(clients, habits, policy=policy, budget=Budget(), facts=facts)

    def start(self) -> None:
        """Begin to watch the replicas."""
        self.pool.start()

    async def embed(
        self, trunk: LiveTrunk, inputs: Sequence[Encoded], views: Views, deadline: Deadline, priority: PriorityName
    ) -> list[Rows]:
        """See `gateway.ports.Embedder`."""
        ids = [item.ids for item in inputs]
        inner = for_backend(deadline)

        async def attempt(number: int) -> list[Rows]:
            try:
                stream = self._stream(number, (trunk.fingerprint, views, priority), trunk.max_request_inputs)
                rows = await stream.embed(ids, inner)
            except FailedPrecondition:
                self._is_unlike(number)
                raise
            return [[row[index] for row in rows] for index in range(len(views))]

        # Each turn but the last finds out about one replica.
        for _ in self.clients[1:]:
            try:
                return await self.pool.run(attempt, len(ids), inner, self._unlike(trunk.fingerprint))
            except FailedPrecondition:
                continue
        return await self.pool.run(attempt, len(ids), inner, self._unlike(trunk.fingerprint))

    @property
    def num_open(self) -> int:
        """Inputs under way."""
        return sum(stream.num_open for streams in self._streams for stream in streams.values())

    async def close(self) -> None:
        """Cancel what is out."""
        await self.pool.close()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        for streams in self._streams:
            for stream in streams.values():
                await stream.close()

    def _unlike(self, fingerprint: str) -> frozenset[int]:
        """The replicas with another trunk.

        Raises:
            FailedPrecondition: all that are in order have another one: the trunk has been exchanged.
        """
        if all(known in {"", fingerprint} for known in self._fingerprints):
            return NONE
        unlike = frozenset(number for number, known in enumerate(self._fingerprints) if known not in {"", fingerprint})
        alike = [number for number in range(len(self.clients)) if number not in unlike]
        if not any(map(self.pool.is_usable, alike)) and (not alike or any(map(self.pool.is_usable, unlike))):
            raise FailedPrecondition("the replicas of the embedding service have another trunk now")
        return unlike

    def _is_unlike(self, number: int) -> None:
        """A replica refused the fingerprint it was asked for; a single one need not be remembered, nobody chooses."""
        if len(self.clients) == 1:
            return
        if self._fingerprints[number] != _UNLIKE:
            _log.warning("embedding replica %d has another trunk than the one in use; it gets no calls for that one", number)
        self._fingerprints[number] = _UNLIKE
        self._spawn(self._greet(number))

    async def _probe(self, number: int, timeout: float) -> None:
        self._learn(number, await self.clients[number].trunk(timeout=timeout))

    async def _greet(self, number: int) -> None:
        """Find out which trunk a replica has."""
        for _ in range(_GREETINGS):
            try:
                await self._probe(number, ASK_SECONDS)
            except TrunklineError:
                await asyncio.sleep(_GREET_AGAIN_SECONDS)
            else:
                return

    def _learn(self, number: int, found: Trunk) -> None:
        before, self._fingerprints[number] = self._fingerprints[number], found.fingerprint
        if before not in {"", _UNLIKE, found.fingerprint}:
            _log.warning("embedding replica %d has trunk %s (%s) now", number, found.name, found.fingerprint)

    def _worked_at(self, number: int) -> float:
        return max((stream.heard_at for stream in self._streams[number].values()), default=float("-inf"))

    def _stream(self, number: int, key: StreamKey, max_request_inputs: int) -> AsyncEmbeddingStream:
        streams = self._streams[number]
        known = streams.pop(key, None)
        if known is None:
            fingerprint, views, priority = key
            wanted = [View(pooling=v.pooling, layer=v.layer, normalize=v.normalize, dims=v.dims) for v in views]
            known = self.clients[number].stream(
                views=wanted,
                priority=priority,
                trunk_fingerprint=fingerprint,
                max_open=self._max_open,
                max_request_inputs=max_request_inputs,
            )
            self._retire(streams, fingerprint)
        # Those used last stand at the end.
        streams[key] = known
        return known

    def _retire(self, streams: dict[StreamKey, AsyncEmbeddingStream], fingerprint: str) -> None:
        """End streams of other trunks than *fingerprint*'s, once what is under way is answered; idle ones, too, to make room."""
        ending = [key for key in streams if key[0] != fingerprint]
        num_too_many = len(streams) - len(ending) + 1 - MAX_STREAMS
        if num_too_many > 0:
            idle = [key for key, stream in streams.items() if key[0] == fingerprint and not stream.num_open]
            ending += idle[:num_too_many]
        for key in ending:
            self._spawn(streams.pop(key).finish(Deadline.after(FINISH_SECONDS)))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
