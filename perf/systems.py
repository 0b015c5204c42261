"""What is measured: our embedding service and its peers, each started as its users start it, and how each is asked."""

import asyncio
import base64
import contextlib
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import psutil

from clients.wire.text import TextEncoder
from embedding_service.backend import Backend, Batch, FloatArray
from embedding_service.backend.load import load_backend
from embedding_service.models.prepare import Engine, prepare
from perf.http_client import Connection, ConnectionLostError
from perf.load import Target, target_of
from perf.machine import tree
from perf.peers.environment import python_of
from perf.trunks import int8_trunk
from perf.workloads import Workload
from trunkline import paths
from trunkline.processes import Child, StackError
from trunkline.stack import Stack, StackSettings

START_SECONDS: Final = 180.0
STOP_SECONDS: Final = 8.0
ANSWER_SECONDS: Final = 30.0
_SERVERS: Final = Path(__file__).parent / "peers"


@dataclass(frozen=True, slots=True)
class Route:
    """One way to ask a server for the vector of one text: where, with which body, and how the answer is read."""

    path: str
    body_of: Callable[[str], bytes]
    vector_of: Callable[[Any], FloatArray]


def _from_base64(answer: Any) -> FloatArray:
    return np.frombuffer(base64.b64decode(answer["data"][0]["embedding"]), dtype="<f4").astype(np.float32)


def _floats(answer: Any) -> FloatArray:
    return np.asarray(answer, dtype=np.float32).reshape(-1)


def _openai(text: str) -> bytes:
    return msgspec.json.encode({"model": "trunk", "input": text, "encoding_format": "base64"})


OPENAI: Final = Route("/v1/embeddings", _openai, _from_base64)
TEI: Final = Route("/embed", lambda text: msgspec.json.encode({"inputs": text}), _floats)
_INFINITY: Final = Route("/embeddings", _openai, _from_base64)
_FASTAPI: Final = Route("/embed", lambda text: msgspec.json.encode({"text": text}), _floats)
_LITSERVE: Final = Route(
    "/predict", lambda text: msgspec.json.encode({"text": text}), lambda answer: _floats(answer["embedding"])
)


def classify_route(heads: Sequence[str]) -> Route:
    """The gateway's, for *heads*; its vector is one score a head."""
    return Route(
        "/v1/classify",
        lambda text: msgspec.json.encode({"text": text, "heads": list(heads), "strict": True}),
        lambda answer: _floats([head["score"] for head in answer["results"][0]["heads"].values()]),
    )


@dataclass(frozen=True, slots=True)
class Peer:
    """Another server: *environment* names its pins, *server* its file; *least_cosine* is what its mean must reach to ours."""

    name: str
    environment: str
    server: str
    route: Route
    least_cosine: float = 0.999
    is_int8: bool = False
    flags: tuple[str, ...] = ()


PEERS: Final = {
    peer.name: peer
    for peer in (
        Peer("infinity", "infinity", "serve_infinity.py", _INFINITY),
        Peer("infinity-int8", "infinity", "serve_infinity.py", _INFINITY, 0.985, is_int8=True, flags=("--engine", "optimum")),
        Peer("sentence-transformers", "sentence_transformers", "serve_sentence_transformers.py", _FASTAPI),
        Peer("litserve", "litserve", "serve_litserve.py", _LITSERVE),
    )
}


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers; *pid* is the root of its processes, *others* those of what it needs beside, by name.

    *grpc* is the embedding service's address, *heads_grpc* the head server's.
    """

    name: str
    url: str
    pid: int
    routes: tuple[Route, ...]
    grpc: str = ""
    heads_grpc: str = ""
    others: Mapping[str, int] = field(default_factory=dict)

    @property
    def pids(self) -> dict[str, int]:
        """Roots of all its processes, by name."""
        return {self.name: self.pid, **self.others}

    def target(self, route: Route, workload: Workload) -> Target:
        """One single-text request a text."""
        return target_of(self.url, [route.body_of(text) for text in workload.texts], route.path, workload.classes)

    async def vector(self, route: Route, text: str) -> FloatArray:
        """Ask once; float32 [width].

        Raises:
            OSError, ConnectionLostError, TimeoutError: no answer.
            StackError: an answer that is not a vector.
        """
        target = target_of(self.url, [], route.path)
        connection = await Connection.open(target.host, target.port)
        try:
            status, body = await connection.request(target.path, route.body_of(text), ANSWER_SECONDS)
        finally:
            connection.close()
        if status != 200:
            raise StackError(f"{self.name} answered {status} on {route.path}")
        return route.vector_of(msgspec.json.decode(body))


@contextlib.asynccontextmanager
async def our_service(
    trunk: Path | None, *, engine: Engine = "auto", cache_bytes: int = 0, say: Callable[[str], None] = print
) -> AsyncIterator[Running]:
    """Our embedding service on *trunk* (None: the default one), on any ports, until the context ends.

    The workloads' texts come again and again, so a cache would answer for the engine: it is off unless asked for.
    """
    os.environ["TRUNKLINE_EMBEDDING_CACHE_BYTES"] = str(cache_bytes)
    home = paths.home()
    settings = StackSettings(
        home / "repository", paths.cache_dir(), home / "logs", model=str(trunk) if trunk else None, engine=engine
    )
    stack = Stack(settings.on_any_ports(), say)
    try:
        grpc, http = await stack.start_embedding()
        yield Running("trunkline", http, stack.children["embedding"].pid, (OPENAI, TEI), grpc)
    finally:
        await stack.stop()


@contextlib.asynccontextmanager
async def our_gateway(
    heads: Sequence[str],
    *,
    engine: Engine = "auto",
    cache_bytes: int = 0,
    embedding: Running | None = None,
    say: Callable[[str], None] = print,
) -> AsyncIterator[Running]:
    """The whole local stack, asked for *heads* of the repository in trunkline's home, until the context ends.

    *embedding*, when given, takes the place of the stack's own embedding service.

    Raises:
        SystemExit: one of *heads* is not there.
    """
    os.environ["TRUNKLINE_EMBEDDING_CACHE_BYTES"] = str(cache_bytes)
    os.environ["TRUNKLINE_GATEWAY_OUTPUT_CACHE_BYTES"] = str(cache_bytes)
    home = paths.home()
    missing = [head for head in heads if not (home / "repository" / head).is_dir()]
    if missing:
        raise SystemExit(f"there is no head {missing[0]!r} in {home / 'repository'}: run `trunkline demo` first")
    settings = StackSettings(
        home / "repository",
        paths.cache_dir(),
        home / "logs",
        engine=engine,
        embedding_address="" if embedding is None else embedding.grpc,
    )
    stack = Stack(settings.on_any_ports(), say)
    try:
        found = await stack.start()
        pids = {name: child.pid for name, child in stack.children.items()}
        if embedding is not None:
            pids["embedding"] = embedding.pid
        gateway = pids.pop("gateway")
        yield Running("gateway", found.gateway, gateway, (classify_route(heads),), found.embedding_grpc, found.heads_grpc, pids)
    finally:
        await stack.stop()


@contextlib.asynccontextmanager
async def peer_service(
    peer: Peer, trunk: Path, *, cache_dir: Path, peers_dir: Path, say: Callable[[str], None] = print
) -> AsyncIterator[Running]:
    """*peer* on *trunk*, in its own environment under *peers_dir*, until the context ends; it answers when this is entered.

    Raises:
        CannotInstall: in one line.
        StackError: it did not start, or does not answer.
    """
    python = await asyncio.to_thread(python_of, peer.environment, peers_dir, say)
    directory = await asyncio.to_thread(int8_trunk, trunk, cache_dir) if peer.is_int8 else trunk
    port = free_port()
    # -P: the folder of the server's file must not hide modules of the same name.
    command = [str(python), "-P", str(_SERVERS / peer.server), "--model", str(directory), "--port", str(port), *peer.flags]
    log = paths.home() / "logs" / f"peer-{peer.name}.log"
    child = Child(peer.name, command, ready=re.compile(r"Uvicorn running on"), log=log, env=offline(peers_dir))
    processes: list[psutil.Process] = []
    try:
        await child.start(START_SECONDS)
        running = Running(peer.name, f"http://127.0.0.1:{port}", child.pid, (peer.route,))
        await _until_it_answers(running, peer.route)
        processes = tree(child.pid)
        yield running
    finally:
        await _stop(child, processes)


def offline(peers_dir: Path) -> dict[str, str]:
    """The environment of a peer: no hub, no telemetry, and what it keeps stays in the cache. Threads are its own affair."""
    kept = {"HF_HOME": str(peers_dir / "peers" / "hf"), "INFINITY_HOME": str(peers_dir / "peers")}
    return {**os.environ, **kept, "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1"}


async def _until_it_answers(running: Running, route: Route) -> None:
    give_up = time.monotonic() + START_SECONDS
    while True:
        try:
            await running.vector(route, "Are you there?")
        except (OSError, ConnectionLostError, StackError) as error:
            if time.monotonic() > give_up:
                raise StackError(f"{running.name} runs, but gives no vector: {error}") from error
            await asyncio.sleep(0.2)
        else:
            return


async def _stop(child: Child, processes: Sequence[psutil.Process]) -> None:
    """Some servers leave their workers behind; what is left of *processes* is ended."""
    with contextlib.suppress(AssertionError):
        processes = [*processes, *tree(child.pid)]
    await child.stop(STOP_SECONDS)
    for process in {process.pid: process for process in processes}.values():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


async def least_and_mean_cosine(
    running: Running, route: Route, texts: Sequence[str], expected: FloatArray
) -> tuple[float, float]:
    """Of the server's vectors of *texts* to *expected*, float32 [texts, width], of length 1."""
    vectors = np.stack([await running.vector(route, text) for text in texts])
    cosines = np.einsum("ij,ij->i", vectors, expected) / np.linalg.norm(vectors, axis=1)
    return float(cosines.min()), float(cosines.mean())


def reference_vectors(trunk: Path, texts: Sequence[str]) -> FloatArray:
    """Of *texts* by our float32 engine in this process, float32 [texts, width]: what every server must answer."""
    backend = load_backend(prepare(str(trunk), cache_dir=paths.cache_dir(), engine="onnx-fp32"))
    with contextlib.closing(backend):
        views = (backend.trunk.default_view,)
        return np.stack([backend.embed(Batch((ids,), (views,)))[0][0] for ids in token_ids_of(backend, texts)])


def token_ids_of(backend: Backend, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """*texts* as the backend's trunk takes them."""
    encoder = TextEncoder(backend.trunk.tokenizer_json, max_tokens=backend.trunk.max_tokens)
    return [tuple(encoded.ids) for encoded in encoder.encode(texts)]


def free_port() -> int:
    """One on loopback that nobody listens on at this moment, for servers that cannot choose by themselves."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
