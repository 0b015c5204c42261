"""The ports, by our clients: one connection to the embedding service, one to the head server, requests' calls joined."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import numpy as np

from clients import (
    AsyncEmbeddingClient,
    AsyncEmbeddingStream,
    AsyncHeadClient,
    Deadline,
    DeadlineExceeded,
    InvalidResponse,
    Trunk,
    View,
)
from clients.wire import catalogue
from clients.wire.catalogue import Manifest, bundles_of
from clients.wire.chain import UnknownStepError
from clients.wire.text import Encoded, TextEncoder, chain_before_normalizer
from gateway.coalesce import CallLimits, Coalescer
from gateway.exchange import ids_passed_on
from gateway.ports import FloatArray, LiveTrunk, PriorityName, Rows

MAX_CALL_BYTES: Final = 16 * 1024 * 1024
"""Of token vectors in one call to a head server, whose messages are bounded."""


class ClientTrunks:
    """Asks the embedding service once, and again when told to forget. Waiters share one question."""

    def __init__(self, client: AsyncEmbeddingClient) -> None:
        self._client = client
        self._known: LiveTrunk | None = None
        self._asking: asyncio.Task[LiveTrunk] | None = None

    @property
    def known(self) -> LiveTrunk | None:
        """What is known now, without asking."""
        return self._known

    def forget(self) -> None:
        """See `gateway.ports.Trunks`."""
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
        found = await self._client.trunk(with_tokenizer=True, timeout=5.0)
        try:
            chain = chain_before_normalizer(found.normalizer)
        except UnknownStepError as error:
            raise InvalidResponse(f"the embedding service prepares texts as this gateway cannot: {error}") from None
        try:
            # A tokenizer of many languages takes a second to read.
            encoder = await asyncio.to_thread(
                TextEncoder, found.tokenizer_json, max_tokens=found.max_tokens, prompt=found.prompt, chain=chain
            )
        # The tokenizers library raises plain Exceptions.
        except Exception as error:
            raise InvalidResponse("the embedding service's tokenizer cannot be read") from error
        self._known = LiveTrunk(found.name, found.fingerprint, encoder, found.max_request_inputs, _both_names(found))
        return self._known


def _both_names(trunk: Trunk) -> frozenset[int]:
    """The layers on offer, each counted from 0, the embedding layer, and back from -1, the last one."""
    count = trunk.num_layers + 1
    return frozenset(name for layer in trunk.layers for name in (layer % count, layer % count - count))


def _retrieve(asking: "asyncio.Task[LiveTrunk]") -> None:
    """Whoever waited may have left; the error is told to the next who asks."""
    if not asking.cancelled():
        asking.exception()


class ClientEmbedder:
    """Embeds over a stream for each trunk, set of views and priority, shared by all requests."""

    def __init__(self, client: AsyncEmbeddingClient, *, max_open: int) -> None:
        self._client = client
        self._max_open = max_open
        self._streams: dict[tuple[str, tuple[catalogue.View, ...], PriorityName], AsyncEmbeddingStream] = {}

    async def embed(
        self,
        trunk: LiveTrunk,
        inputs: Sequence[Encoded],
        views: tuple[catalogue.View, ...],
        deadline: Deadline,
        priority: PriorityName,
    ) -> list[Rows]:
        """See `gateway.ports.Embedder`."""
        rows = await self._stream(trunk.fingerprint, views, priority).embed([item.ids for item in inputs], deadline)
        return [[row[index] for row in rows] for index in range(len(views))]

    @property
    def num_open(self) -> int:
        """Inputs under way."""
        return sum(stream.num_open for stream in self._streams.values())

    async def close(self) -> None:
        """Cancel what is out."""
        for stream in self._streams.values():
            await stream.close()

    def _stream(self, fingerprint: str, views: tuple[catalogue.View, ...], priority: PriorityName) -> AsyncEmbeddingStream:
        known = self._streams.get((fingerprint, views, priority))
        if known is None:
            wanted = [View(pooling=v.pooling, layer=v.layer, normalize=v.normalize, dims=v.dims) for v in views]
            known = self._client.stream(views=wanted, priority=priority, trunk_fingerprint=fingerprint, max_open=self._max_open)
            self._streams[fingerprint, views, priority] = known
        return known


class ClientPredictor:
    """Predicts through a coalescer for each head version."""

    def __init__(self, client: AsyncHeadClient, limits: CallLimits) -> None:
        self._client = client
        self._limits = limits
        self._coalescers: dict[tuple[str, int], tuple[Manifest, Coalescer[FloatArray, FloatArray]]] = {}

    async def predict(self, manifest: Manifest, rows: Rows, deadline: Deadline) -> FloatArray:
        """See `gateway.ports.Predictor`."""
        return np.asarray(await self._coalescer(manifest).run(rows, deadline))

    def follow(self, catalogue: catalogue.Catalogue) -> None:
        """See `gateway.ports.CatalogueFollower`. Calls still out on versions that are gone end by themselves."""
        live = {(name, version) for name, head in catalogue.heads.items() for version in head.versions}
        live |= {(bundle.name, bundle.version) for bundle in bundles_of(catalogue).values()}
        self._coalescers = {version: known for version, known in self._coalescers.items() if version in live}

    async def close(self) -> None:
        """Cancel what is out."""
        for _, coalescer in self._coalescers.values():
            await coalescer.close()

    @property
    def num_waiting(self) -> int:
        """Texts that wait for a call, each once for each head."""
        return sum(coalescer.num_rows for _, coalescer in self._coalescers.values())

    def _coalescer(self, manifest: Manifest) -> Coalescer[FloatArray, FloatArray]:
        """That of the version; a canary, a shadow and the stable one are called side by side."""
        known, coalescer = self._coalescers.get((manifest.name, manifest.version), (None, None))
        if known is not manifest or coalescer is None:
            coalescer = Coalescer(self._sender(manifest), self._limits)
            self._coalescers[manifest.name, manifest.version] = (manifest, coalescer)
        return coalescer

    def _sender(self, manifest: Manifest) -> Callable[[Sequence[FloatArray], Deadline], Awaitable[Sequence[FloatArray]]]:
        async def ask(inputs: dict[str, FloatArray], deadline: Deadline) -> FloatArray:
            ids = ids_passed_on()
            answer = await self._client.predict(
                manifest.name,
                inputs,
                version=manifest.version,
                output_filter=(manifest.output,),
                timeout=deadline.remaining(),
                request_id=ids.request_id,
                traceparent=ids.traceparent,
            )
            scores = answer.outputs.get(manifest.output)
            if scores is None or scores.ndim != 2 or len(scores) != len(inputs[manifest.input]):
                raise InvalidResponse("the head server did not answer with scores")
            return scores

        async def send(rows: Sequence[FloatArray], deadline: Deadline) -> Sequence[FloatArray]:
            return await ask({manifest.input: np.asarray(rows)}, deadline)  # type: ignore[return-value]  # an array is its rows

        async def send_tokens(rows: Sequence[FloatArray], deadline: Deadline) -> Sequence[FloatArray]:
            answers: list[FloatArray] = [_NOTHING] * len(rows)
            for places in groups_by_length([len(row) for row in rows], manifest.width):
                vectors, mask = padded([rows[place] for place in places])
                scores = await ask({manifest.input: vectors, manifest.mask_input: mask}, deadline)
                for place, row in zip(places, scores, strict=True):
                    answers[place] = row
            return answers

        return send_tokens if manifest.mask_input else send


_NOTHING: Final[FloatArray] = np.empty(0, np.float32)


def groups_by_length(lengths: Sequence[int], width: int) -> list[list[int]]:
    """The places of *lengths*, shortest first, in groups that take at most `MAX_CALL_BYTES` when padded; or in one of its own."""
    groups: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        # Of rising lengths this one is its group's longest so far.
        if not groups or (len(groups[-1]) + 1) * lengths[place] * width * 4 > MAX_CALL_BYTES:
            groups.append([])
        groups[-1].append(place)
    return groups


def padded(rows: Sequence[FloatArray]) -> tuple[FloatArray, FloatArray]:
    """(vectors float32 [texts, tokens, width], mask float32 [texts, tokens]: 1 where there is a token) of *rows* of tokens."""
    lengths = np.array([len(row) for row in rows])
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.float32)
    vectors = np.zeros((*mask.shape, rows[0].shape[1]), np.float32)
    for place, row in zip(vectors, rows, strict=True):
        place[: len(row)] = row
    return vectors, mask
