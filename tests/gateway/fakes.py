"""A gateway whose backends are fakes: the ports by hand, a pipeline over them, and the whole application over that."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import numpy as np
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from clients import Deadline, FailedPrecondition
from clients.wire.bodies import Bodies
from clients.wire.catalogue import Catalogue, CatalogueHead, Manifest, TrunkRef, View
from clients.wire.http_server import HttpBounds, http_config
from clients.wire.text import Encoded, TextEncoder
from gateway.admission import Admission
from gateway.app import OPEN_ENDED, create_app, door_of
from gateway.edges.open_streams import OpenStreams
from gateway.embedding import TextEmbedder
from gateway.fanout import FanOut
from gateway.outputs import NoOutputs
from gateway.pipeline import Pipeline
from gateway.plan import Planner
from gateway.ports import FloatArray, LiveTrunk, PriorityName, Rows
from gateway.routes import State
from gateway.settings import Settings
from gateway.telemetry import Telemetry
from tests.tiny_trunk import make_tiny_trunk

Scores = Callable[[Rows], FloatArray]
WIDTH = 4


def encoder(folder: Path) -> TextEncoder:
    return TextEncoder((make_tiny_trunk(folder / "trunk") / "tokenizer.json").read_bytes(), max_tokens=64)


class FakeTrunks:
    """A trunk that can be exchanged; asked again only after `forget`."""

    def __init__(self, tokens: TextEncoder) -> None:
        self.tokens = tokens
        self.live = "sha256:one"
        self.layers = frozenset({-1, -2, -3})
        self._known = ""

    async def trunk(self, deadline: Deadline) -> LiveTrunk:
        self._known = self._known or self.live
        return LiveTrunk("tiny", self._known, self.tokens, 64, self.layers)

    @property
    def known(self) -> LiveTrunk | None:
        return LiveTrunk("tiny", self._known, self.tokens, 64, self.layers) if self._known else None

    def forget(self, trunk: LiveTrunk) -> None:
        if self._known == trunk.fingerprint:
            self._known = ""


class FakeEmbedder:
    """Counts its calls; each text's vector is its number of tokens plus the view's layer, WIDTH times, or so for each token."""

    def __init__(self, trunks: FakeTrunks) -> None:
        self._trunks = trunks
        self.calls: list[tuple[int, tuple[View, ...]]] = []

    async def embed(
        self, trunk: LiveTrunk, inputs: Sequence[Encoded], views: tuple[View, ...], deadline: Deadline, priority: PriorityName
    ) -> list[Rows]:
        if trunk.fingerprint != self._trunks.live:
            raise FailedPrecondition("another trunk")
        self.calls.append((len(inputs), views))
        return [[self._read(len(item.ids), view) for item in inputs] for view in views]

    @staticmethod
    def _read(num_tokens: int, view: View) -> FloatArray:
        shape = (num_tokens, WIDTH) if view.pooling == "tokens" else (WIDTH,)
        return np.full(shape, num_tokens + view.layer, np.float32)


class GatedEmbedder(FakeEmbedder):
    """Answers once *opened* is set, and counts who gave up."""

    def __init__(self, trunks: FakeTrunks, *, expected: PriorityName = "bulk") -> None:
        super().__init__(trunks)
        self.expected = expected
        self.opened = asyncio.Event()
        self.entered = asyncio.Event()
        self.num_cancelled = 0

    async def embed(
        self, trunk: LiveTrunk, inputs: Sequence[Encoded], views: tuple[View, ...], deadline: Deadline, priority: PriorityName
    ) -> list[Rows]:
        assert self.expected == priority
        self.entered.set()
        try:
            await self.opened.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        return await super().embed(trunk, inputs, views, deadline, priority)


class FakePredictor:
    """Answers by head name with what it was given; the default is that the second label wins."""

    def __init__(self, **heads: Scores) -> None:
        self._heads = heads

    async def predict(self, manifest: Manifest, rows: Rows, deadline: Deadline) -> FloatArray:
        return self._heads.get(manifest.name, second_wins)(rows)


class FakeCatalogue:
    """Always loaded, never changed."""

    is_loaded = True
    age = 0.0

    def __init__(self, *heads: CatalogueHead) -> None:
        self.catalogue = Catalogue({next(iter(head.versions.values())).name: head for head in heads})


def second_wins(rows: Rows) -> FloatArray:
    return np.array([[0.25, 0.75]] * len(rows), dtype=np.float32)


def raises(error: Exception) -> Scores:
    def fail(_: Rows) -> FloatArray:
        raise error

    return fail


def manifest(
    name: str, *, version: int = 7, trunk: str = "sha256:one", view: View | None = None, mix_layers: tuple[int, ...] = ()
) -> Manifest:
    ref = TrunkRef("tiny", trunk, "fake")
    return Manifest(
        name=name, version=version, labels=("ham", "spam"), width=WIDTH, trunk=ref, view=view or View(), mix_layers=mix_layers
    )


def live(one: Manifest, *, default: bool = True) -> CatalogueHead:
    """A head that has one version."""
    return CatalogueHead(stable=one.version, versions={one.version: one}, default=default)


def head(
    name: str, *, default: bool = True, trunk: str = "sha256:one", view: View | None = None, mix_layers: tuple[int, ...] = ()
) -> CatalogueHead:
    return live(manifest(name, trunk=trunk, view=view, mix_layers=mix_layers), default=default)


def pipeline_of(trunks: FakeTrunks, embedder: FakeEmbedder, predictor: FakePredictor, *heads: CatalogueHead) -> Pipeline:
    fan_out = FanOut(predictor, head_timeout=1.0)
    return Pipeline(trunks, embedder, fan_out, FakeCatalogue(*heads), NoOutputs(), Planner())


def state_of(
    trunks: FakeTrunks,
    *heads: CatalogueHead,
    predictor: FakePredictor | None = None,
    embedder: FakeEmbedder | None = None,
    settings: Settings | None = None,
) -> State:
    """What the routes use, over fakes."""
    settings = settings or Settings(_cli_parse_args=[])
    catalogue = FakeCatalogue(*heads)
    fan_out = FanOut(predictor or FakePredictor(), head_timeout=settings.head_timeout_seconds)
    embedder = embedder or FakeEmbedder(trunks)
    pipeline = Pipeline(trunks, embedder, fan_out, catalogue, NoOutputs(), Planner())
    admission = Admission(settings.max_concurrent_texts, max_wait_seconds=settings.max_wait_seconds)
    text_embedder = TextEmbedder(trunks, embedder)
    streams, bodies = OpenStreams(settings.max_streams), Bodies(settings.max_held_bytes)
    return State(settings, pipeline, trunks, catalogue, admission, Telemetry(), text_embedder, streams, bodies)


class FakeGateway:
    """The application as it is served, over *state* instead of connections."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._app: ASGIApp = create_app(state.settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"] = {"gateway": self.state}
        await self._app(scope, receive, send)

    def http(self) -> httpx.AsyncClient:
        """Requests without a network; an answer comes whole."""
        return httpx.AsyncClient(transport=httpx.ASGITransport(self, raise_app_exceptions=False), base_url="http://gateway")

    @asynccontextmanager
    async def served(self) -> AsyncIterator[str]:
        """The application behind a port, for what only a connection shows; yields the URL."""
        bounds, door = HttpBounds(open_ended=OPEN_ENDED), door_of(self.state.settings)
        state = {"gateway": self.state}
        config = http_config(
            self,
            drain_seconds=1,
            bounds=bounds,
            # Without a lifespan uvicorn has no state to tell it.
            door=lambda path, headers, _: door(path, headers, state),
            lifespan="off",
            port=0,
        )
        server = uvicorn.Server(config)
        # The process's signals stay the test's.
        listener = config.bind_socket()
        serving = asyncio.create_task(server._serve([listener]))
        try:
            while not server.started:
                await asyncio.sleep(0.001)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving
