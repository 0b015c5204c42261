"""Infer: from a request to vectors. Check, tokenise, admit, await; it knows neither gRPC nor HTTP nor any model library."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np

from clients.wire.text import Encoded, TextEncoder
from embedding_service.backend import Backend, EngineSpec, FloatArray, TrunkSpec, View
from embedding_service.batching import Batcher, Row, Waiter
from embedding_service.errors import EmbedError, InvalidInput, UnknownTrunk, WrongTrunk
from embedding_service.queue import Entry, QueueLimits
from embedding_service.reuse import Reuse, VectorCache
from embedding_service.telemetry import Telemetry, Timings

Truncation = Literal["right", "left", "error"]

_INLINE_CHARACTERS = 20_000
"""Up to here tokenising takes about a millisecond and stays on the loop; a thread hand-off would cost more than it frees."""


@dataclass(frozen=True, slots=True)
class ViewChoice:
    """A view as asked for: what is None is the trunk's own habit."""

    pooling: Literal["mean", "cls", "max", "mean_max", "sep", "tokens"] | None = None
    layer: int | None = None
    normalize: bool | None = None
    dims: int = 0


@dataclass(frozen=True, slots=True)
class EmbedCall:
    """One request. *inputs* are texts or token ids with their special tokens; *deadline* is of `time.monotonic`."""

    inputs: Sequence[str | Sequence[int]]
    deadline: float
    trunk: str = ""
    views: Sequence[ViewChoice] = ()
    truncation: Truncation = "right"
    is_bulk: bool = False
    trunk_fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class ViewVectors:
    """One view of all inputs: float32 [inputs, width], or for tokens [sum(row_tokens), width]."""

    array: FloatArray
    row_tokens: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class EmbedAnswer:
    """What a request gets, in the order of its inputs and views."""

    trunk: TrunkSpec
    views: list[ViewVectors]
    num_tokens: list[int]
    truncated: list[bool]
    timings: Timings


@dataclass(frozen=True, slots=True)
class InferLimits:
    """*max_request_inputs* is the most inputs one call may carry; *max_characters* the most of one text."""

    max_request_inputs: int = 1_024
    max_characters: int = 1_000_000


@dataclass(frozen=True, slots=True)
class Tokenized:
    """One input as token ids: how many, whether some were dropped, and how long that took."""

    num_tokens: int
    truncated: bool
    seconds: float


class InputWaiter(Waiter, Protocol):
    """Who waits for one input of `Infer.embed_each`."""

    def begin(self, trunk: TrunkSpec, views: tuple[View, ...], tokenized: Tokenized) -> None:
        """The input is about to be queued for *trunk*, to be read by *views*."""
        ...


class HostedTrunk:
    """A trunk and what serves it."""

    def __init__(self, backend: Backend, limits: QueueLimits, telemetry: Telemetry, *, cache_bytes: int = 0) -> None:
        self.spec: TrunkSpec = backend.trunk
        self.engine: EngineSpec = backend.engine
        self.batcher = Batcher(backend, limits, telemetry)
        self.reuse = Reuse(self.batcher, VectorCache(cache_bytes), telemetry)
        self.encoder = TextEncoder(self.spec.tokenizer_json, max_tokens=self.spec.max_tokens, prompt=self.spec.prompt)


class Infer:
    """All trunks of this service, by name; the first is the default."""

    def __init__(self, trunks: Sequence[HostedTrunk], limits: InferLimits, telemetry: Telemetry) -> None:
        self.limits = limits
        self.trunks = {trunk.spec.name: trunk for trunk in trunks}
        self._default = trunks[0]
        self._telemetry = telemetry

    def trunk(self, name: str) -> HostedTrunk:
        """The trunk called *name*, or the default one for "".

        Raises:
            UnknownTrunk: there is none of that name.
        """
        if not name:
            return self._default
        try:
            return self.trunks[name]
        except KeyError:
            raise UnknownTrunk(f"no such trunk; this service has: {', '.join(sorted(self.trunks))}") from None

    async def embed(self, call: EmbedCall) -> EmbedAnswer:
        """Answer *call*, all of it or with an `EmbedError`. Equal inputs go through the trunk once."""
        started = time.monotonic()
        try:
            answer = await self._embed(call, started)
        except EmbedError as error:
            self._telemetry.request_ended(error.code, len(call.inputs), None)
            raise
        except asyncio.CancelledError:
            self._telemetry.request_ended("cancelled", len(call.inputs), None)
            raise
        self._telemetry.request_ended("ok", len(call.inputs), answer.timings)
        return answer

    async def _embed(self, call: EmbedCall, started: float) -> EmbedAnswer:
        trunk = self.trunk(call.trunk)
        self._check(call, trunk.spec)
        views = tuple(_resolve(view, trunk) for view in call.views or (ViewChoice(),))
        encoded = await self._encode(call, trunk)
        tokenization = time.monotonic() - started
        rows = [Row(tuple(item.ids), views) for item in encoded]
        outcome = await trunk.reuse.run(rows, deadline=call.deadline, is_bulk=call.is_bulk)
        return EmbedAnswer(
            trunk=trunk.spec,
            views=[gather([vectors[index] for vectors in outcome.vectors], view) for index, view in enumerate(views)],
            num_tokens=[len(item.ids) for item in encoded],
            truncated=[item.truncated for item in encoded],
            timings=Timings(tokenization, outcome.queue_seconds, outcome.inference_seconds, time.monotonic() - started),
        )

    async def embed_each(self, call: EmbedCall, deadlines: Sequence[float], waiters: "Sequence[InputWaiter]") -> None:
        """Queue each input of *call* on its own, by its own deadline; its waiter is told what becomes of it. Never raises."""
        started = time.monotonic()
        try:
            trunk = self.trunk(call.trunk)
            self._check(call, trunk.spec)
            views = tuple(_resolve(view, trunk) for view in call.views or (ViewChoice(),))
        except EmbedError as error:
            for waiter in waiters:
                waiter.fail(error)
            return
        for value, deadline, waiter in zip(call.inputs, deadlines, waiters, strict=True):
            try:
                encoded = (await self._encode(replace(call, inputs=(value,)), trunk))[0]
                ids = tuple(encoded.ids)
                waiter.begin(trunk.spec, views, Tokenized(len(ids), encoded.truncated, time.monotonic() - started))
                if not waiter.is_settled:
                    trunk.reuse.admit([Entry(ids, views, waiter, 0, started, deadline, call.is_bulk)])
            except EmbedError as error:
                waiter.fail(error)

    def _check(self, call: EmbedCall, spec: TrunkSpec) -> None:
        if not call.inputs:
            raise InvalidInput("there are no inputs")
        if len(call.inputs) > self.limits.max_request_inputs:
            raise InvalidInput(f"{len(call.inputs)} inputs are more than the {self.limits.max_request_inputs} of one call")
        if call.trunk_fingerprint and call.trunk_fingerprint != spec.fingerprint:
            raise WrongTrunk(f"these token ids were made for another trunk; trunk {spec.name!r} is {spec.fingerprint}")

    async def _encode(self, call: EmbedCall, trunk: HostedTrunk) -> list[Encoded]:
        texts = {index: text for index, text in enumerate(call.inputs) if isinstance(text, str)}
        self._check_texts(texts)
        encoded = await self._tokenize(list(texts.values()), call.truncation, trunk)
        by_index = dict(zip(texts, encoded, strict=True))
        _check_not_empty(by_index, call.truncation, trunk.spec)
        return [
            by_index[index] if isinstance(value, str) else _checked_ids(index, value, trunk.spec)
            for index, value in enumerate(call.inputs)
        ]

    def _check_texts(self, texts: dict[int, str]) -> None:
        for index, text in texts.items():
            if not text:
                raise InvalidInput(f"input {index} is empty")
            if len(text) > self.limits.max_characters:
                raise InvalidInput(f"input {index} is longer than {self.limits.max_characters} characters")

    async def _tokenize(self, texts: list[str], truncation: Truncation, trunk: HostedTrunk) -> list[Encoded]:
        side: Literal["right", "left"] = "left" if truncation == "left" else "right"
        if sum(map(len, texts)) <= _INLINE_CHARACTERS:
            return trunk.encoder.encode(texts, side=side)
        return await asyncio.to_thread(trunk.encoder.encode, texts, side=side)


def _check_not_empty(encoded: dict[int, Encoded], truncation: Truncation, spec: TrunkSpec) -> None:
    for index, item in encoded.items():
        if len(item.ids) <= 2:
            raise InvalidInput(f"input {index} is empty once white space and control characters are gone")
        if item.truncated and truncation == "error":
            raise InvalidInput(f"input {index} has more than the {spec.max_tokens} tokens of trunk {spec.name!r}")


def _checked_ids(index: int, ids: Sequence[int], spec: TrunkSpec) -> Encoded:
    if len(ids) < 1:
        raise InvalidInput(f"input {index} has no token ids")
    if len(ids) > spec.max_tokens:
        raise InvalidInput(f"input {index} has {len(ids)} token ids, more than the {spec.max_tokens} of trunk {spec.name!r}")
    if max(ids) >= spec.vocab_size or min(ids) < 0:
        raise InvalidInput(f"input {index} has a token id outside the vocabulary of {spec.vocab_size}")
    return Encoded(list(ids), truncated=False)


def _resolve(choice: ViewChoice, trunk: HostedTrunk) -> View:
    habit = trunk.spec.default_view
    layer = habit.layer if choice.layer is None else choice.layer
    if layer >= 0:
        layer -= trunk.spec.num_layers + 1
    if layer not in trunk.engine.layers:
        offered = ", ".join(map(str, trunk.engine.layers))
        raise InvalidInput(f"trunk {trunk.spec.name!r} was started for the layers {offered}, not for the one asked for")
    pooling = choice.pooling or habit.pooling
    width = trunk.spec.width * (2 if pooling == "mean_max" else 1)
    if choice.dims > width:
        raise InvalidInput(f"{choice.dims} dims are more than the {width} of this view")
    normalize = habit.normalize if choice.normalize is None else choice.normalize
    return View(pooling, layer, normalize, choice.dims)


def gather(arrays: Sequence[FloatArray], view: View) -> ViewVectors:
    """The rows of one *view* as one array."""
    if view.pooling == "tokens":
        return ViewVectors(np.concatenate(arrays), tuple(len(array) for array in arrays))
    return ViewVectors(np.stack(arrays))
