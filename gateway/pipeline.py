"""The heart: texts to labels. Embed once, ask all heads in parallel, name what they say. Knows neither HTTP nor gRPC."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from clients import Deadline, FailedPrecondition, TrunklineError
from clients.wire.catalogue import Manifest, View, views_of
from clients.wire.text import Encoded
from gateway.answers import of_texts, read_scores
from gateway.classification import Answer, Classification, HeadOutcome, StageTimings, TextFacts
from gateway.fanout import FanOut, HeadCall, HeadScores
from gateway.plan import Plan, Planner, views_for
from gateway.ports import CatalogueSource, Embedder, FloatArray, LiveTrunk, Outputs, Rows, Trunks
from gateway.preprocess import Prepared, prepare, reading_of


class Pipeline:
    """Answers classifications; holds nothing of any request."""

    def __init__(
        self, trunks: Trunks, embedder: Embedder, fan_out: FanOut, catalogue: CatalogueSource, outputs: Outputs, planner: Planner
    ) -> None:
        self._trunks = trunks
        self._embedder = embedder
        self._fan_out = fan_out
        self._catalogue = catalogue
        self._outputs = outputs
        self._planner = planner

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
        plan = self._planner.plan(self._catalogue.catalogue, trunk, request)
        prepared = await prepare(trunk.encoder, request.texts, plan.readings, request.truncation)
        work = [self._look_up(manifest, prepared, request.may_reuse) for manifest in plan.versions]
        timings.preprocess = time.perf_counter() - started
        vectors = await self._embed(trunk, prepared.inputs, work, request, deadline)
        embedded = time.perf_counter()
        timings.embed = embedded - started - timings.preprocess
        scores = await self._ask(work, vectors, prepared.inputs, deadline)
        outcomes = _outcomes(plan, work, scores, request)
        finished = time.perf_counter()
        timings.heads, timings.total = finished - embedded, finished - started
        return Answer(trunk, _facts(prepared.texts, work), outcomes, timings)

    def _look_up(self, manifest: Manifest, prepared: Prepared, may_reuse: bool) -> "_Work":
        pieces = prepared.places[reading_of(manifest)]
        places = list(dict.fromkeys(chain.from_iterable(pieces)))
        known: Sequence[FloatArray | None] = [None] * len(places)
        if may_reuse:
            known = self._outputs.find(manifest, [prepared.inputs[place] for place in places])
        found = {place: row for place, row in zip(places, known, strict=True) if row is not None}
        return _Work(manifest, pieces, found, [place for place in places if place not in found])

    async def _embed(
        self, trunk: LiveTrunk, inputs: Sequence[Encoded], work: Sequence["_Work"], request: Classification, deadline: Deadline
    ) -> "_Vectors":
        """What the trunk says of every input that some version must still read: one call, whatever views they read."""
        busy = [one for one in work if one.missing]
        if not busy:
            return _Vectors({}, {})
        needed = sorted({place for one in busy for place in one.missing})
        views = views_for([one.manifest for one in busy])
        arrays = await self._embedder.embed(trunk, [inputs[place] for place in needed], views, deadline, request.priority)
        return _Vectors(dict(zip(views, arrays, strict=True)), {place: row for row, place in enumerate(needed)})

    async def _ask(
        self, work: Sequence["_Work"], vectors: "_Vectors", inputs: Sequence[Encoded], deadline: Deadline
    ) -> list[HeadScores]:
        """The scores of each version on its `_Work.places`."""
        busy = [one for one in work if one.missing]
        calls = [HeadCall(one.manifest, vectors.rows(one.manifest, one.missing)) for one in busy]
        answered = iter(await self._fan_out.ask(calls, deadline) if calls else [])
        scores: list[HeadScores] = []
        for one in work:
            computed = next(answered) if one.missing else np.empty((0, len(one.manifest.labels)), np.float32)
            if not isinstance(computed, TrunklineError):
                if one.missing:
                    self._outputs.keep(one.manifest, [inputs[place] for place in one.missing], computed)
                computed = one.joined(computed)
            scores.append(computed)
        return scores


@dataclass(frozen=True, slots=True)
class _Work:
    """What one version has to do: *pieces* are the inputs of each text, *found* what is known of them, *missing* the others."""

    manifest: Manifest
    pieces: list[tuple[int, ...]]
    found: dict[int, FloatArray]
    missing: list[int]

    def joined(self, computed: FloatArray) -> FloatArray:
        """The scores of each text, *computed* being those of what was missing."""
        rows = {place: row for row, place in enumerate(self.missing)}
        scores = computed
        if self.found:
            rows |= {place: row for row, place in enumerate(self.found, len(rows))}
            scores = np.concatenate([computed, np.stack(list(self.found.values()))])
        return of_texts(scores, [[rows[place] for place in places] for places in self.pieces])


@dataclass(frozen=True, slots=True)
class _Vectors:
    """What the trunk said: for each view one array an input; *row_of* says which input is where."""

    of: dict[View, Rows]
    row_of: dict[int, int]

    def rows(self, manifest: Manifest, places: Sequence[int]) -> Rows:
        """What a head reads of each of *places*: its view, or that at several layers, one behind the other."""
        parts = [self.of[view] for view in views_of(manifest)]
        if len(places) != len(self.row_of):
            parts = [[part[self.row_of[place]] for place in places] for part in parts]
        return parts[0] if len(parts) == 1 else [np.concatenate(rows, axis=-1) for rows in zip(*parts, strict=True)]


def _outcomes(plan: Plan, work: Sequence[_Work], scores: Sequence[HeadScores], request: Classification) -> dict[str, HeadOutcome]:
    said = {(one.manifest.name, one.manifest.version): outcome for one, outcome in zip(work, scores, strict=True)}
    outcomes: dict[str, HeadOutcome] = {}
    for word, head in plan.heads.items():
        if head.refused:
            outcomes[word] = FailedPrecondition(head.refused)
            continue
        outcome = said[head.manifest.name, head.manifest.version]
        outcomes[word] = outcome if isinstance(outcome, TrunklineError) else read_scores(head.manifest, outcome, request)
    return outcomes


def _facts(texts: list[TextFacts], work: Sequence[_Work]) -> list[TextFacts]:
    """*texts*, those marked cached for which nothing was computed."""
    if not any(one.found for one in work):
        return texts
    return [
        replace(text, cached=all(place in one.found for one in work for place in one.pieces[index]))
        for index, text in enumerate(texts)
    ]
