"""The heart: texts to labels. Embed once, ask all heads in parallel, name what they say. Knows neither HTTP nor gRPC."""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from clients import Deadline, FailedPrecondition, InvalidRequest, InvalidResponse, NotFound, ServerFault, TrunklineError
from clients.wire.catalogue import Manifest, View, views_of
from clients.wire.text import Encoded
from gateway.ports import CatalogueSource, Embedder, FloatArray, LiveHead, LiveTrunk, Predictor, Rows, Trunks
from gateway.preprocess import encode_texts

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Classification:
    """What to do: *heads* None means the default ones; *with_scores*: every label's score, the *top_k* best of them."""

    texts: Sequence[str]
    heads: Sequence[str] | None = None
    with_scores: bool = False
    top_k: int | None = None


@dataclass(frozen=True, slots=True)
class HeadAnswer:
    """One head on one text."""

    label: str | None
    score: float
    version: int
    labels: list[str] | None = None
    scores: dict[str, float] | None = None


HeadOutcome = list[HeadAnswer] | TrunklineError
"""One head on all texts, or why it has no answer."""


@dataclass(slots=True)
class StageTimings:
    """Seconds of each stage."""

    preprocess: float = 0.0
    embed: float = 0.0
    heads: float = 0.0
    total: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """All texts by all heads."""

    trunk: LiveTrunk
    encoded: list[Encoded]
    outcomes: dict[str, HeadOutcome]
    timings: StageTimings = field(default_factory=StageTimings)


class Pipeline:
    """Answers classifications; holds nothing of any request."""

    def __init__(
        self, trunks: Trunks, embedder: Embedder, predictor: Predictor, catalogue: CatalogueSource, *, head_timeout: float
    ) -> None:
        self._trunks = trunks
        self._embedder = embedder
        self._predictor = predictor
        self._catalogue = catalogue
        self._head_timeout = head_timeout

    async def classify(self, request: Classification, deadline: Deadline) -> Answer:
        """Answer *request* within *deadline*.

        Raises:
            TrunklineError: nothing can be answered. A single head's failure is that head's outcome instead.
        """
        try:
            return await self._classify(request, deadline)
        except FailedPrecondition:
            # The embedding service has another trunk now than the token ids were made for.
            self._trunks.forget()
            return await self._classify(request, deadline)

    async def _classify(self, request: Classification, deadline: Deadline) -> Answer:
        timings = StageTimings()
        started = time.perf_counter()
        trunk = await self._trunks.trunk(deadline)
        heads = readable(choose(self._catalogue.heads(trunk.fingerprint), request.heads), trunk)
        encoded = await encode_texts(trunk.encoder, request.texts)
        timings.preprocess = time.perf_counter() - started
        views = tuple(dict.fromkeys(view for head in heads.values() if not head.refused for view in views_of(head.manifest)))
        embeddings = await self._embed(trunk, encoded, views, deadline)
        embedded = time.perf_counter()
        timings.embed = embedded - started - timings.preprocess
        outcomes = await self._ask(heads, embeddings, request, deadline)
        finished = time.perf_counter()
        timings.heads, timings.total = finished - embedded, finished - started
        return Answer(trunk, encoded, outcomes, timings)

    async def _embed(
        self, trunk: LiveTrunk, encoded: list[Encoded], views: tuple[View, ...], deadline: Deadline
    ) -> dict[View, Rows]:
        if not views:
            return {}
        arrays = await self._embedder.embed(trunk, encoded, views, deadline)
        return dict(zip(views, arrays, strict=True))

    async def _ask(
        self, heads: dict[str, LiveHead], embeddings: dict[View, Rows], request: Classification, deadline: Deadline
    ) -> dict[str, HeadOutcome]:
        own = deadline.at if deadline.remaining() <= self._head_timeout else Deadline.after(self._head_timeout).at
        calls = [self._one(name, head, embeddings, request, Deadline(own)) for name, head in heads.items()]
        # A single call needs no task of its own.
        outcomes = [await calls[0]] if len(calls) == 1 else await asyncio.gather(*calls)
        return dict(zip(heads, outcomes, strict=True))

    async def _one(
        self, name: str, head: LiveHead, embeddings: dict[View, Rows], request: Classification, deadline: Deadline
    ) -> HeadOutcome:
        if head.refused:
            return FailedPrecondition(head.refused)
        try:
            scores = await self._predictor.predict(head.manifest, rows_for(head.manifest, embeddings), deadline)
            return read_scores(head.manifest, check_scores(scores, head.manifest, len(request.texts)), request)
        except TrunklineError as error:
            return named(error, name)
        except Exception as error:  # whatever it was, the other heads answer
            _log.exception("head %r failed unexpectedly", name)
            return named(ServerFault(type(error).__name__), name)


def choose(heads: dict[str, LiveHead], names: Sequence[str] | None) -> dict[str, LiveHead]:
    """The heads asked for; all default ones when none are named.

    Raises:
        NotFound: one is unknown; the message names the known ones.
        InvalidRequest: an empty list.
    """
    if names is None:
        return {name: head for name, head in heads.items() if head.is_default}
    if not names:
        raise InvalidRequest("heads is empty; leave it out for the default heads")
    if not heads.keys() >= set(names):
        known = ", ".join(sorted(heads)[:50]) or "none yet"
        raise NotFound(f"a head that was asked for is unknown; known heads: {known}")
    return {name: heads[name] for name in names}


def readable(heads: dict[str, LiveHead], trunk: LiveTrunk) -> dict[str, LiveHead]:
    """*heads*, those refused that read a layer *trunk* does not offer: asked for it, the trunk would answer nobody."""
    return {name: head if head.refused else _judged(name, head, trunk) for name, head in heads.items()}


def _judged(name: str, head: LiveHead, trunk: LiveTrunk) -> LiveHead:
    missing = [str(view.layer) for view in views_of(head.manifest) if view.layer not in trunk.layers]
    if not missing:
        return head
    said = f"head {name!r} reads layer {', '.join(missing)}, which the embedding service does not compute"
    return replace(head, refused=f"{said}; start it with --layers")


def rows_for(manifest: Manifest, embeddings: dict[View, Rows]) -> Rows:
    """What a head reads of each text: its view, or that at several layers, one behind the other."""
    views = views_of(manifest)
    if len(views) == 1:
        return embeddings[views[0]]
    return [np.concatenate(parts, axis=-1) for parts in zip(*(embeddings[view] for view in views), strict=True)]


def named(error: TrunklineError, head: str) -> TrunklineError:
    """*error* as that of one head, in words that do not tell where it lives."""
    reasons = {
        "deadline_exceeded": "did not answer in time",
        "unavailable": "is not available",
        "overloaded": "is overloaded",
        "not_found": "is not loaded in the head server",
        "invalid_response": "answered something that is not its contract",
    }
    said = type(error)(f"head {head!r} {reasons.get(error.code, 'failed')}", retry_after=error.retry_after)
    said.__cause__ = error
    return said


def check_scores(scores: FloatArray, manifest: Manifest, num_texts: int) -> FloatArray:
    """*scores*, when they are float32 [texts, labels] and finite; InvalidResponse otherwise."""
    if scores.shape != (num_texts, len(manifest.labels)) or scores.dtype != np.float32 or not np.isfinite(scores).all():
        raise InvalidResponse("the scores are not finite float32 numbers, one for each text and label")
    return scores


def read_scores(manifest: Manifest, scores: FloatArray, request: Classification) -> list[HeadAnswer]:
    """Ids to labels, by *manifest*."""
    best = scores.argmax(axis=1).tolist()
    return [
        HeadAnswer(
            label=manifest.labels[index],
            score=float(row[index]),
            version=manifest.version,
            labels=_passing(manifest, row) if manifest.task == "multi_label" else None,
            scores=_ranked(manifest, row, request.top_k) if request.with_scores or request.top_k else None,
        )
        for index, row in zip(best, scores, strict=True)
    ]


def _passing(manifest: Manifest, row: FloatArray) -> list[str]:
    thresholds = manifest.thresholds or (0.5,) * len(manifest.labels)
    return [label for label, score, least in zip(manifest.labels, row, thresholds, strict=True) if score >= least]


def _ranked(manifest: Manifest, row: FloatArray, top_k: int | None) -> dict[str, float]:
    order = np.argsort(-row, kind="stable")[:top_k].tolist()
    return {manifest.labels[index]: float(row[index]) for index in order}
