"""Calling the embedding service. The twins differ in waiting only; what is sent and believed is in `_embedding_wire`."""

import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

from clients._channel import (
    ChannelOptions,
    async_method,
    key_metadata,
    open_async_channel,
    open_channel,
    sync_method,
)
from clients._config import EMBED_ALL_RETRY, EMBEDDING_TIMEOUT, Tls
from clients._deadline import Deadline
from clients._embedding_stream import AsyncEmbeddingStream
from clients._embedding_wire import (
    DTypeName,
    Durations,
    Embeddings,
    EmbedOptions,
    Input,
    Priority,
    TableKey,
    Truncation,
    Trunk,
    View,
    ViewArray,
    build_embed,
    build_trunk,
    join,
    parse_embed,
    parse_trunk,
)
from clients._errors import InvalidRequest, Overloaded
from clients._health import watch_health
from clients.wire.metadata import EMBEDDING_SERVICE

__all__ = ["AsyncEmbeddingClient", "Durations", "EmbeddingClient", "Embeddings", "TableKey", "Trunk", "View", "ViewArray"]


class AsyncEmbeddingClient:
    """The embedding service, from asyncio. One per process: calls share a connection, and may run at the same time.

    IMPORTANT: make it where the event loop runs.

    Usage:
        async with AsyncEmbeddingClient("127.0.0.1:8101") as client:
            vectors = (await client.embed(["a text"])).vectors

    Args:
        address: host:port, or unix:path.
        timeout: seconds a call may take that is given no other.
        options: gRPC channel options; with any, grpc.aio carries the calls, in place of the faster channel of ours.
        api_key: sent with every call, for a service that has keys; None sends none.
        tls: certificates, for a service that takes TLS; None calls in the clear.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout: float = EMBEDDING_TIMEOUT,
        options: ChannelOptions = (),
        api_key: str | None = None,
        tls: Tls | None = None,
    ) -> None:
        self._timeout = timeout
        key = self._key = key_metadata(api_key)
        self._channel = open_async_channel(address, options, tls)
        self._embed = async_method(self._channel, EMBEDDING_SERVICE, "Embed", key)
        self._trunk = async_method(self._channel, EMBEDDING_SERVICE, "GetTrunk", key)

    async def embed(
        self,
        inputs: Sequence[Input],
        *,
        trunk: str = "",
        views: Sequence[View] = (),
        truncation: Truncation = "right",
        priority: Priority = "interactive",
        dtype: DTypeName = "float32",
        trunk_fingerprint: str = "",
        prompt_name: str = "",
        timeout: float | None = None,
        request_id: str = "",
        traceparent: str = "",
    ) -> Embeddings:
        """Embed texts, pairs of texts or token ids in one call and one forward pass each; or look them up in a table.

        Args:
            inputs: at most the trunk's *max_request_inputs*; nothing is split here.
            trunk: its name; "" is the service's default.
            views: the ways to read each forward pass; none means one view, all of the trunk's own habits.
            truncation: which end of a text that is too long is dropped; "error": it is refused; "window": all of it is read, in
                overlapping windows whose vectors are pooled.
            priority: "bulk" lets interactive work go first.
            dtype: of the vectors, as they travel and as they are returned.
            trunk_fingerprint: refuse (FailedPrecondition) any trunk but this one; "" takes any.
            prompt_name: which of the trunk's prompts is put before each text; "" is its own, or none.
            timeout: seconds; None is the client's.
            request_id: names the call in the service's logs.
            traceparent: W3C's header of the trace that the call belongs to.

        Returns:
            One array a view, in the order of *views*.

        Raises:
            TrunklineError: see `clients` for the tree.
        """
        request = build_embed(inputs, EmbedOptions(trunk, views, truncation, priority, dtype, trunk_fingerprint, prompt_name))
        response = await self._embed(request, self._timeout if timeout is None else timeout, request_id, traceparent)
        return parse_embed(response, len(inputs), views, dtype)

    def stream(
        self,
        *,
        trunk: str = "",
        views: Sequence[View] = (),
        truncation: Truncation = "right",
        priority: Priority = "interactive",
        dtype: DTypeName = "float32",
        trunk_fingerprint: str = "",
        prompt_name: str = "",
        max_open: int = 8_192,
        max_request_inputs: int = 1_024,
    ) -> AsyncEmbeddingStream:
        """One stream for many callers, all inputs asked for alike: far cheaper than a call each. Close it before the client.

        Args:
            trunk: see `embed`, like all others but the last two.
            views: see `embed`.
            truncation: see `embed`.
            priority: see `embed`.
            dtype: see `embed`.
            trunk_fingerprint: see `embed`.
            prompt_name: see `embed`.
            max_open: how many inputs may be under way at once.
            max_request_inputs: see `Trunk`. No message carries more, whoever asked for them.
        """
        options = EmbedOptions(trunk, views, truncation, priority, dtype, trunk_fingerprint, prompt_name)
        method: Callable[..., Any] = self._channel.stream_stream(f"/{EMBEDDING_SERVICE}/EmbedStream")
        return AsyncEmbeddingStream(
            partial(method, metadata=self._key), options, max_open=max_open, max_inputs=max_request_inputs
        )

    async def trunk(self, name: str = "", *, with_tokenizer: bool = False, timeout: float | None = None) -> Trunk:
        """Describe trunk *name* ("": the default); *with_tokenizer* brings its tokenizer.json along."""
        request = build_trunk(name, with_tokenizer)
        return parse_trunk(await self._trunk(request, self._timeout if timeout is None else timeout, ""))

    def watch_health(self) -> AsyncGenerator[bool, None]:
        """Whether the service takes calls, now and at every change; raises TrunklineError when the connection ends."""
        return watch_health(self._channel)

    async def close(self) -> None:
        """End the connection; calls under way raise Cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()


class EmbeddingClient:
    """The embedding service, from threads: `AsyncEmbeddingClient`'s twin, with `embed_all` for lists of any length."""

    def __init__(
        self,
        address: str,
        *,
        timeout: float = EMBEDDING_TIMEOUT,
        options: ChannelOptions = (),
        api_key: str | None = None,
        tls: Tls | None = None,
    ) -> None:
        self._timeout = timeout
        key = key_metadata(api_key)
        self._channel = open_channel(address, options, tls)
        self._embed = sync_method(self._channel, EMBEDDING_SERVICE, "Embed", key)
        self._trunk = sync_method(self._channel, EMBEDDING_SERVICE, "GetTrunk", key)

    def embed(
        self,
        inputs: Sequence[Input],
        *,
        trunk: str = "",
        views: Sequence[View] = (),
        truncation: Truncation = "right",
        priority: Priority = "interactive",
        dtype: DTypeName = "float32",
        trunk_fingerprint: str = "",
        prompt_name: str = "",
        timeout: float | None = None,
        request_id: str = "",
        traceparent: str = "",
    ) -> Embeddings:
        """See `AsyncEmbeddingClient.embed`."""
        request = build_embed(inputs, EmbedOptions(trunk, views, truncation, priority, dtype, trunk_fingerprint, prompt_name))
        response = self._embed(request, self._timeout if timeout is None else timeout, request_id, traceparent)
        return parse_embed(response, len(inputs), views, dtype)

    def trunk(self, name: str = "", *, with_tokenizer: bool = False, timeout: float | None = None) -> Trunk:
        """See `AsyncEmbeddingClient.trunk`."""
        request = build_trunk(name, with_tokenizer)
        return parse_trunk(self._trunk(request, self._timeout if timeout is None else timeout, ""))

    def embed_all(
        self,
        texts: Sequence[Input],
        *,
        trunk: str = "",
        views: Sequence[View] = (),
        truncation: Truncation = "right",
        priority: Priority = "bulk",
        dtype: DTypeName = "float32",
        prompt_name: str = "",
        timeout: float | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Embeddings:
        """Embed a list of any length, in parts of the trunk's *max_request_inputs*, all by the same trunk.

        Where the service is full, a part waits as long as the service asks and is sent again; where the windows of a part, or the
        vectors of its tokens, are more than the service takes or gives at once, its halves are sent.

        Args:
            texts: texts or token ids.
            trunk: see `embed`, like *views*, *truncation*, *priority*, *dtype* and *prompt_name*.
            views: see `embed`.
            truncation: see `embed`.
            priority: see `embed`.
            dtype: see `embed`.
            prompt_name: see `embed`.
            timeout: seconds each *part* may take, its waiting included; None is the client's.
            progress: called after each part with the number of texts done so far.

        Raises:
            InvalidRequest: there are no texts, or one can never be served.
            FailedPrecondition: the trunk was exchanged for another half-way.
            TrunklineError: see `clients` for the tree.
        """
        if not texts:
            raise InvalidRequest("there are no texts to embed")
        patience = self._timeout if timeout is None else timeout
        found = self.trunk(trunk, timeout=patience)
        parts: list[Embeddings] = []
        options = EmbedOptions(trunk, views, truncation, priority, dtype, found.fingerprint, prompt_name)
        size, num_done = found.max_request_inputs, 0
        waiting = deque(texts[start : start + size] for start in range(0, len(texts), size))
        while waiting:
            part = waiting.popleft()
            try:
                response = self._embed_patiently(build_embed(part, options), Deadline.after(patience))
            except InvalidRequest:
                if len(part) == 1 or not _may_be_too_much(options):
                    raise
                middle = len(part) // 2
                waiting.extendleft([part[middle:], part[:middle]])
                continue
            parts.append(parse_embed(response, len(part), views, dtype))
            num_done += len(part)
            if progress is not None:
                progress(num_done)
        return join(parts)

    def _embed_patiently(self, request: bytes, deadline: Deadline) -> bytes:
        attempt = 0
        while True:
            try:
                return self._embed(request, deadline.remaining(), "")
            except Overloaded as error:
                delay = EMBED_ALL_RETRY.delay(attempt, error.retry_after)
                if delay >= deadline.remaining():
                    raise
            time.sleep(delay)
            attempt += 1

    def close(self) -> None:
        """End the connection; calls under way raise Cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _may_be_too_much(options: EmbedOptions) -> bool:
    """Whether texts that can each be served may be too much together, though they are few enough."""
    return options.truncation == "window" or any(view.pooling == "tokens" for view in options.views)
