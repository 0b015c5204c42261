"""Versions that run in the shadow of the one that answers: asked what it was asked, compared with it, and never heard.

A run starts once the answer is on its way. Under load runs are left out, not queued: what they show is a matter of samples.
"""

import asyncio
import contextvars
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from clients import Deadline, TrunklineError
from clients.wire.catalogue import Manifest, views_of
from clients.wire.long_text import scores_of_texts
from gateway.classification import Classification, Truncation
from gateway.fanout import HeadScores, check_scores
from gateway.plan import Plan
from gateway.ports import Embedder, FloatArray, LiveTrunk, Predictor, Rows
from gateway.preprocess import prepare, reading_of
from gateway.vectors import Vectors
from gateway.work import Work

_log = logging.getLogger(__name__)

HEAD_START_SECONDS: Final = 0.005
"""Given to the answer, which is written on the same loop."""


@dataclass(frozen=True, slots=True)
class ShadowRun:
    """*texts* of which *live* said *scores*, float32 [texts, labels], and what *shadow* is to be asked.

    *rows* are what it reads of the texts' *pieces*, those by their row, where that is known already; None: it is embedded.
    """

    live: Manifest
    shadow: Manifest
    trunk: LiveTrunk
    texts: Sequence[str]
    truncation: Truncation
    scores: FloatArray
    pieces: Sequence[Sequence[int]] = ()
    rows: Rows | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Of *num_texts* texts *num_agreed* got the same label or labels; of a regression, which has none, the same value.

    *difference* is the sum over texts of the mean over labels of the absolute difference between the scores; a label that only
    one of the versions has scores 0 with the other.
    """

    num_texts: int
    num_agreed: int
    difference: float


class ShadowTelemetry(Protocol):
    """Told of shadow runs; must be quick and never raise."""

    def shadow_compared(self, head: str, version: int, comparison: Comparison) -> None:
        """The shadow *version* of *head* was held against what was answered."""
        ...

    def shadow_left_out(self, head: str, version: int, reason: str, num_texts: int) -> None:
        """It was not asked, or had no answer, for *num_texts* texts: "full", or an error's code."""
        ...


class Shadows:
    """Owner of the runs under way, which have at most *max_texts* texts together. *timeout*: seconds that one may take."""

    def __init__(
        self,
        embedder: Embedder,
        predictor: Predictor,
        telemetry: ShadowTelemetry,
        *,
        max_texts: int,
        timeout: float,
        head_start: float = HEAD_START_SECONDS,
    ) -> None:
        self._embedder = embedder
        self._predictor = predictor
        self._telemetry = telemetry
        self._max_texts = max_texts
        self._timeout = timeout
        self._head_start = head_start
        self._runs: dict[asyncio.Task[None], int] = {}

    def __repr__(self) -> str:
        return f"<Shadows [{len(self._runs)} runs, {self.num_texts} texts]>"

    @property
    def num_texts(self) -> int:
        """Under way."""
        return sum(self._runs.values())

    def start(self, run: ShadowRun) -> None:
        """Begin *run*, or leave it out when too many texts are under way. Neither waits nor raises."""
        if self.num_texts + len(run.texts) > self._max_texts:
            self._telemetry.shadow_left_out(run.shadow.name, run.shadow.version, "full", len(run.texts))
            return
        # An empty context: the run is no part of the request, nor of its trace.
        task = asyncio.create_task(self._run(run), context=contextvars.Context())
        self._runs[task] = len(run.texts)
        task.add_done_callback(self._runs.pop)

    async def close(self) -> None:
        """Cancel what is under way."""
        runs = list(self._runs)
        for run in runs:
            run.cancel()
        await asyncio.gather(*runs, return_exceptions=True)

    async def _run(self, run: ShadowRun) -> None:
        name, version = run.shadow.name, run.shadow.version
        try:
            await asyncio.sleep(self._head_start)
            scores = await self._scores(run, Deadline.after(self._timeout))
            self._telemetry.shadow_compared(name, version, compare(run.live, run.scores, run.shadow, scores))
        except TrunklineError as error:
            self._telemetry.shadow_left_out(name, version, error.code, len(run.texts))
        except Exception:  # whatever it was, nobody waits for it
            _log.exception("the shadow of head %r failed unexpectedly", name)
            self._telemetry.shadow_left_out(name, version, TrunklineError.code, len(run.texts))

    async def _scores(self, run: ShadowRun, deadline: Deadline) -> FloatArray:
        """What the shadow says of each text, float32 [texts, labels]."""
        rows, pieces = (run.rows, run.pieces) if run.rows is not None else await self._embedded(run, deadline)
        scores = check_scores(await self._predictor.predict(run.shadow, rows, deadline), run.shadow, len(rows))
        return scores_of_texts(run.shadow, scores, pieces)

    async def _embedded(self, run: ShadowRun, deadline: Deadline) -> tuple[Rows, Sequence[Sequence[int]]]:
        reading = reading_of(run.shadow)
        prepared = await prepare(run.trunk.encoder, run.texts, [reading], run.truncation, deadline=deadline)
        if reading in prepared.failed:
            raise prepared.failed[reading]
        views = tuple(dict.fromkeys(views_of(run.shadow)))
        arrays = await self._embedder.embed(run.trunk, prepared.inputs, views, deadline, "bulk")
        everything = range(len(prepared.inputs))
        vectors = Vectors(dict(zip(views, arrays, strict=True)), {place: place for place in everything})
        return vectors.rows(run.shadow, everything), prepared.places[reading]


def runs_of(
    plan: Plan,
    trunk: LiveTrunk,
    request: Classification,
    work: Sequence[Work],
    vectors: Vectors,
    said: Mapping[tuple[str, int], HeadScores],
) -> list[ShadowRun]:
    """What shadows are to be asked: the texts that the version beside which they run was asked for, and answered."""
    by_version = {one.version: one for one in work}
    runs = []
    for live, shadow in plan.shadows:
        one = by_version.get((live.name, live.version))
        if one is None:
            continue
        scores = said[one.version]
        if isinstance(scores, TrunklineError) or not one.missing:
            continue
        texts = [request.texts[index] for index in one.asked]
        run = ShadowRun(live, shadow, trunk, texts, request.truncation, scores[one.asked])
        if reading_of(live) == reading_of(shadow) and vectors.has(shadow, one.missing):
            run = replace(run, rows=vectors.rows(shadow, one.missing), pieces=one.rows)
        runs.append(run)
    return runs


def compare(live: Manifest, answered: FloatArray, shadow: Manifest, scores: FloatArray) -> Comparison:
    """What *shadow* said, *scores*, against what *live* *answered*, each float32 [texts, its labels]."""
    labels = tuple(dict.fromkeys((*live.labels, *shadow.labels)))
    one, other = _by_label(live, answered, labels), _by_label(shadow, scores, labels)
    apart = np.abs(one - other).mean(axis=1)
    agreed: NDArray[np.bool_] = apart == 0.0
    if live.task != "regression":
        agreed = (_said(live, one, labels) == _said(shadow, other, labels)).all(axis=1)
    return Comparison(len(apart), int(agreed.sum()), float(apart.sum()))


def _by_label(manifest: Manifest, scores: FloatArray, labels: tuple[str, ...]) -> FloatArray:
    if manifest.labels == labels:
        return scores
    found = np.zeros((len(scores), len(labels)), np.float32)
    found[:, [labels.index(label) for label in manifest.labels]] = scores
    return found


def _said(manifest: Manifest, scores: FloatArray, labels: tuple[str, ...]) -> NDArray[np.bool_]:
    """Which of *labels* the head answers of each text, [texts, labels]."""
    if manifest.task != "multi_label":
        best: NDArray[np.bool_] = np.arange(len(labels)) == scores.argmax(axis=1)[:, np.newaxis]
        return best
    least = dict(zip(manifest.labels, manifest.thresholds or (0.5,) * len(manifest.labels), strict=True))
    passes: NDArray[np.bool_] = scores >= np.array([least.get(label, np.inf) for label in labels], np.float32)
    return passes
