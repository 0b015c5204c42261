"""The ports, by our clients: one connection to the embedding service, one to the head server, requests' calls joined."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from clients import (
    AsyncEmbeddingClient,
    AsyncEmbeddingStream,
    AsyncHeadClient,
    Deadline,
    DeadlineExceeded,
    InvalidResponse,
    View,
)
from clients.wire import catalogue
from clients.wire.catalogue import Manifest
from clients.wire.text import NORMALIZER, Encoded, TextEncoder
from gateway.coalesce import CallLimits, Coalescer
from gateway.ports import FloatArray, LiveTrunk


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
        if found.normalizer != NORMALIZER:
            raise InvalidResponse(f"the embedding service normalises by {found.normalizer}, this gateway by {NORMALIZER}")
        try:
            # A tokenizer of many languages takes a second to read.
            encoder = await asyncio.to_thread(TextEncoder, found.tokenizer_json, max_tokens=found.max_tokens, prompt=found.prompt)
        # The tokenizers library raises plain Exceptions.
        except Exception as error:
            raise InvalidResponse("the embedding service's tokenizer cannot be read") from error
        self._known = LiveTrunk(found.name, found.fingerprint, encoder, found.max_request_inputs)
        return self._known


def _retrieve(asking: "asyncio.Task[LiveTrunk]") -> None:
    """Whoever waited may have left; the error is told to the next who asks."""
    if not asking.cancelled():
        asking.exception()


class ClientEmbedder:
    """Embeds over a stream for each trunk and set of views, shared by all requests."""

    def __init__(self, client: AsyncEmbeddingClient, *, max_open: int) -> None:
        self._client = client
        self._max_open = max_open
        self._streams: dict[tuple[str, tuple[catalogue.View, ...]], AsyncEmbeddingStream] = {}

    async def embed(
        self, trunk: LiveTrunk, inputs: Sequence[Encoded], views: tuple[catalogue.View, ...], deadline: Deadline
    ) -> list[FloatArray]:
        """See `gateway.ports.Embedder`."""
        rows = await self._stream(trunk.fingerprint, views).embed([item.ids for item in inputs], deadline)
        return [np.stack([row[index] for row in rows]) for index in range(len(views))]

    async def close(self) -> None:
        """Cancel what is out."""
        for stream in self._streams.values():
            await stream.close()

    def _stream(self, fingerprint: str, views: tuple[catalogue.View, ...]) -> AsyncEmbeddingStream:
        known = self._streams.get((fingerprint, views))
        if known is None:
            wanted = [View(pooling=v.pooling, layer=v.layer, normalize=v.normalize, dims=v.dims) for v in views]
            known = self._client.stream(views=wanted, trunk_fingerprint=fingerprint, max_open=self._max_open)
            self._streams[fingerprint, views] = known
        return known


class ClientPredictor:
    """Predicts through a coalescer for each head version."""

    def __init__(self, client: AsyncHeadClient, limits: CallLimits) -> None:
        self._client = client
        self._limits = limits
        self._coalescers: dict[str, tuple[Manifest, Coalescer[FloatArray, FloatArray]]] = {}

    async def predict(self, manifest: Manifest, embeddings: FloatArray, deadline: Deadline) -> FloatArray:
        """See `gateway.ports.Predictor`."""
        rows = await self._coalescer(manifest).run(embeddings, deadline)  # type: ignore[arg-type]  # an array is a sequence of its rows
        return np.asarray(rows)

    async def close(self) -> None:
        """Cancel what is out."""
        for _, coalescer in self._coalescers.values():
            await coalescer.close()

    def _coalescer(self, manifest: Manifest) -> Coalescer[FloatArray, FloatArray]:
        """That of the version; calls still out on another version of the head end by themselves."""
        known, coalescer = self._coalescers.get(manifest.name, (None, None))
        if known is not manifest or coalescer is None:
            coalescer = Coalescer(self._sender(manifest), self._limits)
            self._coalescers[manifest.name] = (manifest, coalescer)
        return coalescer

    def _sender(self, manifest: Manifest) -> Callable[[Sequence[FloatArray], Deadline], Awaitable[Sequence[FloatArray]]]:
        async def send(rows: Sequence[FloatArray], deadline: Deadline) -> Sequence[FloatArray]:
            answer = await self._client.predict(
                manifest.name,
                {manifest.input: np.asarray(rows)},
                version=manifest.version,
                output_filter=(manifest.output,),
                timeout=deadline.remaining(),
            )
            scores = answer.outputs.get(manifest.output)
            if scores is None or scores.ndim != 2:
                raise InvalidResponse("the head server did not answer with scores")
            return scores  # type: ignore[return-value]  # an array is a sequence of its rows

        return send
