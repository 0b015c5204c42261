"""The composition root: prepare the trunk, warm it up, open both ports, serve until told to stop, drain.

Order of a start: load, warm up, listen, report ready. Order of a stop: not ready, gRPC health NOT_SERVING, stop accepting,
finish what is in flight within the grace, close the backend.
"""

import asyncio
import contextlib
import dataclasses
import functools
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio
import uvicorn
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from clients.wire.metadata import EMBEDDING_SERVICE, MAX_MESSAGE_BYTES
from embedding_service import logs
from embedding_service.backend import Backend, Batch
from embedding_service.backend.tables import Table
from embedding_service.batching import PassSlots
from embedding_service.bert_as_service import BertAsService, Embed
from embedding_service.bert_http import BertAsServiceEdge
from embedding_service.edge import WithExchanges
from embedding_service.exchange import Exchanges, Observer, heard
from embedding_service.hosted_table import HostedTable
from embedding_service.http import HttpEdge
from embedding_service.infer import HostedTrunk, Infer
from embedding_service.server import EmbeddingServicer
from embedding_service.settings import Settings
from embedding_service.tei import TeiEdge
from embedding_service.telemetry import PrometheusTelemetry
from embedding_service.tokenization import InputLimits

if TYPE_CHECKING:
    from embedding_service.shared_cache import SharedVectorCache
    from embedding_service.traces import Traces

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a running service listens: *grpc* as HOST:PORT, *http* as a URL; *bert* and *bert_out* as HOST:PORT, if at all."""

    grpc: str
    http: str
    bert: str | None = None
    bert_out: str | None = None


class ListenError(Exception):
    """A port could not be had; the message says which and what to do."""


class MissingExtra(Exception):
    """A setting needs a package that is not installed; the message says which."""


def warm_up(backend: Backend) -> None:
    """Run passes of a few lengths, so that the first caller does not pay for what an engine compiles lazily."""
    spec = backend.trunk
    for length in (8, 16, 32, 64):
        ids = tuple(range(1, min(length, spec.max_tokens, spec.vocab_size - 1) + 1))
        for rows in (1, 8):
            backend.embed(Batch((ids,) * rows, ((spec.default_view,),) * rows))


@contextlib.asynccontextmanager
async def running(backends: Sequence[Backend], settings: Settings, tables: Sequence[Table] = ()) -> AsyncIterator[Addresses]:
    """Serve *backends* and *tables* on both ports for as long as the context lasts; leaving it drains and closes them."""
    registry = CollectorRegistry()
    telemetry = PrometheusTelemetry(registry)
    shared = _shared_cache(settings, telemetry)
    trunks = _hosted(backends, settings, telemetry, shared)
    hosted_tables = [HostedTable(table) for table in tables]
    infer = Infer([*trunks, *hosted_tables], InputLimits(max_request_inputs=settings.max_request_inputs), telemetry)
    traces = _traces(settings)
    observers: list[Observer] = [logs.access] if settings.access_log else []
    exchanges = Exchanges(observers if traces is None else [*observers, traces.observe], _engine_of(infer))
    health = health_aio.HealthServicer()
    serving = _Readiness(health, trunks, [table.spec.name for table in tables])

    def is_ready() -> bool:
        return serving.is_ready and all(trunk.batcher.is_healthy for trunk in trunks)

    tei = TeiEdge(
        infer,
        is_ready=is_ready,
        max_body_bytes=settings.max_body_bytes,
        default_timeout=settings.default_timeout_seconds,
    )
    bert = BertAsService(
        infer,
        pooling=settings.bert_pooling,
        show_tokens=settings.bert_show_tokens,
        default_timeout=settings.default_timeout_seconds,
    )
    bert_edge = BertAsServiceEdge(bert, infer, max_body_bytes=settings.max_body_bytes)
    edge = HttpEdge(
        infer,
        registry=registry,
        is_ready=is_ready,
        info=lambda: _info(settings, trunks, tables),
        max_body_bytes=settings.max_body_bytes,
        default_timeout=settings.default_timeout_seconds,
        more_routes=[*tei.routes(), *bert_edge.routes()],
    )
    app: ASGIApp = edge.app()
    embed: Embed = infer.embed
    if exchanges.is_on:
        app = WithExchanges(app, exchanges)
        embed = heard(embed, lambda: exchanges.begin("zmq", "encode", tuple))
    async with contextlib.AsyncExitStack() as stack:
        closers = [backend.close for backend in backends] + [table.close for table in hosted_tables]
        for close in closers:
            stack.callback(close)
        if shared is not None:
            stack.push_async_callback(shared.aclose)
            # Before the servers: what they do when they start holds the loop for longer than an answer may take.
            await shared.start()
        if traces is not None:
            stack.push_async_callback(traces.aclose)
        servicer = EmbeddingServicer(infer, telemetry, default_timeout=settings.default_timeout_seconds, exchanges=exchanges)
        grpc_server, grpc_port = await _start_grpc(servicer, health, settings)
        stack.push_async_callback(grpc_server.stop, settings.drain_seconds)
        stack.callback(servicer.drain)
        http_port = await stack.enter_async_context(_http_server(app, settings))
        bert_ports = await stack.enter_async_context(_bert_ports(bert, embed, settings))
        stack.push_async_callback(_drain, trunks, settings.drain_seconds)
        if shared is not None:
            # Again here, before the batchers drain: what is being looked up may still have to be computed.
            stack.push_async_callback(shared.aclose)
        await serving.turn(on=True)
        stack.push_async_callback(serving.turn, on=False)
        yield Addresses(f"{settings.host}:{grpc_port}", f"http://{settings.host}:{http_port}", *bert_ports)


def _hosted(
    backends: Sequence[Backend], settings: Settings, telemetry: PrometheusTelemetry, shared: "SharedVectorCache | None"
) -> list[HostedTrunk]:
    """A trunk for each backend. Passes on one device share its slots."""
    slots = {
        device: PassSlots(max(backend.engine.concurrency for backend in backends if backend.engine.device == device))
        for device in {backend.engine.device for backend in backends}
    }
    trunks = []
    for backend in backends:
        name = backend.trunk.name
        trunk = HostedTrunk(
            backend,
            settings.queue_limits,
            telemetry.of_trunk(name),
            slots=slots[backend.engine.device],
            cache_bytes=settings.cache_bytes // len(backends),
            shared=None if shared is None else shared.of(backend.trunk.fingerprint, backend.engine.label),
        )
        telemetry.watch_queue(name, trunk.batcher.queue_age)
        trunks.append(trunk)
    return trunks


async def _drain(trunks: Sequence[HostedTrunk], grace: float) -> None:
    await asyncio.gather(*(trunk.batcher.drain(grace) for trunk in trunks))


async def serve(
    backends: Sequence[Backend], settings: Settings, on_ready: Callable[[Addresses], None], tables: Sequence[Table] = ()
) -> None:
    """Serve *backends* and *tables* until SIGTERM or SIGINT; a second signal ends the process at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(logs.on_loop_fault)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_signal, stop, loop, number)
    async with running(backends, settings, tables) as addresses:
        on_ready(addresses)
        await stop.wait()
        _log.info("draining")


def _on_signal(stop: asyncio.Event, loop: asyncio.AbstractEventLoop, number: signal.Signals) -> None:
    stop.set()
    loop.remove_signal_handler(number)


class _Readiness:
    """Whether work may be sent here, and gRPC health telling the same: of the service, and of each trunk by "trunk/NAME".

    A trunk whose last forward pass failed is NOT_SERVING until one goes well.
    """

    def __init__(self, health: health_aio.HealthServicer, trunks: Sequence[HostedTrunk], tables: Sequence[str]) -> None:
        self.is_ready = False
        self._always = (EMBEDDING_SERVICE, "", *(f"trunk/{name}" for name in tables))
        self._health = health
        self._trunks = trunks
        self._telling: set[asyncio.Task[None]] = set()
        for trunk in trunks:
            trunk.batcher.on_health = functools.partial(self._trunk_changed, trunk)

    async def turn(self, *, on: bool) -> None:
        self.is_ready = on
        for name in self._always:
            await self._health.set(name, _STATUS[on])
        for trunk in self._trunks:
            await self._tell(trunk)

    def _trunk_changed(self, trunk: HostedTrunk) -> None:
        telling = asyncio.ensure_future(self._tell(trunk))
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)

    async def _tell(self, trunk: HostedTrunk) -> None:
        await self._health.set(f"trunk/{trunk.spec.name}", _STATUS[self.is_ready and trunk.batcher.is_healthy])


_STATUS: Final = {
    True: health_pb2.HealthCheckResponse.SERVING,
    False: health_pb2.HealthCheckResponse.NOT_SERVING,
}


async def _start_grpc(
    servicer: EmbeddingServicer, health: health_aio.HealthServicer, settings: Settings
) -> tuple[grpc.aio.Server, int]:
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.so_reuseport", 0),
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ("grpc.keepalive_permit_without_calls", 1),
        ]
    )
    server.add_generic_rpc_handlers((servicer.handler(),))
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    try:
        port = server.add_insecure_port(f"{settings.host}:{settings.grpc_port}")
    except RuntimeError:
        raise ListenError(_taken(settings.grpc_port, "--grpc-port")) from None
    await server.start()
    return server, port


def _shared_cache(settings: Settings, telemetry: PrometheusTelemetry) -> "SharedVectorCache | None":
    if settings.cache_redis_url is None:
        return None
    try:
        from embedding_service.shared_cache import SharedVectorCache  # noqa: PLC0415 (an extra)
    except ImportError:
        raise MissingExtra("the setting cache_redis_url needs the package redis; install trunkline[redis]") from None
    return SharedVectorCache(
        settings.cache_redis_url.get_secret_value(),
        telemetry,
        timeout=settings.cache_redis_timeout_seconds,
        expiry=settings.cache_redis_expiry_seconds,
    )


def _traces(settings: Settings) -> "Traces | None":
    if settings.otlp_endpoint is None:
        return None
    try:
        from embedding_service.traces import Traces, to_collector  # noqa: PLC0415 (an extra)
    except ImportError:
        raise MissingExtra("the setting otlp_endpoint needs the packages of OpenTelemetry; install trunkline[otel]") from None
    return Traces(to_collector(settings.otlp_endpoint), settings.otlp_sample_ratio)


def _engine_of(infer: Infer) -> Callable[[str], str]:
    """The label of a trunk's engine by the trunk's name; a table has none."""
    labels = {name: one.engine.label for name, one in infer.hosted.items() if isinstance(one, HostedTrunk)}
    return lambda name: labels.get(name, "")


@contextlib.asynccontextmanager
async def _http_server(app: ASGIApp, settings: Settings) -> AsyncIterator[int]:
    try:
        listener = socket.create_server((settings.host, settings.http_port))
    except OSError:
        raise ListenError(_taken(settings.http_port, "--http-port")) from None
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=max(1, round(settings.drain_seconds))
    )
    server = uvicorn.Server(config)
    # Signals are this module's business, not uvicorn's.
    task = asyncio.create_task(server._serve([listener]))  # noqa: SLF001
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task
        listener.close()


@contextlib.asynccontextmanager
async def _bert_ports(bert: BertAsService, embed: Embed, settings: Settings) -> AsyncIterator[tuple[str, ...]]:
    """Both ports of bert-as-service as HOST:PORT, or none where none are set."""
    if settings.bert_port is None or settings.bert_port_out is None:
        yield ()
        return
    try:
        from embedding_service import zmq_edge  # noqa: PLC0415 (an optional extra)
    except ImportError:
        raise ListenError("the ports of bert-as-service need pyzmq; install trunkline[zmq], or leave --bert-port out") from None
    limits = zmq_edge.ZmqLimits(max_message_bytes=settings.max_body_bytes, max_open_bytes=8 * settings.max_body_bytes)
    try:
        sockets = zmq_edge.bind(settings.host, settings.bert_port, settings.bert_port_out, limits)
    except zmq_edge.PortTakenError as error:
        flag = "--bert-port" if error.port == settings.bert_port else "--bert-port-out"
        raise ListenError(_taken(error.port, flag)) from None
    async with zmq_edge.serving(bert, embed, sockets, limits):
        yield f"{settings.host}:{sockets.port}", f"{settings.host}:{sockets.port_out}"


def _taken(port: int, flag: str) -> str:
    return f"port {port} is taken; stop what listens there or choose another with {flag} (0: any free one)"


def _described(trunk: HostedTrunk) -> dict[str, Any]:
    spec, engine = trunk.spec, trunk.engine
    return {
        "name": spec.name,
        "fingerprint": spec.fingerprint,
        "width": spec.width,
        "max_tokens": spec.max_tokens,
        "engine": engine.label,
        "agreement": engine.agreement,
        "concurrency": engine.concurrency,
        "layers": engine.layers,
    }


def _info(settings: Settings, trunks: Sequence[HostedTrunk], tables: Sequence[Table]) -> dict[str, Any]:
    spec, engine = trunks[0].spec, trunks[0].engine
    # The names text-embeddings-inference has for the same facts; its clients read them.
    in_tei_words = {
        "model_id": spec.name,
        "model_sha": spec.fingerprint,
        "model_dtype": engine.label,
        "model_type": {"embedding": {"pooling": spec.default_view.pooling}},
        "max_input_length": spec.max_tokens,
        "max_batch_tokens": settings.max_batch_tokens,
        "max_batch_requests": settings.max_batch_requests,
        "max_client_batch_size": settings.max_request_inputs,
        "auto_truncate": True,
        "version": version("trunkline"),
    }
    effective = settings.model_dump(mode="json", exclude={"cache_dir", "model", "table"})
    of_tables = [dataclasses.asdict(table.spec) for table in tables]
    of_trunks = [_described(trunk) for trunk in trunks]
    return {"service": "embedding", "trunks": of_trunks, "tables": of_tables, "settings": effective, **in_tei_words}
