"""Benchmarks of what the gateway does itself for a request: in process, over backends that answer at once.

All that the gateway has by default is there: telemetry, drift, counts of versions, the cache of outputs, a bundle of the heads.
What is not: a socket, uvicorn, and the calls to the embedding service and the head server. Each text is a new one, but where the
name says that it was seen before.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, cast

import msgspec
import numpy as np
from starlette.types import ASGIApp, Message

from clients import Deadline
from clients.wire.bodies import Bodies
from clients.wire.catalogue import BundleMember, Catalogue, CatalogueHead, Manifest, Metrics, TrunkRef, ValidationSummary, View
from clients.wire.text import Encoded, TextEncoder
from gateway.admission import Admission
from gateway.answers import read_scores
from gateway.app import create_app
from gateway.backends.embedding import ClientTrunks
from gateway.bundles import Bundles
from gateway.catalogue import CataloguePoller
from gateway.classification import Answer, Classification, TextFacts
from gateway.drift import DriftMonitor
from gateway.edges.open_streams import OpenStreams
from gateway.embedding import TextEmbedder
from gateway.fanout import FanOut
from gateway.outputs import OutputCache, OutputRules
from gateway.pipeline import Pipeline
from gateway.plan import Planner
from gateway.ports import FloatArray, LiveTrunk, PriorityName, Rows
from gateway.routes import State
from gateway.schemas import classify_answer
from gateway.settings import Settings
from gateway.telemetry import Telemetry, TimedPredictor
from gateway.versions import VersionCounts
from perf.micro.parts import SENTENCES, WIDTH, texts
from perf.micro.timing import Benchmark, of_coroutine, of_function

NUM_HEADS: Final = 8
NUM_TEXTS: Final = 32
LABELS: Final = ("no", "yes", "perhaps")
FINGERPRINT: Final = "sha256:" + "0" * 64
PATIENCE_SECONDS: Final = 10.0
OUTPUT_CACHE_BYTES: Final = 256 * 1024
"""So little that it is full at once, as that of a service is after a while."""

_HEADERS: Final = (
    (b"host", b"127.0.0.1:8080"),
    (b"accept", b"*/*"),
    (b"accept-encoding", b"gzip, deflate"),
    (b"connection", b"keep-alive"),
    (b"user-agent", b"client/1.0"),
    (b"content-type", b"application/json"),
)
"""Those of an ordinary client; its content-length comes with the body."""


class UnexpectedAnswerError(Exception):
    """The gateway did not answer as it should, so there is nothing to time."""


@dataclass(frozen=True, slots=True)
class KnownTrunk:
    """A `gateway.ports.Trunks` whose trunk is known and stays."""

    live: LiveTrunk

    async def trunk(self, _: Deadline) -> LiveTrunk:
        """See `gateway.ports.Trunks`."""
        return self.live

    def forget(self, trunk: LiveTrunk) -> None:
        """It stays."""


class ReadyVectors:
    """A `gateway.ports.Embedder` that has vectors for as many inputs as may be asked for."""

    def __init__(self) -> None:
        # An array of rows is a sequence of them, which numpy's types do not say.
        self._rows: Any = np.random.default_rng(0).standard_normal((NUM_TEXTS, WIDTH)).astype(np.float32)

    async def embed(
        self, _: LiveTrunk, inputs: Sequence[Encoded], views: tuple[View, ...], deadline: Deadline, priority: PriorityName
    ) -> list[Rows]:
        """See `gateway.ports.Embedder`."""
        return [self._rows[: len(inputs)] for _ in views]


class ReadyScores:
    """A `gateway.ports.Predictor` that has scores for any head and bundle."""

    def __init__(self) -> None:
        draw = np.random.default_rng(0).random((NUM_TEXTS, NUM_HEADS, len(LABELS)))
        shares = (draw / draw.sum(axis=2, keepdims=True)).astype(np.float32)
        self._scores: FloatArray = shares.reshape(NUM_TEXTS, -1)

    async def predict(self, manifest: Manifest, rows: Rows, _: Deadline) -> FloatArray:
        """See `gateway.ports.Predictor`."""
        scores: FloatArray = self._scores[: len(rows), : len(manifest.labels)]
        return scores


@dataclass(frozen=True, slots=True)
class KnownCatalogue:
    """A `gateway.ports.CatalogueSource` that stays as it is."""

    catalogue: Catalogue


def manifest(name: str) -> Manifest:
    """A head as training publishes it: measured, and validated, so that its drift is watched."""
    return Manifest(
        name=name,
        version=1,
        labels=LABELS,
        width=WIDTH,
        trunk=TrunkRef("trunk", FINGERPRINT),
        metrics=Metrics(accuracy=0.9, macro_f1=0.9, num_train=1_000, num_test=200, data=FINGERPRINT),
        validation=ValidationSummary(dict.fromkeys(LABELS, 1 / len(LABELS)), 0.8, 200),
    )


def catalogue(num_heads: int) -> Catalogue:
    """So many heads, all of them default ones, and the bundle of them where there are several."""
    manifests = [manifest(f"head{number}") for number in range(num_heads)]
    heads = {one.name: CatalogueHead(stable=1, versions={1: one}) for one in manifests}
    if num_heads == 1:
        return Catalogue(heads)
    size = len(LABELS)
    members = tuple(BundleMember(one.name, 1, place * size, size, FINGERPRINT) for place, one in enumerate(manifests))
    labels = tuple(f"{one.name}.{label}" for one in manifests for label in LABELS)
    bundle = Manifest(name="bundle", version=1, labels=labels, width=WIDTH, trunk=manifests[0].trunk, members=members)
    return Catalogue(heads, bundles={bundle.name: bundle})


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway over ready backends: its parts, and the application that serves them."""

    state: State
    app: ASGIApp
    trunk: LiveTrunk

    def pipeline_call(self, given: Callable[[], list[str]]) -> Callable[[], Any]:
        """One classification of the texts that *given* gives, by the default heads."""
        pipeline = self.state.pipeline

        async def call() -> Answer:
            return await pipeline.classify(Classification(given()), Deadline.after(PATIENCE_SECONDS))

        return call

    def request_call(self, text: Callable[[], str]) -> Callable[[], Any]:
        """One POST to /v1/classify of the text that *text* gives, without a socket; it must be answered with 200."""
        app, shared = self.app, {"gateway": self.state}
        status = 0

        async def send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]

        async def call() -> None:
            nonlocal status
            status = 0
            body = msgspec.json.encode({"text": text()})

            async def receive() -> Message:
                return {"type": "http.request", "body": body, "more_body": False}

            await app(_scope(len(body), shared), receive, send)
            # The application answers whatever is raised inside of it, so this is for here to say.
            if status != 200:
                raise UnexpectedAnswerError(f"/v1/classify answered {status}")

        return call


def _scope(num_bytes: int, shared: dict[str, State]) -> dict[str, Any]:
    """As uvicorn makes one for each request."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8080),
        "client": ("127.0.0.1", 50_000),
        "scheme": "http",
        "method": "POST",
        "root_path": "",
        "path": "/v1/classify",
        "raw_path": b"/v1/classify",
        "query_string": b"",
        "headers": [*_HEADERS, (b"content-length", str(num_bytes).encode())],
        "state": shared.copy(),
    }


def gateway(tokens: TextEncoder, num_heads: int) -> Gateway:
    """As `gateway.app.started` makes one; with the default settings, whatever the environment says, but for a small cache."""
    settings = Settings.model_construct()
    trunks = KnownTrunk(LiveTrunk("trunk", FINGERPRINT, tokens, NUM_TEXTS))
    source = KnownCatalogue(catalogue(num_heads))
    telemetry = Telemetry()
    drift, versions = DriftMonitor(telemetry.registry), VersionCounts(telemetry.registry)
    rules = OutputRules(settings.output_cache_min_accuracy, settings.output_cache_accuracy_gain)
    outputs = OutputCache(OUTPUT_CACHE_BYTES, rules, telemetry)
    for follower in (outputs, drift, versions):
        follower.follow(source.catalogue)
    embedder = ReadyVectors()
    fan_out = FanOut(
        TimedPredictor(ReadyScores(), telemetry),
        head_timeout=settings.head_timeout_seconds,
        bundles=Bundles(source),
        telemetry=telemetry,
    )
    pipeline = Pipeline(trunks, embedder, fan_out, source, outputs, Planner(), None, [drift, versions])
    admission = Admission(settings.max_concurrent_texts, max_wait_seconds=settings.max_wait_seconds)
    state = State(
        settings,
        pipeline,
        cast("ClientTrunks", trunks),
        cast("CataloguePoller", source),
        admission,
        telemetry,
        TextEmbedder(trunks, embedder),
        OpenStreams(settings.max_streams),
        Bodies(settings.max_held_bytes),
    )
    return Gateway(state, create_app(settings), trunks.live)


def new_texts() -> Callable[[], str]:
    """Gives a text that it has not given before."""
    numbers = count()
    return lambda: f"{SENTENCES[0]} {next(numbers)}"


def ids_to_labels(trunk: LiveTrunk) -> Benchmark:
    """Scores of 32 texts by 8 heads to the bytes of an answer: the best label of each, and JSON."""
    manifests = [head.versions[1] for head in catalogue(NUM_HEADS).heads.values()]
    request = Classification(texts(NUM_TEXTS))
    scores = np.random.default_rng(0).random((NUM_TEXTS, len(LABELS))).astype(np.float32)
    facts, notes = [TextFacts(24, truncated=False)] * NUM_TEXTS, [()] * NUM_TEXTS

    def answer() -> bytes:
        outcomes = {one.name: read_scores(one, scores, request) for one in manifests}
        return msgspec.json.encode(classify_answer(Answer(trunk, facts, {**outcomes}), notes))

    return of_function(f"ids to labels, {NUM_TEXTS} texts, {NUM_HEADS} heads", answer, "to JSON")


def gateway_paths(tokens: TextEncoder) -> list[Benchmark]:
    """All of this module."""
    one, several = gateway(tokens, 1), gateway(tokens, NUM_HEADS)
    fresh = new_texts()
    numbers = count()

    def many() -> list[str]:
        number = next(numbers)
        return [f"{sentence} {number}" for sentence in texts(NUM_TEXTS)]

    found = [
        of_coroutine("pipeline, 1 text, 1 head", one.pipeline_call(lambda: [fresh()])),
        of_coroutine(f"pipeline, 1 text, {NUM_HEADS} heads", several.pipeline_call(lambda: [fresh()])),
        of_coroutine(f"pipeline, {NUM_TEXTS} texts, {NUM_HEADS} heads", several.pipeline_call(many)),
        of_coroutine("POST /v1/classify, 1 text, 1 head", one.request_call(fresh), "in process, no socket"),
        of_coroutine(f"POST /v1/classify, 1 text, {NUM_HEADS} heads", several.request_call(fresh), "in process, no socket"),
        of_coroutine("POST /v1/classify, a text seen before", one.request_call(lambda: SENTENCES[1]), "in process, no socket"),
    ]
    return [*found, ids_to_labels(one.trunk)]
