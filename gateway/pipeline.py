"""The heart: texts to labels. Embed once, ask all heads in parallel, name what they say. Knows neither HTTP nor gRPC."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from clients import Deadline, FailedPrecondition, TrunklineError
from clients.wire.text import Encoded
from gateway.classification import Answer, Classification, HeadOutcome, StageTimings, TextFacts
from gateway.fanout import FanOut, HeadCall, HeadScores
from gateway.plan import Plan, Planner, check_size, views_for
from gateway.ports import (
    AnswerWatcher,
    CatalogueSource,
    Embedder,
    LiveTrunk,
    Outputs,
    Trunks,
)
from gateway.preprocess import Prepared, prepare, reading_of
from gateway.shadow import Shadows, runs_of
from gateway.vectors import Vectors
from gateway.work import Work, look_up


class Pipeline:
    """Answers classifications; holds nothing of any request.

    *watchers* are told what was answered; what runs in the shadow of a head is left to *shadows*.
    """

    def __init__(
        self,
        trunks: Trunks,
        embedder: Embedder,
        fan_out: FanOut,
        catalogue: CatalogueSource,
        outputs: Outputs,
        planner: Planner,
        shadows: Shadows | None = None,
        watchers: Sequence[AnswerWatcher] = (),
    ) -> None:
        self._trunks = trunks
        self._embedder = embedder
        self._fan_out = fan_out
        self._catalogue = catalogue
        self._outputs = outputs
        self._planner = planner
        self._shadows = shadows
        self._watchers = watchers

    async def classify(self, request: Classification, deadline: Deadline) -> Answer:
        """Answer *request* within *deadline*.

        Raises:
            TrunklineError: nothing can be answered. A single head's failure is that head's outcome instead.
        """
        started = time.perf_counter()
        trunk = await self._trunks.trunk(deadline)
        try:
            return await self._classify(trunk, request, deadline, started)
        except FailedPrecondition:
            # The embedding service has another trunk now than the token ids were made for.
            self._trunks.forget(trunk)
            return await self._classify(await self._trunks.trunk(deadline), request, deadline, started)

    async def _classify(self, trunk: LiveTrunk, request: Classification, deadline: Deadline, started: float) -> Answer:
        timings = StageTimings()
        plan = self._planner.plan(self._catalogue.catalogue, trunk, request)
        check_size(plan, request)
        prepared = await prepare(trunk.encoder, request.texts, plan.readings, request.truncation, deadline=deadline)
        work = look_up(self._outputs, plan, prepared, may_reuse=request.may_reuse)
        timings.preprocess = time.perf_counter() - started
        vectors = await self._embed(trunk, prepared.inputs, work, request, deadline)
        embedded = time.perf_counter()
        timings.embed = embedded - started - timings.preprocess
        scores = await self._ask(work, vectors, deadline)
        said = {one.version: self._said(one, computed) for one, computed in zip(work, scores, strict=True)}
        outcomes = _outcomes(plan, prepared, work, said, request)
        if plan.shadows and self._shadows is not None:
            for run in runs_of(plan, trunk, request, work, vectors, said):
                self._shadows.start(run)
        finished = time.perf_counter()
        timings.heads, timings.total = finished - embedded, finished - started
        return Answer(trunk, _facts(prepared.texts, work), outcomes, timings)

    async def _embed(
        self, trunk: LiveTrunk, inputs: Sequence[Encoded], work: Sequence[Work], request: Classification, deadline: Deadline
    ) -> Vectors:
        """What the trunk says of every input that some version must still read: one call, whatever views they read."""
        busy = [one for one in work if one.missing]
        if not busy:
            return Vectors({}, {})
        needed = sorted({place for one in busy for place in one.missing})
        views = views_for([one.manifest for one in busy])
        arrays = await self._embedder.embed(trunk, [inputs[place] for place in needed], views, deadline, request.priority)
        return Vectors(dict(zip(views, arrays, strict=True)), {place: row for row, place in enumerate(needed)})

    async def _ask(self, work: Sequence[Work], vectors: Vectors, deadline: Deadline) -> list[HeadScores]:
        """The scores of each version on its `Work.missing`."""
        busy = [one for one in work if one.missing]
        calls = [HeadCall(one.manifest, vectors.rows(one.manifest, one.missing)) for one in busy]
        answered = iter(await self._fan_out.ask(calls, deadline) if calls else [])
        return [next(answered) if one.missing else np.empty((0, len(one.manifest.labels)), np.float32) for one in work]

    def _said(self, one: Work, computed: HeadScores) -> HeadScores:
        """The scores of all texts, whoever made them."""
        if isinstance(computed, TrunklineError):
            return computed
        scores = one.finish(computed)
        told = [(maker, scores[indices]) for maker, indices in one.told_before]
        if one.missing:
            told.append((one.manifest, scores[one.asked] if one.known else scores))
        for watcher in self._watchers:
            for maker, part in told:
                watcher.answered(maker, part)
        return scores


def _outcomes(
    plan: Plan,
    prepared: Prepared,
    work: Sequence[Work],
    said: Mapping[tuple[str, int], HeadScores],
    request: Classification,
) -> dict[str, HeadOutcome]:
    by_version = {one.version: one for one in work}
    outcomes: dict[str, HeadOutcome] = {}
    for word, head in plan.heads.items():
        if head.refused:
            outcomes[word] = FailedPrecondition(head.refused)
            continue
        if prepared.failed and (failed := prepared.failed.get(reading_of(head.manifest))):
            outcomes[word] = failed
            continue
        version = head.manifest.name, head.manifest.version
        scores = said[version]
        outcomes[word] = scores if isinstance(scores, TrunklineError) else by_version[version].read(scores, request)
    return outcomes


def _facts(texts: list[TextFacts], work: Sequence[Work]) -> list[TextFacts]:
    """*texts*, those marked cached for which nothing was computed."""
    if not work or not all(one.known for one in work):
        return texts
    return [replace(text, cached=all(index in one.known for one in work)) for index, text in enumerate(texts)]
