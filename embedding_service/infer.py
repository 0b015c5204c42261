"""Infer: from a request to vectors. Check, tokenise, admit, await; it knows neither gRPC nor HTTP nor any model library."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, Protocol

import numpy as np

from clients.wire.text import TextEncoder
from embedding_service.backend import Backend, EngineSpec, FloatArray, TrunkSpec, View
from embedding_service.batching import Batcher, PassSlots, Row, Waiter
from embedding_service.errors import EmbedError, InvalidInput, UnknownTrunk, WrongTrunk
from embedding_service.queue import Entry, QueueLimits
from embedding_service.reuse import Reuse, VectorCache
from embedding_service.telemetry import Telemetry, Timings, TrunkTelemetry
from embedding_service.tokenization import Input, InputLimits, InputTokenizer, TokenizedInput, Truncation
from embedding_service.windows import WindowsWaiter, join_windows, window_views


@dataclass(frozen=True, slots=True)
class ViewChoice:
    """A view as asked for: what is None is the trunk's own habit."""

    pooling: Literal["mean", "cls", "max", "mean_max", "sep", "tokens"] | None = None
    layer: int | None = None
    normalize: bool | None = None
    dims: int = 0


@dataclass(frozen=True, slots=True)
class EmbedCall:
    """One request. *deadline* is of `time.monotonic`."""

    inputs: Sequence[Input]
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
class InputFacts:
    """What became of one input: *num_tokens* went through the trunk in *num_windows* rows."""

    num_tokens: int
    truncated: bool = False
    num_windows: int = 1


@dataclass(frozen=True, slots=True)
class EmbedAnswer:
    """What a request gets, in the order of its inputs and views."""

    trunk: TrunkSpec
    views: list[ViewVectors]
    inputs: list[InputFacts]
    timings: Timings


class InputWaiter(Waiter, Protocol):
    """Who waits for one input of `Infer.embed_each`."""

    def begin(self, trunk: TrunkSpec, views: tuple[View, ...], facts: InputFacts, tokenization_seconds: float) -> None:
        """The input is about to be queued for *trunk*, to be read by *views*."""
        ...


class HostedTrunk:
    """A trunk and what serves it."""

    def __init__(
        self,
        backend: Backend,
        limits: QueueLimits,
        telemetry: TrunkTelemetry,
        *,
        slots: PassSlots | None = None,
        cache_bytes: int = 0,
    ) -> None:
        self.spec: TrunkSpec = backend.trunk
        self.engine: EngineSpec = backend.engine
        self.batcher = Batcher(backend, limits, telemetry, slots)
        self.reuse = Reuse(self.batcher, VectorCache(cache_bytes), telemetry)
        self.encoder = TextEncoder(self.spec.tokenizer_json, max_tokens=self.spec.max_tokens, prompt=self.spec.prompt)
        self.tokenizer = InputTokenizer(self.spec, self.encoder)


class Infer:
    """All trunks of this service, by name; the first is the default."""

    def __init__(self, trunks: Sequence[HostedTrunk], limits: InputLimits, telemetry: Telemetry) -> None:
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
        inputs = await trunk.tokenizer.tokenize(call.inputs, call.truncation, self.limits)
        tokenization = time.monotonic() - started
        rows = [row for item in inputs for row in _rows(item, views)]
        outcome = await trunk.reuse.run(rows, deadline=call.deadline, is_bulk=call.is_bulk)
        vectors = _joined(outcome.vectors, inputs, views)
        return EmbedAnswer(
            trunk=trunk.spec,
            views=[gather([row[index] for row in vectors], view) for index, view in enumerate(views)],
            inputs=[_facts(item) for item in inputs],
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
                [item] = await trunk.tokenizer.tokenize((value,), call.truncation, self.limits)
                rows = _rows(item, views)
                waiter.begin(trunk.spec, views, _facts(item), time.monotonic() - started)
                if waiter.is_settled:
                    continue
                ticket = waiter if len(rows) == 1 else WindowsWaiter(waiter, _weights(item), views)
                trunk.reuse.admit(
                    [
                        Entry(row.token_ids, row.views, ticket, index, started, deadline, call.is_bulk, row.pair_at)
                        for index, row in enumerate(rows)
                    ]
                )
            except EmbedError as error:
                waiter.fail(error)

    def _check(self, call: EmbedCall, spec: TrunkSpec) -> None:
        if not call.inputs:
            raise InvalidInput("there are no inputs")
        if len(call.inputs) > self.limits.max_request_inputs:
            raise InvalidInput(f"{len(call.inputs)} inputs are more than the {self.limits.max_request_inputs} of one call")
        if call.trunk_fingerprint and call.trunk_fingerprint != spec.fingerprint:
            raise WrongTrunk(f"these token ids were made for another trunk; trunk {spec.name!r} is {spec.fingerprint}")


def _rows(item: TokenizedInput, views: tuple[View, ...]) -> list[Row]:
    """The rows *item* goes through the trunk in.

    Raises:
        InvalidInput: it takes several, and a view cannot be pooled over them.
    """
    asked = views if len(item.windows) == 1 else window_views(views)
    return [Row(tuple(window.ids), asked, window.pair_at) for window in item.windows]


def _weights(item: TokenizedInput) -> list[int]:
    return [len(window.ids) for window in item.windows]


def _joined(rows: list[list[FloatArray]], inputs: list[TokenizedInput], views: tuple[View, ...]) -> list[list[FloatArray]]:
    """One list of vectors an input, from one a row."""
    if len(rows) == len(inputs):
        return rows
    stops = list(accumulate(len(item.windows) for item in inputs))
    return [
        rows[stop - 1] if len(item.windows) == 1 else join_windows(rows[stop - len(item.windows) : stop], _weights(item), views)
        for item, stop in zip(inputs, stops, strict=True)
    ]


def _facts(item: TokenizedInput) -> InputFacts:
    return InputFacts(item.num_tokens, item.truncated, len(item.windows))


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
