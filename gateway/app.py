"""The application: what lives as long as it does, its routes, its errors."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final, TypedDict

from fastapi import FastAPI, Request
from fastapi_offline import FastAPIOffline
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.routing import Mount
from starlette.types import Scope

from clients import AsyncEmbeddingClient, AsyncHeadClient
from clients.wire import http_server
from clients.wire.bodies import Bodies
from clients.wire.credentials import NO_CREDENTIALS, Credentials, embedding_credentials, head_credentials
from clients.wire.http_server import Shortcuts
from gateway import logs, ui
from gateway.admin import on_admin_port
from gateway.admission import Admission
from gateway.backends.embedding import ClientEmbedder, ClientTrunks
from gateway.backends.facts import BackendFacts
from gateway.backends.heads import ClientPredictor
from gateway.backends.replicas import Policy
from gateway.bundles import Bundles
from gateway.catalogue import CataloguePoller, source_of
from gateway.coalesce import CallLimits
from gateway.door import Door, OuterDoor
from gateway.drain import Drain
from gateway.drift import DriftMonitor
from gateway.edges import open_inference, openai, stream, tei
from gateway.edges.open_streams import OpenStreams
from gateway.embedding import TextEmbedder
from gateway.errors import error_response, fault_response, response_of
from gateway.exchange import Exchanges, WithExchanges
from gateway.fanout import FanOut
from gateway.guarding import layers
from gateway.outputs import NoOutputs, OutputCache, OutputRules
from gateway.pipeline import Pipeline
from gateway.plan import Planner
from gateway.routes import State, classify, request_id_of, router
from gateway.schemas import openapi_parts
from gateway.settings import Settings, addresses_of
from gateway.shadow import Shadows
from gateway.telemetry import BackendMetrics, Telemetry, TimedPredictor
from gateway.versions import VersionCounts

if TYPE_CHECKING:
    from gateway.traces import Traces

OPEN_ENDED: Final = frozenset({"/v1/classify/stream"})
"""Paths whose bodies may go on for as long as the caller likes."""

TELLS: Final = {"/v1/classify": response_of, "/v1/embeddings": openai.tell, "/predict": tei.tell}
"""How a full gateway says so, by the path of what is POSTed."""


class Lifespan(TypedDict):
    """What `request.state` holds."""

    gateway: State


def create_app(settings: Settings, admin_listener: socket.socket | None = None, drain: Drain | None = None) -> Starlette:
    """The gateway's ASGI application: the hot route by itself, and FastAPI for everything people read.

    On *admin_listener*, where there is one, what operators read is served without a key for as long as the application lives.
    Who stops it begins *drain*.

    Routers and FastAPI's layers of middleware would cost more than the gateway's own work on a short text; FastAPI's route of
    the same path stays for the documentation.

    Raises:
        KeysError: the file of keys cannot be used.
        CredentialsError: a file of a backend's key or certificate cannot be used.
    """
    traces = _traces(settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[Lifespan]:
        asyncio.get_running_loop().set_exception_handler(logs.on_loop_fault)
        async with started(settings, to_embedding, to_heads) as state:
            state.drain = drain or state.drain
            async with on_admin_port(api, {"gateway": state}, admin_listener):
                yield Lifespan(gateway=state)
        if traces is not None:
            await traces.aclose()

    to_embedding, to_heads = embedding_credentials(settings), head_credentials(settings)
    api = create_api(docs=settings.docs)
    guarded = layers(settings, request_id_of, _telemetry_of)
    heard = Middleware(WithExchanges, exchanges=Exchanges([logs.access] if settings.access_log else [], traces))
    door = Middleware(Door, tells=TELLS)
    return Starlette(
        routes=[Mount("/", api)],
        # Outermost: what is refused at the door has an id and a line, too. Innermost: the hot route.
        middleware=[heard, *guarded, door, Middleware(Shortcuts, endpoints={"/v1/classify": classify})],
        lifespan=lifespan,
        exception_handlers={HTTPException: _on_http_error},
    )


def door_of(settings: Settings) -> http_server.Door:
    """What stands before `create_app`'s application; open to all where one of its layers must see each request."""
    is_told = settings.access_log or settings.otlp_endpoint is not None
    return http_server.open_door if is_told or settings.cors_origins else OuterDoor(TELLS)


def create_api(*, docs: bool = True) -> FastAPI:
    """All routes, documented. They find their `State` in `request.state.gateway`."""
    title = "Trunkline gateway"
    api: FastAPI = FastAPIOffline(title=title, version="1") if docs else FastAPI(title=title, openapi_url=None)
    for routes in (router, stream.router, openai.router, tei.router, open_inference.router, ui.router):
        api.include_router(routes)
    api.add_exception_handler(HTTPException, _on_http_error)
    api.add_exception_handler(Exception, _on_fault)
    original = api.openapi

    def openapi() -> dict[str, Any]:
        schema = original()
        schema.setdefault("components", {}).setdefault("schemas", {}).update(
            openapi_parts() | openai.SCHEMAS | tei.SCHEMAS | open_inference.SCHEMAS
        )
        return schema

    api.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way of extending the schema
    return api


def _telemetry_of(scope: Scope) -> Telemetry:
    state: State = scope["state"]["gateway"]
    return state.telemetry


@contextlib.asynccontextmanager
async def started(
    settings: Settings, to_embedding: Credentials = NO_CREDENTIALS, to_heads: Credentials = NO_CREDENTIALS
) -> AsyncIterator[State]:
    """Connections, pollers and pools, closed in the reverse order."""
    async with contextlib.AsyncExitStack() as stack:
        telemetry = Telemetry()
        facts = BackendMetrics(telemetry.registry)
        embedder = await _embedder(settings, to_embedding, stack, facts)
        predictor = await _predictor(settings, to_heads, stack, facts)
        facts.show(embedder.pool)
        facts.show(predictor.pool)
        trunks = ClientTrunks(embedder.clients, embedder.pool.in_order, quick_tokens=settings.quick_tokens)
        drift, versions = DriftMonitor(telemetry.registry), VersionCounts(telemetry.registry)
        outputs = _outputs(settings, telemetry)
        timeout = settings.head_timeout_seconds
        shadows = Shadows(embedder, predictor, versions, max_texts=settings.max_shadow_texts, timeout=timeout)
        stack.push_async_callback(shadows.close)
        catalogue = CataloguePoller(
            source_of(settings.catalogue),
            poll_seconds=settings.catalogue_poll_seconds,
            followers=[outputs, drift, versions, predictor, facts],
        )
        await catalogue.refresh()
        polling = asyncio.create_task(catalogue.run())
        stack.push_async_callback(_cancel, polling)
        admission = _admission(settings)
        telemetry.watch_queue("embed", lambda: embedder.num_open)
        telemetry.watch_queue("heads", lambda: predictor.num_waiting)
        telemetry.watch_catalogue(lambda: catalogue.catalogue)
        telemetry.watch_bound(lambda: admission.bound)
        bundles = Bundles(catalogue) if settings.bundles else None
        timed = TimedPredictor(predictor, telemetry)
        fan_out = FanOut(timed, head_timeout=settings.head_timeout_seconds, bundles=bundles, telemetry=telemetry)
        pipeline = Pipeline(
            trunks,
            embedder,
            fan_out,
            catalogue,
            outputs if settings.output_cache_bytes else NoOutputs(),
            Planner(),
            shadows if settings.max_shadow_texts else None,
            [drift, versions],
        )
        text_embedder = TextEmbedder(trunks, embedder)
        streams = OpenStreams(settings.max_streams)
        bodies = Bodies(settings.max_held_bytes)
        yield State(settings, pipeline, trunks, catalogue, admission, telemetry, text_embedder, streams, bodies)


def _admission(settings: Settings) -> Admission:
    return Admission(settings.max_concurrent_texts, max_wait_seconds=settings.max_wait_seconds)


def _outputs(settings: Settings, telemetry: Telemetry) -> OutputCache:
    rules = OutputRules(settings.output_cache_min_accuracy, settings.output_cache_accuracy_gain)
    outputs = OutputCache(settings.output_cache_bytes, rules, telemetry)
    telemetry.watch_cache(entries=lambda: outputs.num_entries, num_bytes=lambda: outputs.num_bytes)
    return outputs


class MissingExtra(Exception):
    """A setting needs a package that is not installed; the message says which."""


def _traces(settings: Settings) -> "Traces | None":
    if settings.otlp_endpoint is None:
        return None
    try:
        from gateway.traces import Traces, to_collector  # noqa: PLC0415 (an extra)
    except ImportError:
        raise MissingExtra("the setting otlp_endpoint needs the packages of OpenTelemetry; install trunkline[otel]") from None
    return Traces(to_collector(settings.otlp_endpoint), settings.otlp_sample_ratio)


async def _embedder(
    settings: Settings, keys: Credentials, stack: contextlib.AsyncExitStack, facts: BackendFacts
) -> ClientEmbedder:
    """With a client for each replica, all closed by *stack*."""
    made = [
        AsyncEmbeddingClient(address, api_key=keys.api_key, tls=keys.tls) for address in addresses_of(settings.embedding_address)
    ]
    clients = [await stack.enter_async_context(client) for client in made]
    embedder = ClientEmbedder(
        clients,
        max_open=2 * settings.max_concurrent_texts,
        policy=_policy(settings),
        probe_seconds=settings.stall_milliseconds / 2000,
        facts=facts,
    )
    embedder.start()
    stack.push_async_callback(embedder.close)
    return embedder


async def _predictor(
    settings: Settings, keys: Credentials, stack: contextlib.AsyncExitStack, facts: BackendFacts
) -> ClientPredictor:
    """With a client for each replica, all closed by *stack*."""
    made = [AsyncHeadClient(address, api_key=keys.api_key, tls=keys.tls) for address in addresses_of(settings.heads_address)]
    clients = [await stack.enter_async_context(client) for client in made]
    predictor = ClientPredictor(
        clients,
        _limits(settings),
        policy=_policy(settings),
        probe_seconds=settings.stall_milliseconds / 2000,
        hedge_seconds=settings.hedge_after_milliseconds / 1000,
        facts=facts,
    )
    predictor.start()
    stack.push_async_callback(predictor.close)
    return predictor


def _policy(settings: Settings) -> Policy:
    return Policy(suspect_seconds=settings.stall_milliseconds / 2000, base_ejection_seconds=settings.eject_seconds)


def _limits(settings: Settings) -> CallLimits:
    return CallLimits(
        max_calls=settings.max_predict_calls, max_rows=settings.max_call_rows, max_pending=2 * settings.max_concurrent_texts
    )


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    codes = {404: "not_found", 405: "method_not_allowed"}
    return error_response(
        error.status_code, codes.get(error.status_code, "invalid_argument"), error.detail, request_id_of(request)
    )


async def _on_fault(request: Request, _: Exception) -> Response:
    """Answered here and raised again by Starlette: `Outermost` logs it."""
    return fault_response(request_id_of(request))
