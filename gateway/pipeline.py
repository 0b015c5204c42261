"""The heart: texts to labels. Embed once, ask all heads in parallel, name what they say. Knows neither HTTP nor gRPC."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from clients import Deadline, FailedPrecondition, TrunklineError
from clients.wire.catalogue import Manifest
from clients.wire.text import Encoded
from gateway.answers import of_texts, read_scores
from gateway.classification import Answer, Classification, HeadAnswer, HeadOutcome, StageTimings, TextFacts
from gateway.fanout import FanOut, HeadCall, HeadScores
from gateway.outputs import key_of
from gateway.plan import Plan, Planner, views_for
from gateway.ports import (
    AnswerWatcher,
    CatalogueSource,
    Embedder,
    FloatArray,
    Known,
    LiveTrunk,
    Outputs,
    Trunks,
    VersionOutputs,
)
from gateway.preprocess import Prepared, Reading, prepare, reading_of
from gateway.shadow import ShadowRun, Shadows
from gateway.vectors import Vectors


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
        work = self._look_up(plan, prepared, may_reuse=request.may_reuse)
        timings.preprocess = time.perf_counter() - started
        vectors = await self._embed(trunk, prepared.inputs, work, request, deadline)
        embedded = time.perf_counter()
        timings.embed = embedded - started - timings.preprocess
        scores = await self._ask(work, vectors, deadline)
        said = {one.version: self._said(one, computed) for one, computed in zip(work, scores, strict=True)}
        outcomes = _outcomes(plan, work, said, request)
        if plan.shadows and self._shadows is not None:
            for run in _shadow_runs(plan, trunk, request, work, vectors, said):
                self._shadows.start(run)
        finished = time.perf_counter()
        timings.heads, timings.total = finished - embedded, finished - started
        return Answer(trunk, _facts(prepared.texts, work), outcomes, timings)

    def _look_up(self, plan: Plan, prepared: Prepared, *, may_reuse: bool) -> list["_Work"]:
        """What each version of *plan* knows already, and what is left to do."""
        keys: dict[Reading, list[bytes]] = {}
        work = []
        for manifest in plan.versions:
            reading = reading_of(manifest)
            pieces = prepared.places[reading]
            is_exact = (manifest.name, manifest.version) in plan.exact
            outputs = self._outputs.of(manifest, exact=is_exact) if may_reuse else None
            known: dict[int, Known] = {}
            if outputs is not None:
                if reading not in keys:
                    keys[reading] = [key_of([prepared.inputs[place] for place in places]) for places in pieces]
                known = outputs.find(keys[reading])
            places = pieces if not known else [of for index, of in enumerate(pieces) if index not in known]
            missing = list(dict.fromkeys(chain.from_iterable(places)))
            work.append(_Work(manifest, pieces, known, missing, outputs, keys.get(reading, [])))
        return work

    async def _embed(
        self, trunk: LiveTrunk, inputs: Sequence[Encoded], work: Sequence["_Work"], request: Classification, deadline: Deadline
    ) -> Vectors:
        """What the trunk says of every input that some version must still read: one call, whatever views they read."""
        busy = [one for one in work if one.missing]
        if not busy:
            return Vectors({}, {})
        needed = sorted({place for one in busy for place in one.missing})
        views = views_for([one.manifest for one in busy])
        arrays = await self._embedder.embed(trunk, [inputs[place] for place in needed], views, deadline, request.priority)
        return Vectors(dict(zip(views, arrays, strict=True)), {place: row for row, place in enumerate(needed)})

    async def _ask(self, work: Sequence["_Work"], vectors: Vectors, deadline: Deadline) -> list[HeadScores]:
        """The scores of each version on its `_Work.missing`."""
        busy = [one for one in work if one.missing]
        calls = [HeadCall(one.manifest, vectors.rows(one.manifest, one.missing)) for one in busy]
        answered = iter(await self._fan_out.ask(calls, deadline) if calls else [])
        return [next(answered) if one.missing else np.empty((0, len(one.manifest.labels)), np.float32) for one in work]

    def _said(self, one: "_Work", computed: HeadScores) -> HeadScores:
        """The scores of each text, float32 [texts, labels]: what was known, and *computed*, which is known from now on."""
        if isinstance(computed, TrunklineError):
            return computed
        asked, scores = one.asked, computed
        if asked and not one.is_plain:
            rows = {place: row for row, place in enumerate(one.missing)}
            scores = of_texts(computed, [[rows[place] for place in one.pieces[index]] for index in asked])
        if asked:
            for watcher in self._watchers:
                watcher.answered(one.manifest, scores)
            if one.outputs is not None:
                one.outputs.keep([one.keys[index] for index in asked], scores)
        for known in one.known.values():
            for watcher in self._watchers:
                watcher.answered(known.maker, known.scores[np.newaxis])
        return one.joined(scores)


@dataclass(frozen=True, slots=True)
class _Work:
    """What one version has to do: *pieces* are the inputs of each text, *missing* those of the texts that are not *known*.

    *known* is what was said of texts before, by any maker that may answer. *keys* are those of all texts where *outputs* may be
    kept.
    """

    manifest: Manifest
    pieces: list[tuple[int, ...]]
    known: Mapping[int, Known]
    missing: list[int]
    outputs: VersionOutputs | None
    keys: list[bytes]

    @property
    def version(self) -> tuple[str, int]:
        """Name and number."""
        return self.manifest.name, self.manifest.version

    @property
    def is_plain(self) -> bool:
        """Whether what is computed are the scores of the texts as they are: one text, of one piece."""
        return len(self.pieces) == 1 == len(self.missing) and len(self.pieces[0]) == 1

    @property
    def asked(self) -> Sequence[int]:
        """The texts that the version is asked for."""
        everything = range(len(self.pieces))
        return [index for index in everything if index not in self.known] if self.known else everything

    def joined(self, computed: FloatArray) -> FloatArray:
        """The scores of all texts, *computed* being those of the texts it was asked for."""
        if not self.known:
            return computed
        scores = np.empty((len(self.pieces), computed.shape[1]), np.float32)
        scores[self.asked] = computed
        for index, known in self.known.items():
            scores[index] = known.scores
        return scores

    def read(self, scores: FloatArray, request: Classification) -> list[HeadAnswer]:
        """What *scores*, of all texts, mean; what an older version said is read by its own manifest, and said to be its."""
        answers = read_scores(self.manifest, scores, request)
        for index, known in self.known.items():
            if known.maker.version != self.manifest.version:
                answers[index : index + 1] = read_scores(known.maker, known.scores[np.newaxis], request)
        return answers


def _outcomes(
    plan: Plan, work: Sequence[_Work], said: Mapping[tuple[str, int], HeadScores], request: Classification
) -> dict[str, HeadOutcome]:
    by_version = {one.version: one for one in work}
    outcomes: dict[str, HeadOutcome] = {}
    for word, head in plan.heads.items():
        if head.refused:
            outcomes[word] = FailedPrecondition(head.refused)
            continue
        version = head.manifest.name, head.manifest.version
        scores = said[version]
        outcomes[word] = scores if isinstance(scores, TrunklineError) else by_version[version].read(scores, request)
    return outcomes


def _facts(texts: list[TextFacts], work: Sequence[_Work]) -> list[TextFacts]:
    """*texts*, those marked cached for which nothing was computed."""
    if not work or not all(one.known for one in work):
        return texts
    return [replace(text, cached=all(index in one.known for one in work)) for index, text in enumerate(texts)]


def _shadow_runs(
    plan: Plan,
    trunk: LiveTrunk,
    request: Classification,
    work: Sequence[_Work],
    vectors: Vectors,
    said: Mapping[tuple[str, int], HeadScores],
) -> list[ShadowRun]:
    """What shadows are to be asked: the texts that the version beside which they run was asked for, and answered."""
    by_version = {one.version: one for one in work}
    runs = []
    for live, shadow in plan.shadows:
        one = by_version[live.name, live.version]
        scores = said[one.version]
        if isinstance(scores, TrunklineError) or not one.asked:
            continue
        texts = [request.texts[index] for index in one.asked]
        run = ShadowRun(live, shadow, trunk, texts, request.truncation, scores[one.asked])
        if reading_of(live) == reading_of(shadow) and vectors.has(shadow, one.missing):
            rows = {place: row for row, place in enumerate(one.missing)}
            pieces = [[rows[place] for place in one.pieces[index]] for index in one.asked]
            run = replace(run, rows=vectors.rows(shadow, one.missing), pieces=pieces)
        runs.append(run)
    return runs
