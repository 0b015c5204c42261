"""The composition root: prepare the trunk, warm it up, open both ports, serve until told to stop, drain.

Order of a start: load, warm up, listen, report ready. Order of a stop: not ready, gRPC health NOT_SERVING, stop accepting,
finish what is in flight within the grace, close the backend.
"""

import asyncio
import contextlib
import itertools
import logging
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from grpc_health.v1.health import aio as health_aio
from prometheus_client import CollectorRegistry

from clients.wire.addresses import host_port
from clients.wire.bodies import Bodies, WithBodies
from clients.wire.chain import chain_of
from clients.wire.guarded_http import GuardedHttp, RouteTable
from embedding_service import logs
from embedding_service.backend import Backend, Batch
from embedding_service.backend.tables import Table
from embedding_service.batching import PassSlots
from embedding_service.bert_as_service import BertAsService, Embed
from embedding_service.bert_http import BertAsServiceEdge
from embedding_service.door import door_of
from embedding_service.edge import WithExchanges
from embedding_service.exchange import Exchanges, Observer, heard
from embedding_service.guarding import ROUTES, guard_of, refusal_body
from embedding_service.hosted_table import HostedTable
from embedding_service.http import HttpEdge
from embedding_service.infer import HostedTrunk, Infer
from embedding_service.info import info_of
from embedding_service.listening import bert_ports, http_server, start_grpc
from embedding_service.readiness import Readiness
from embedding_service.server import EmbeddingServicer
from embedding_service.settings import Settings
from embedding_service.tei import TeiEdge
from embedding_service.telemetry import PrometheusTelemetry
from embedding_service.tokenization import InputLimits

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from embedding_service.shared_cache import SharedVectorCache
    from embedding_service.traces import Traces

_log = logging.getLogger(__name__)

MOST_WARM_UPS: Final = 4
"""Passes of each shape."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a running service listens: *grpc* as HOST:PORT, *http* as a URL; *bert* and *bert_out* as HOST:PORT, if at all."""

    grpc: str
    http: str
    bert: str | None = None
    bert_out: str | None = None


class MissingExtra(Exception):
    """A setting needs a package that is not installed; the message says which."""


def warm_up(backend: Backend) -> None:
    """Run passes of a few lengths, so that the first caller does not pay for what an engine compiles lazily."""
    spec = backend.trunk
    for length, num_rows in itertools.product((8, 16, 32, 64), (1, 8)):
        ids = tuple(range(1, min(length, spec.max_tokens, spec.vocab_size - 1) + 1))
        batch = Batch((ids,) * num_rows, ((spec.default_view,),) * num_rows)
        backend.embed(replace(batch, is_alone=True))
        # An engine may keep a form of the graph for each of a few threads, and take them in turns.
        for _ in range(min(backend.engine.concurrency, MOST_WARM_UPS)):
            backend.embed(batch)


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
    serving = Readiness(health, trunks, [table.spec.name for table in tables])

    tei = TeiEdge(
        infer,
        is_ready=serving.may_send,
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
        is_ready=serving.may_send,
        info=lambda: info_of(settings, trunks, tables),
        max_body_bytes=settings.max_body_bytes,
        default_timeout=settings.default_timeout_seconds,
        more_routes=[*tei.routes(), *bert_edge.routes()],
    )
    guard = guard_of(settings)
    app: ASGIApp = WithBodies(edge.app(), Bodies(settings.max_held_bytes))
    if guard is not None:
        app = GuardedHttp(app, guard, RouteTable(ROUTES).needed, refusal_body)
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
        grpc_server, grpc_port = await start_grpc(servicer, health, settings, guard)
        stack.push_async_callback(grpc_server.stop, settings.drain_seconds)
        stack.callback(servicer.drain)
        http_port = await stack.enter_async_context(http_server(app, settings, door_of(infer, exchanges)))
        ports = await stack.enter_async_context(bert_ports(bert, embed, settings))
        stack.push_async_callback(_drain, trunks, settings.drain_seconds)
        if shared is not None:
            # Again here, before the batchers drain: what is being looked up may still have to be computed.
            stack.push_async_callback(shared.aclose)
        scheme = "http" if settings.tls_certificate_file is None else "https"
        await serving.turn(on=True)
        stack.push_async_callback(serving.turn, on=False)
        yield Addresses(host_port(settings.host, grpc_port), f"{scheme}://{host_port(settings.host, http_port)}", *ports)


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
            chain=chain_of(settings.preprocess),
            quick_tokens=settings.quick_tokens,
        )
        if trunk.encoder.why_not_quick:
            _log.warning("trunk %s: texts are read by the tokenizers library: %s", name, trunk.encoder.why_not_quick)
        telemetry.watch_queue(name, trunk.batcher.queue)
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
