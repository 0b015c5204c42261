"""The gateway in this process, on fakes of the embedding service and the head server."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx
import msgspec
import numpy as np
from starlette.types import ASGIApp, Receive, Scope, Send
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from clients import Deadline, DeadlineExceeded
from clients.wire.bodies import Bodies
from clients.wire.catalogue import Catalogue, CatalogueHead, Manifest, Metrics, TrunkRef, View, encode
from clients.wire.text import Encoded, TextEncoder
from gateway.admission import Admission
from gateway.app import create_api
from gateway.backends.embedding import ClientTrunks
from gateway.catalogue import CataloguePoller, FileFetch
from gateway.edges.open_streams import OpenStreams
from gateway.embedding import TextEmbedder
from gateway.exchange import Exchanges, Observer, WithExchanges
from gateway.fanout import FanOut
from gateway.outputs import NoOutputs
from gateway.pipeline import Pipeline
from gateway.plan import Planner
from gateway.ports import FloatArray, LiveTrunk, PriorityName, Rows
from gateway.routes import State
from gateway.settings import Settings
from gateway.telemetry import Telemetry, TimedPredictor
from gateway.traces import Traces

FINGERPRINT = "sha256:" + "0" * 64
MAX_TOKENS = 128
Labels = tuple[str, ...]


def manifest(name: str, version: int, labels: Labels, **values: object) -> Manifest:
    trunk = TrunkRef("fake-trunk", FINGERPRINT, "fake")
    metrics = Metrics(accuracy=0.914, macro_f1=0.9, num_train=900, num_test=100, data="sha256:" + "1" * 64)
    return msgspec.structs.replace(
        Manifest(name=name, version=version, labels=labels, width=4, trunk=trunk, metrics=metrics), **values
    )


def entry(*manifests: Manifest, **values: object) -> CatalogueHead:
    """A head whose first manifest is its stable version."""
    found = CatalogueHead(stable=manifests[0].version, versions={one.version: one for one in manifests})
    return msgspec.structs.replace(found, **values)


TOPICS: Labels = ("sport", "business", "science", "world", "culture", "weather", "travel")
HEADS = {
    "language": entry(manifest("language", 2, ("english", "spanish", "german", "french"))),
    "spam": entry(
        manifest("spam", 4, ("ham", "spam")), manifest("spam", 5, ("ham", "spam")), canary=5, canary_share=0.1, previous=3
    ),
    "tone": entry(manifest("tone", 1, ("joy", "anger", "surprise", "calm"), task="multi_label", thresholds=(0.4, 0.4, 0.4, 0.4))),
    "topic": entry(manifest("topic", 7, TOPICS)),
    "urgency": entry(manifest("urgency", 3, ("value",), task="regression")),
    "slow": entry(manifest("slow", 1, ("a", "b")), default=False),
}


def word_encoder() -> TextEncoder:
    """Each word a token, known or not, between two special ones."""
    tokenizer = Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return TextEncoder(tokenizer.to_str().encode(), max_tokens=MAX_TOKENS)


class FakeTrunks(ClientTrunks):
    """Knows its trunk from the start."""

    def __init__(self) -> None:
        self._known = LiveTrunk("fake-trunk", FINGERPRINT, word_encoder(), 64)

    async def trunk(self, deadline: Deadline) -> LiveTrunk:
        assert self._known is not None
        return self._known

    def forget(self, trunk: LiveTrunk) -> None:
        pass


class FakeEmbedder:
    """A text's vector is made of its number of tokens."""

    async def embed(
        self, trunk: LiveTrunk, inputs: Sequence[Encoded], views: tuple[View, ...], deadline: Deadline, priority: PriorityName
    ) -> list[Rows]:
        return [[np.full(4, len(item.ids), np.float32) for item in inputs] for _ in views]


def likely(manifest: Manifest, rows: Rows) -> FloatArray:
    """Softmax over labels, a little different for each head, version and length of text."""
    start = sum(map(ord, manifest.name)) + 3 * manifest.version
    logits = [[np.sin(1.7 * start + 2.3 * place + 0.31 * row[0]) * 2.2 for place in range(len(manifest.labels))] for row in rows]
    scores = np.exp(np.array(logits, np.float32))
    if manifest.task == "regression":
        return np.log(scores)
    return (scores / (scores.sum(axis=1, keepdims=True))).astype(np.float32)


class FakePredictor:
    """Every head answers, but those in *errors*."""

    def __init__(self, errors: dict[str, Exception] | None = None) -> None:
        self.errors = {"slow": DeadlineExceeded("late")} if errors is None else errors

    async def predict(self, manifest: Manifest, rows: Rows, deadline: Deadline) -> FloatArray:
        if manifest.name in self.errors:
            raise self.errors[manifest.name]
        return likely(manifest, rows)


class WithState:
    """What the lifespan does for the real application."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"] = {"gateway": self._state}
        await self._app(scope, receive, send)


@contextlib.asynccontextmanager
async def fake_gateway(
    folder: Path,
    *,
    heads: dict[str, CatalogueHead] | None = None,
    errors: dict[str, Exception] | None = None,
    observers: Sequence[Observer] = (),
    traces: Traces | None = None,
    **settings: object,
) -> AsyncIterator[tuple[WithExchanges, State]]:
    """The application as ASGI, and what its routes use."""
    path = folder / "catalogue.json"
    path.write_bytes(encode(Catalogue(HEADS if heads is None else heads)))
    options = Settings(catalogue=str(path), **settings)  # type: ignore[arg-type]
    catalogue = CataloguePoller(FileFetch(path), poll_seconds=60)
    await catalogue.refresh()
    trunks, telemetry = FakeTrunks(), Telemetry()
    telemetry.watch_catalogue(lambda: catalogue.catalogue)
    fan_out = FanOut(TimedPredictor(FakePredictor(errors), telemetry), head_timeout=1.0)
    embedder = FakeEmbedder()
    pipeline = Pipeline(trunks, embedder, fan_out, catalogue, NoOutputs(), Planner())
    admission = Admission(options.max_concurrent_texts, max_wait_seconds=options.max_wait_seconds)
    telemetry.watch_bound(lambda: admission.bound)
    streams = OpenStreams(options.max_streams)
    bodies = Bodies(options.max_held_bytes)
    state = State(options, pipeline, trunks, catalogue, admission, telemetry, TextEmbedder(trunks, embedder), streams, bodies)
    yield WithExchanges(WithState(create_api(), state), Exchanges(observers, traces)), state


def client_of(app: WithExchanges) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway")
