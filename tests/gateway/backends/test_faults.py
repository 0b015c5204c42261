"""Real processes that are frozen, killed, told to stop and started again, while texts go through."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress

import msgspec
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from clients import AsyncEmbeddingClient, AsyncHeadClient, Deadline
from clients.wire.catalogue import Catalogue, CatalogueHead, Manifest, TrunkRef, View
from gateway.app import started
from gateway.backends.embedding import ClientEmbedder, ClientTrunks
from gateway.backends.heads import ClientPredictor
from gateway.backends.replicas import Policy
from gateway.classification import Classification, HeadAnswer
from gateway.coalesce import CallLimits
from gateway.settings import Settings
from gateway.telemetry import BackendMetrics
from perf.stub_backends import FINGERPRINT, WIDTH, checksum, score_of, text_of
from tests.gateway.backends.fakes import until

MANIFEST = Manifest(name="head", version=1, labels=("first", "second"), width=WIDTH, trunk=TrunkRef("stub", FINGERPRINT))
QUICK = Policy(base_ejection_seconds=0.2)


class Stub:
    """A backend in a process of its own; started again it has the same port."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self.address = "127.0.0.1:0"
        self.start()

    def start(self) -> None:
        port = self.address.partition(":")[2]
        command = [sys.executable, "-m", "perf.stub_backends", self._kind, "--milliseconds", "2", "--port", port]
        self._process = subprocess.Popen([*command, "--drain-seconds", "0.3"], stdout=subprocess.PIPE, text=True)

    def wait(self) -> "Stub":
        """Until it serves."""
        assert self._process.stdout is not None
        match = re.fullmatch(r"serving (\S+)\n", self._process.stdout.readline())
        assert match is not None
        self.address = match[1]
        return self

    def signal(self, what: signal.Signals) -> None:
        os.kill(self._process.pid, what)

    def ended(self) -> None:
        """Wait for its end."""
        self._process.communicate(timeout=10)

    def kill(self) -> None:
        """If it still runs."""
        with suppress(ProcessLookupError):
            self._process.kill()
        self._process.communicate(timeout=10)


@pytest.fixture
def stubs() -> Iterator[Callable[[str], list[Stub]]]:
    """Starts two of a kind."""
    made: list[Stub] = []

    def start(kind: str) -> list[Stub]:
        pair = [Stub(kind), Stub(kind)]
        made.extend(pair)
        return [stub.wait() for stub in pair]

    yield start
    for stub in made:
        stub.kill()


@asynccontextmanager
async def embedder_of(stubs: list[Stub]) -> AsyncIterator[ClientEmbedder]:
    async with AsyncEmbeddingClient(stubs[0].address) as one, AsyncEmbeddingClient(stubs[1].address) as two:
        embedder = ClientEmbedder([one, two], max_open=1_024, policy=QUICK)
        embedder.start()
        try:
            yield embedder
        finally:
            await embedder.close()


async def embed(embedder: ClientEmbedder, numbers: range) -> None:
    """Each of the texts by a caller of its own, a few at once; each must get its own vector."""
    trunk = await ClientTrunks(embedder.clients, embedder.pool.in_order).trunk(Deadline.after(10))
    room = asyncio.Semaphore(8)

    async def one(number: int) -> None:
        encoded = trunk.encoder.encode([text_of(number)])
        async with room:
            [[vector]] = await embedder.embed(trunk, encoded, (View(),), Deadline.after(10), "interactive")
        assert vector.tolist() == [checksum(encoded[0].ids)] * WIDTH

    await asyncio.gather(*map(one, numbers))


async def test_a_frozen_replica_fails_nobody_and_is_used_again_when_it_wakes(stubs: Callable[[str], list[Stub]]) -> None:
    pair = stubs("embedding")
    async with embedder_of(pair) as embedder:
        await embed(embedder, range(50))
        pair[0].signal(signal.SIGSTOP)
        await embed(embedder, range(400))
        assert "ejected" == embedder.pool.snapshot[0][0]
        pair[0].signal(signal.SIGCONT)
        await until(lambda: embedder.pool.is_usable(0), 10)
        await embed(embedder, range(50))


async def test_a_killed_replica_fails_nobody(stubs: Callable[[str], list[Stub]]) -> None:
    pair = stubs("embedding")
    async with embedder_of(pair) as embedder:
        load = asyncio.create_task(embed(embedder, range(500)))
        await until(lambda: sum(count for _, count in embedder.pool.snapshot) == 8)
        pair[0].signal(signal.SIGKILL)
        await load


async def test_a_rolling_restart_fails_nobody(stubs: Callable[[str], list[Stub]]) -> None:
    pair = stubs("embedding")
    async with embedder_of(pair) as embedder:
        for number, stub in enumerate(pair):
            load = asyncio.create_task(embed(embedder, range(500)))
            stub.signal(signal.SIGTERM)
            await load
            await asyncio.to_thread(stub.ended)
            await until(lambda number=number: not embedder.pool.is_usable(number), 10)
            stub.start()
            await asyncio.to_thread(stub.wait)
            await until(lambda number=number: embedder.pool.is_usable(number), 10)


async def test_a_frozen_head_server_fails_nobody(stubs: Callable[[str], list[Stub]]) -> None:
    pair = stubs("heads")
    manifests = [msgspec.structs.replace(MANIFEST, name=f"head-{number}") for number in range(10)]

    async def ask(predictor: ClientPredictor, manifest: Manifest, value: float) -> None:
        rows = [np.full(WIDTH, value, np.float32)]
        scores = await predictor.predict(manifest, rows, Deadline.after(10))
        assert scores.tolist() == [[value, 1 - value]]

    async with AsyncHeadClient(pair[0].address) as one, AsyncHeadClient(pair[1].address) as two:
        predictor = ClientPredictor([one, two], CallLimits(max_calls=1), policy=QUICK)
        predictor.start()
        try:
            for turn in range(30):
                if turn == 5:
                    pair[1].signal(signal.SIGSTOP)
                await asyncio.gather(*(ask(predictor, manifest, turn / 32) for manifest in manifests))
            assert "ejected" == predictor.pool.snapshot[1][0]
            pair[1].signal(signal.SIGCONT)
            await until(lambda: predictor.pool.is_usable(1), 10)
        finally:
            await predictor.close()


async def test_a_gateway_takes_several_addresses_and_shows_its_replicas(stubs, tmp_path) -> None:
    path = tmp_path / "catalogue.json"
    path.write_bytes(msgspec.json.encode(Catalogue({"head": CatalogueHead(1, {1: MANIFEST})})))
    embedding, heads = (", ".join(stub.address for stub in stubs(kind)) for kind in ("embedding", "heads"))
    settings = Settings(embedding_address=embedding, heads_address=heads, catalogue=str(path))
    async with started(settings) as state:
        work = Classification([text_of(number) for number in range(4)])
        answer = await state.pipeline.classify(work, Deadline.after(10))
        shown = state.telemetry.render(inside=0, catalogue_age=0.0).decode()

    outcome = answer.outcomes["head"]
    assert isinstance(outcome, list)
    best = [max(score_of(number), float(1 - np.float32(score_of(number)))) for number in range(4)]
    assert best == [said.score for said in outcome if isinstance(said, HeadAnswer)]
    for backend in ("embedding", "heads"):
        assert f'trunkline_gateway_backend_replicas_left_alone{{backend="{backend}"}} 0.0' in shown
        assert f'trunkline_gateway_backend_outstanding_texts{{backend="{backend}",replica="1"}} 0.0' in shown


def test_what_happens_at_the_backends_is_counted() -> None:
    registry = CollectorRegistry()
    facts = BackendMetrics(registry)
    facts.ejected("heads", 1, "silent")
    facts.readmitted("heads", 1)
    facts.retried("heads")
    facts.retry_refused("heads")
    facts.hedged("heads")
    facts.breaker("spam", 4, "open")

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"trunkline_gateway_{name}", labels)

    assert 1 == value("backend_ejections_total", backend="heads", replica="1", reason="silent")
    assert 1 == value("backend_retries_total", backend="heads", outcome="made")
    assert 1 == value("backend_retries_total", backend="heads", outcome="no permit")
    assert 1 == value("backend_hedges_total", backend="heads")
    assert 2 == value("head_breaker_state", head="spam", version="4")
