"""Infer: from a request to vectors. Check, tokenise, admit, await; it knows neither gRPC nor HTTP nor any model library."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Final, Protocol

import numpy as np

from clients.wire.chain import NO_STEPS, Chain
from clients.wire.text import TextEncoder
from embedding_service.backend import Backend, EngineSpec, FloatArray, TrunkSpec, View
from embedding_service.backend.tables import TableSpec
from embedding_service.batching import Batcher, PassSlots, Row, Waiter
from embedding_service.errors import EmbedError, InvalidInput, Overloaded, UnknownTrunk, WrongTrunk
from embedding_service.hosted_table import HostedTable
from embedding_service.models.fingerprint import fingerprint_after
from embedding_service.queue import Entry, QueueLimits
from embedding_service.reuse import Reuse, SharedVectors, VectorCache
from embedding_service.telemetry import Telemetry, Timings, TrunkTelemetry
from embedding_service.tokenization import (
    Input,
    InputFacts,
    InputLimits,
    InputTokenizer,
    TokenizedInput,
    Truncation,
    ViewChoice,
)
from embedding_service.windows import WindowsWaiter, join_windows, window_views

MAX_VECTOR_BYTES: Final = 60 * 2**20
"""Of one answer, by default: clients take messages of 64 MiB."""

_BYTES_OF_NUMBER: Final = 4


@dataclass(frozen=True, slots=True)
class EmbedCall:
    """One request. *deadline* is of `time.monotonic`; all vectors together are to be *max_vector_bytes* at most."""

    inputs: Sequence[Input]
    deadline: float
    trunk: str = ""
    views: Sequence[ViewChoice] = ()
    truncation: Truncation = "right"
    is_bulk: bool = False
    trunk_fingerprint: str = ""
    prompt_name: str = ""
    max_vector_bytes: int = MAX_VECTOR_BYTES


@dataclass(frozen=True, slots=True)
class ViewVectors:
    """One view of all inputs: float32 [inputs, width], or for tokens [sum(row_tokens), width]."""

    array: FloatArray
    row_tokens: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class EmbedAnswer:
    """What a request gets, in the order of its inputs and views."""

    trunk: TrunkSpec | TableSpec
    views: list[ViewVectors]
    inputs: list[InputFacts]
    timings: Timings

    @property
    def num_tokens(self) -> int:
        """Of all inputs."""
        return sum(item.num_tokens for item in self.inputs)


class InputWaiter(Waiter, Protocol):
    """Who waits for one input of `Infer.embed_each`."""

    def begin(
        self, trunk: TrunkSpec | TableSpec, views: tuple[View, ...], facts: InputFacts, tokenization_seconds: float
    ) -> None:
        """The input is about to be queued for *trunk*, to be read by *views*."""
        ...


class HostedTrunk:
    """A trunk and what serves it. *chain* is what every text goes through first; it is part of what the trunk is."""

    def __init__(
        self,
        backend: Backend,
        limits: QueueLimits,
        telemetry: TrunkTelemetry,
        *,
        slots: PassSlots | None = None,
        cache_bytes: int = 0,
        shared: SharedVectors | None = None,
        chain: Chain = NO_STEPS,
        quick_tokens: bool = False,
    ) -> None:
        self.chain = chain
        self.spec: TrunkSpec = replace(backend.trunk, fingerprint=fingerprint_after(chain, backend.trunk.fingerprint))
        self.engine: EngineSpec = backend.engine
        self.batcher = Batcher(backend, limits, telemetry, slots)
        self.reuse = Reuse(self.batcher, VectorCache(cache_bytes), telemetry, shared)
        self.encoder = TextEncoder(
            self.spec.tokenizer_json,
            max_tokens=self.spec.max_tokens,
            prompt=self.spec.prompt,
            chain=chain,
            quick_tokens=quick_tokens,
        )
        self.tokenizer = InputTokenizer(self.spec, self.encoder)

    def check_room(self, *, is_bulk: bool) -> None:
        """Refuse what a full queue would refuse anyway; where a cache may know the answer, only the look-up can tell.

        Raises:
            Overloaded: see `Batcher.check_room`.
        """
        if not self.reuse.remembers:
            self.batcher.check_room([], is_bulk=is_bulk)

    def refusal(self) -> Overloaded | None:
        """What any interactive caller would be refused with; None where one may go in, or a cache may know the answer."""
        return None if self.reuse.remembers else self.batcher.refusal()


class Infer:
    """All trunks and tables of this service, by name; the first is the default."""

    def __init__(self, hosted: Sequence[HostedTrunk | HostedTable], limits: InputLimits, telemetry: Telemetry) -> None:
        self.limits = limits
        self.hosted = {one.spec.name: one for one in hosted}
        self._default = hosted[0]
        self._telemetry = telemetry

    def find(self, name: str) -> HostedTrunk | HostedTable:
        """The trunk or table called *name*, or the default one for "".

        Raises:
            UnknownTrunk: there is none of that name.
        """
        if not name:
            return self._default
        try:
            return self.hosted[name]
        except KeyError:
            raise UnknownTrunk(f"no such trunk; this service has: {', '.join(sorted(self.hosted))}") from None

    def trunk(self, name: str) -> HostedTrunk:
        """The trunk called *name*, or the default one for "".

        Raises:
            UnknownTrunk: there is none of that name.
            InvalidInput: it is a table.
        """
        found = self.find(name)
        if isinstance(found, HostedTable):
            raise InvalidInput(f"{found.spec.name!r} is a table: it has no tokens")
        return found

    def check_room(self, call: EmbedCall) -> None:
        """Refuse *call* at once where its trunk's queue is full, as `embed` would after more work.

        Raises:
            Overloaded: it is.
            UnknownTrunk: there is no such trunk.
        """
        found = self.find(call.trunk)
        if isinstance(found, HostedTrunk):
            try:
                found.check_room(is_bulk=call.is_bulk)
            except EmbedError as error:
                self._telemetry.request_ended(error.code, len(call.inputs), None)
                raise

    def refused_to_all(self) -> Overloaded | None:
        """What any interactive call would be refused with now, whatever it asks for, counted; None where one may go in."""
        refusals = [None if isinstance(one, HostedTable) else one.refusal() for one in self.hosted.values()]
        if None in refusals:
            return None
        self._telemetry.request_ended(Overloaded.code, 0, None)
        return refusals[0]

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
        trunk = self.find(call.trunk)
        self._check(call, trunk.spec)
        if isinstance(trunk, HostedTable):
            return await self._look_up(call, trunk, started)
        trunk.check_room(is_bulk=call.is_bulk)
        views = tuple(_resolve(view, trunk) for view in call.views or (ViewChoice(),))
        inputs = await trunk.tokenizer.tokenize(
            call.inputs, call.truncation, self.limits, call.prompt_name, deadline=call.deadline
        )
        tokenization = time.monotonic() - started
        _check_size(inputs, views, trunk.spec.width, call.max_vector_bytes)
        rows = [row for item in inputs for row in _rows(item, views)]
        outcome = await trunk.reuse.run(rows, deadline=call.deadline, is_bulk=call.is_bulk)
        vectors = _joined(outcome.vectors, inputs, views)
        return EmbedAnswer(
            trunk=trunk.spec,
            views=[gather([row[index] for row in vectors], view) for index, view in enumerate(views)],
            inputs=[_facts(item) for item in inputs],
            timings=Timings(tokenization, outcome.queue_seconds, outcome.inference_seconds, time.monotonic() - started),
        )

    async def _look_up(self, call: EmbedCall, table: HostedTable, started: float) -> EmbedAnswer:
        views = [table.resolve(choice) for choice in call.views or (ViewChoice(),)]
        vectors, facts = await table.look_up(call.inputs, views, self.limits, call.deadline)
        seconds = time.monotonic() - started
        return EmbedAnswer(
            trunk=table.spec,
            views=[gather([row[index] for row in vectors], view) for index, view in enumerate(views)],
            inputs=facts,
            timings=Timings(0.0, 0.0, seconds, seconds),
        )

    async def embed_each(self, call: EmbedCall, deadlines: Sequence[float], waiters: "Sequence[InputWaiter]") -> None:
        """Queue each input of *call* on its own, by its own deadline; its waiter is told what becomes of it. Never raises."""
        try:
            found = self.find(call.trunk)
            self._check(call, found.spec)
            if isinstance(found, HostedTable):
                await self._look_up_each(found, call, deadlines, waiters)
            else:
                await self._queue_each(found, call, deadlines, waiters)
        except EmbedError as error:
            for waiter in waiters:
                waiter.fail(error)

    async def _queue_each(
        self, trunk: HostedTrunk, call: EmbedCall, deadlines: Sequence[float], waiters: "Sequence[InputWaiter]"
    ) -> None:
        started = time.monotonic()
        views = tuple(_resolve(view, trunk) for view in call.views or (ViewChoice(),))
        for value, deadline, waiter in zip(call.inputs, deadlines, waiters, strict=True):
            try:
                [item] = await trunk.tokenizer.tokenize(
                    (value,), call.truncation, self.limits, call.prompt_name, deadline=deadline
                )
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

    async def _look_up_each(
        self, table: HostedTable, call: EmbedCall, deadlines: Sequence[float], waiters: "Sequence[InputWaiter]"
    ) -> None:
        views = tuple(table.resolve(choice) for choice in call.views or (ViewChoice(),))
        for value, deadline, waiter in zip(call.inputs, deadlines, waiters, strict=True):
            started = time.monotonic()
            try:
                [vectors], [facts] = await table.look_up((value,), views, self.limits, deadline)
            except EmbedError as error:
                waiter.fail(error)
            else:
                waiter.begin(table.spec, views, facts, 0.0)
                waiter.put(0, vectors, 0.0, time.monotonic() - started)

    def _check(self, call: EmbedCall, spec: TrunkSpec | TableSpec) -> None:
        if not call.inputs:
            raise InvalidInput("there are no inputs")
        if len(call.inputs) > self.limits.max_request_inputs:
            raise InvalidInput(f"{len(call.inputs)} inputs are more than the {self.limits.max_request_inputs} of one call")
        if call.trunk_fingerprint and call.trunk_fingerprint != spec.fingerprint:
            raise WrongTrunk(f"these token ids were made for another trunk; trunk {spec.name!r} is {spec.fingerprint}")


def _check_size(inputs: Sequence[TokenizedInput], views: tuple[View, ...], width: int, max_bytes: int) -> None:
    """InvalidInput where the vectors of all tokens would be too much for one answer; others are bounded by how many there are."""
    of_tokens = [view for view in views if view.pooling == "tokens"]
    if of_tokens:
        num_tokens = sum(item.num_tokens for item in inputs)
        num_bytes = num_tokens * sum(_BYTES_OF_NUMBER * (view.dims or width) for view in of_tokens)
        if num_bytes > max_bytes:
            said = f"the vectors of {num_tokens} tokens are {num_bytes:,} bytes, more than the {max_bytes:,} of one answer"
            raise InvalidInput(f"{said}; send fewer texts at once")


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
    return ViewVectors(arrays[0][np.newaxis] if len(arrays) == 1 else np.stack(arrays))
