"""The composition root of the embedded server: load, listen, report ready; drain when told to stop."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, Final, cast

import uvicorn
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from starlette.types import ASGIApp

from clients.wire.addresses import host_port
from clients.wire.catalogue import MANIFEST_PATH
from clients.wire.guarded_http import GuardedHttp
from clients.wire.guarded_rpc import GuardedRpc
from clients.wire.http_server import http_config
from clients.wire.listening import ListenError, why_not
from clients.wire.rpc.connection import Bounds
from clients.wire.rpc.server import SERVER_BOUNDS, AsyncServer
from clients.wire.tfs import serving_pb2 as pb
from head_service.serving.batching import Batcher
from head_service.serving.errors import ServingError
from head_service.serving.flags import CONFIG_FLAG, FlagError, Flags, parse_text_proto, read_bytes
from head_service.serving.guarding import RPCS, refusal_body, rest_needs
from head_service.serving.monitoring import Monitoring, RestMonitor, RpcMonitor
from head_service.serving.predict import Predictor
from head_service.serving.rest import RestEdge
from head_service.serving.rpc import RpcEdge
from head_service.serving.servable import Servable, ServableOptions
from head_service.serving.settings import Settings
from head_service.serving.versions import Following, VersionManager

_log = logging.getLogger(__name__)

MAX_BODY_BYTES: Final = 16 * 1024 * 1024
HEALTH_NAMES: Final = ("", "ModelService", "PredictionService")
_BOUNDS: Final = {
    "grpc.max_receive_message_length": "max_message_bytes",
    "grpc.max_concurrent_streams": "max_streams",
    "grpc.max_metadata_size": "max_header_bytes",
}
"""gRPC's names (include/grpc/impl/channel_arg_names.h) and those of `Bounds`."""


async def serve(settings: Settings, listener: socket.socket, on_ready: Callable[[str, str], None]) -> None:
    """Serve until SIGTERM or SIGINT, REST on *listener*.

    *on_ready* is told the gRPC and REST addresses once the first versions are loaded.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)

    def stop_once() -> None:
        """The first signal drains; the next one, whichever it is, ends the process as usual."""
        stop.set()
        for number in signals:
            loop.remove_signal_handler(number)

    for number in signals:
        loop.add_signal_handler(number, stop_once)
    serving = asyncio.create_task(_serve(settings, listener, on_ready, stop))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    await serving


async def _serve(settings: Settings, listener: socket.socket, on_ready: Callable[[str, str], None], stop: asyncio.Event) -> None:
    async with running(settings, listener, stop) as (rpc, rest):
        if not stop.is_set():
            on_ready(rpc, rest)
        await stop.wait()
        _log.info("draining")


@contextlib.asynccontextmanager
async def running(
    settings: Settings, listener: socket.socket, stop: asyncio.Event | None = None
) -> AsyncIterator[tuple[str, str]]:
    """Serve for as long as the context lasts; its value is the gRPC and REST addresses, HOST:PORT.

    *stop*, once set, cuts short the wait for the first versions.
    """
    flags = settings.flags
    thread_pool = settings.batching.thread_pool_name if settings.batching else ""
    monitoring = Monitoring(lambda name: name in manager.models, thread_pool) if settings.metrics_path else None
    manager = _manager(flags, _options(flags, monitoring))
    manager.configure(settings.models)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(manager.close)
        await _unless(stop, manager.settle())
        batcher = None
        if settings.batching is not None:
            batcher = Batcher(settings.batching, observe_wait=monitoring.waited if monitoring else lambda _: None)
            stack.callback(batcher.close)
        predictor = Predictor(manager, threads=max(2, os.cpu_count() or 1), batcher=batcher)
        stack.callback(predictor.close)
        for work in (_follow(manager, flags), _follow_config(manager, settings)):
            stack.push_async_callback(_cancel, asyncio.create_task(work))
        edges = contextlib.AsyncExitStack(), contextlib.AsyncExitStack()
        try:
            rest = RestEdge(
                manager,
                predictor,
                timeout=flags.rest_api_timeout_in_ms / 1000,
                max_body_bytes=MAX_BODY_BYTES,
                cors=flags.enable_cors_support,
            )
            await edges[0].enter_async_context(_http_server(rest, settings, listener, monitoring))
            rpc = RpcEdge(manager, predictor, as_content=flags.enable_serialization_as_tensor_content)
            rpc_port = await edges[1].enter_async_context(_grpc_server(rpc, settings, monitoring))
            yield host_port(flags.host, rpc_port), host_port(flags.host, listener.getsockname()[1])
        finally:
            # Both drain at once, in the time of one.
            await asyncio.gather(*(edge.aclose() for edge in edges))


def _options(flags: Flags, monitoring: Monitoring | None) -> ServableOptions:
    if flags.allow_foreign_models:
        _log.warning("SavedModels without a manifest are loaded unchecked; --allow_foreign_models=false refuses them")
    parallelism = flags.tensorflow_session_parallelism
    return ServableOptions(
        intra_threads=parallelism or flags.tensorflow_intra_op_parallelism,
        inter_threads=parallelism or flags.tensorflow_inter_op_parallelism,
        tags=frozenset(filter(None, flags.saved_model_tags.split(","))),
        allow_foreign=flags.allow_foreign_models,
        warm_up=flags.enable_model_warmup,
        warm_up_iterations=flags.num_request_iterations_for_warmup,
        observe_run=monitoring.run_ended if monitoring else None,
        observe_warm_up=monitoring.warmed_up if monitoring else None,
    )


def _manager(flags: Flags, options: ServableOptions) -> VersionManager:
    following = Following(
        poll_seconds=max(flags.file_system_poll_wait_seconds, 0.01),
        max_num_load_retries=flags.max_num_load_retries,
        load_retry_seconds=flags.load_retry_interval_micros / 1e6,
        num_load_threads=flags.num_load_threads or 1,
        allow_labels_for_unavailable=flags.allow_version_labels_for_unavailable_models,
        force_labels_for_unavailable=flags.force_allow_any_version_labels_for_unavailable_models,
    )
    return VersionManager(
        lambda name, version, directory: Servable(name, version, directory, options),
        following=following,
        # A manifest says itself whether all of a version is there.
        waits_until_still=lambda directory: not (directory / MANIFEST_PATH).exists(),
    )


@contextlib.asynccontextmanager
async def _grpc_server(edge: RpcEdge, settings: Settings, monitoring: Monitoring | None) -> AsyncIterator[int]:
    flags = settings.flags
    guards = [GuardedRpc(settings.guard, RPCS)] if settings.guard else []
    monitors = [RpcMonitor(monitoring)] if monitoring else []
    server = AsyncServer([*guards, *monitors], bounds=bounds_of(settings.channel_arguments))
    server.add_generic_rpc_handlers(edge.handlers())
    health = health_aio.HealthServicer()
    if flags.enable_grpc_healthcheck_service:
        health_pb2_grpc.add_HealthServicer_to_server(health, cast("Any", server))
    port = _bind(server, settings)
    await server.start()
    for name in HEALTH_NAMES:
        await health.set(name, health_pb2.HealthCheckResponse.SERVING)
    try:
        yield port
    finally:
        for name in HEALTH_NAMES:
            await health.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)
        if flags.enable_grpc_healthcheck_service:
            # Who watches stops sending; what is on its way is still answered.
            await asyncio.sleep(flags.drain_delay_seconds)
        await server.stop(flags.drain_grace_seconds)


def bounds_of(arguments: Sequence[tuple[str, int | str]]) -> Bounds:
    """What gRPC's channel *arguments* bound of a connection; those that mean nothing here are told."""
    bounds = SERVER_BOUNDS
    for name, value in arguments:
        field = _BOUNDS.get(name)
        if field is None or not isinstance(value, int):
            _log.warning("--grpc_channel_arguments: %s has no effect here", name)
        else:
            bounds = replace(bounds, **{field: value if value >= 0 else 2**31 - 1})
    return bounds


def _bind(server: AsyncServer, settings: Settings) -> int:
    flags = settings.flags
    address = host_port(flags.host, flags.port)
    try:
        if settings.credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, settings.credentials)
    except RuntimeError as error:
        raise ListenError(why_not(error.__cause__, flags.host, flags.port, "--port")) from None
    if flags.grpc_socket_path:
        try:
            server.add_insecure_port(f"unix:{flags.grpc_socket_path}")
        except RuntimeError:
            raise ListenError("--grpc_socket_path cannot be listened on: its folder must be there, its path short") from None
    return int(port)


@contextlib.asynccontextmanager
async def _http_server(
    edge: RestEdge, settings: Settings, listener: socket.socket, monitoring: Monitoring | None
) -> AsyncIterator[None]:
    flags = settings.flags
    app: ASGIApp = RestMonitor(edge.app(), monitoring, settings.metrics_path) if monitoring else edge.app()
    if settings.guard:
        app = GuardedHttp(app, settings.guard, rest_needs(settings.metrics_path, cors=flags.enable_cors_support), refusal_body)
    server = uvicorn.Server(http_config(app, drain_seconds=flags.drain_grace_seconds, lifespan="off"))
    # Signals are this module's business, not uvicorn's.
    task = asyncio.create_task(server._serve([listener]))  # noqa: SLF001
    try:
        yield
    finally:
        if flags.enable_grpc_healthcheck_service:
            await asyncio.sleep(flags.drain_delay_seconds)
        server.should_exit = True
        await task


async def _follow(manager: VersionManager, flags: Flags) -> None:
    """Follow the directories; with a poll interval of 0 or less only what a new configuration names."""
    if flags.file_system_poll_wait_seconds > 0:
        await manager.run()


async def _follow_config(manager: VersionManager, settings: Settings) -> None:
    """Read the configuration file again and again; a broken one leaves the last good one in force."""
    flags, seen, complaint = settings.flags, settings.models, ""
    parsed: bytes | None = None
    # What was parsed and is not in force yet.
    wanted: pb.ModelServerConfig | None = None
    while flags.model_config_file and flags.model_config_file_poll_wait_seconds > 0:
        await asyncio.sleep(flags.model_config_file_poll_wait_seconds)
        try:
            content = await asyncio.to_thread(read_bytes, CONFIG_FLAG, flags.model_config_file)
            if content != parsed:
                # Also where it is refused: the same bytes stay wrong.
                parsed, wanted = content, None
                wanted = await asyncio.to_thread(parse_text_proto, CONFIG_FLAG, content, pb.ModelServerConfig())
            if wanted is not None and wanted != seen:
                manager.configure(wanted)
                seen = wanted
                if flags.file_system_poll_wait_seconds <= 0:
                    await manager.settle()
            wanted, complaint = None, ""
        except (FlagError, ServingError) as error:
            # Once, not at every look at the same file.
            if complaint != str(error):
                complaint = str(error)
                _log.error("the model configuration is kept as it was: %s", error)


async def _unless(stop: asyncio.Event | None, work: Coroutine[Any, Any, None]) -> None:
    """Wait for *work*, or for *stop*."""
    task = asyncio.create_task(work)
    waits = {task} if stop is None else {task, asyncio.create_task(stop.wait())}
    _, left = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for other in left:
        await _cancel(other)
    if task.done() and not task.cancelled():
        task.result()


async def _cancel(task: "asyncio.Task[Any]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
