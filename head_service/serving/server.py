"""The composition root of the embedded server: load, listen, report ready; drain when told to stop."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc.aio
import uvicorn
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from clients.wire.metadata import MAX_MESSAGE_BYTES
from head_service.serving.errors import ServingError
from head_service.serving.flags import FlagError, Flags, read_config
from head_service.serving.predict import Predictor
from head_service.serving.rest import RestEdge
from head_service.serving.rpc import RpcEdge
from head_service.serving.servable import Servable
from head_service.serving.versions import VersionManager

_log = logging.getLogger(__name__)

MAX_BODY_BYTES = 16 * 1024 * 1024
DRAIN_SECONDS = 5.0
HEALTH_NAMES = ("", "ModelService", "PredictionService")


class ListenError(Exception):
    """A port could not be had."""


async def serve(flags: Flags, on_ready: Callable[[str, str], None]) -> None:
    """Serve until SIGTERM or SIGINT; *on_ready* is told the gRPC and REST addresses once the first versions are loaded."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop_once, stop, loop, number)
    async with running(flags) as (rpc, rest):
        on_ready(rpc, rest)
        await stop.wait()
        _log.info("draining")


@contextlib.asynccontextmanager
async def running(flags: Flags) -> AsyncIterator[tuple[str, str]]:
    """Serve for as long as the context lasts; its value is the gRPC and REST addresses, HOST:PORT."""

    def load(name: str, version: int, directory: Path) -> Servable:
        return Servable(
            name,
            version,
            directory,
            intra_threads=flags.tensorflow_intra_op_parallelism,
            inter_threads=flags.tensorflow_inter_op_parallelism,
        )

    manager = VersionManager(load, poll_seconds=flags.file_system_poll_wait_seconds)
    manager.configure(read_config(flags))
    await manager.settle()
    predictor = Predictor(manager, threads=max(2, os.cpu_count() or 1))
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(predictor.close)
        rest = RestEdge(manager, predictor, timeout=flags.rest_api_timeout_in_ms / 1000, max_body_bytes=MAX_BODY_BYTES)
        rest_port = await stack.enter_async_context(_http_server(rest, flags))
        rpc = RpcEdge(manager, predictor, as_content=flags.enable_serialization_as_tensor_content)
        rpc_port = await stack.enter_async_context(_grpc_server(rpc, flags))
        for task in (manager.run(), _follow_config(manager, flags)):
            stack.push_async_callback(_cancel, asyncio.create_task(task))
        yield f"{flags.host}:{rpc_port}", f"{flags.host}:{rest_port}"


@contextlib.asynccontextmanager
async def _grpc_server(edge: RpcEdge, flags: Flags) -> AsyncIterator[int]:
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.so_reuseport", 0),
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ("grpc.keepalive_permit_without_calls", 1),
        ]
    )
    server.add_generic_rpc_handlers(edge.handlers())
    health = health_aio.HealthServicer()
    if flags.enable_grpc_healthcheck_service:
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
    try:
        port = server.add_insecure_port(f"{flags.host}:{flags.port}")
    except RuntimeError:
        raise ListenError(_taken(flags.port, "--port")) from None
    await server.start()
    for name in HEALTH_NAMES:
        await health.set(name, health_pb2.HealthCheckResponse.SERVING)
    try:
        yield port
    finally:
        for name in HEALTH_NAMES:
            await health.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)
        await server.stop(DRAIN_SECONDS)


@contextlib.asynccontextmanager
async def _http_server(edge: RestEdge, flags: Flags) -> AsyncIterator[int]:
    try:
        listener = socket.create_server((flags.host, flags.rest_api_port))
    except OSError:
        raise ListenError(_taken(flags.rest_api_port, "--rest_api_port")) from None
    config = uvicorn.Config(
        edge.app(), log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=round(DRAIN_SECONDS)
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


async def _follow_config(manager: VersionManager, flags: Flags) -> None:
    """Read the configuration file again and again; a broken one leaves the last good one in force."""
    seen = read_config(flags)
    while flags.model_config_file and flags.model_config_file_poll_wait_seconds > 0:
        await asyncio.sleep(flags.model_config_file_poll_wait_seconds)
        try:
            now = read_config(flags)
            if now != seen:
                manager.configure(now)
                seen = now
        except (FlagError, ServingError) as error:
            _log.error("the model configuration is kept as it was: %s", error)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _stop_once(stop: asyncio.Event, loop: asyncio.AbstractEventLoop, number: signal.Signals) -> None:
    """The first signal drains; the next one ends the process as usual."""
    stop.set()
    loop.remove_signal_handler(number)


def _taken(port: int, flag: str) -> str:
    return f"port {port} is taken; stop what listens there or choose another with {flag} (0: any free one)"
