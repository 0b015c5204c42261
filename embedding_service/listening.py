"""The ports: open them, or say in a sentence why they cannot be had."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import uvicorn
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from starlette.types import ASGIApp

from clients.wire.addresses import host_port
from clients.wire.guard import Guard
from clients.wire.guarded_rpc import GuardedRpc
from clients.wire.http_server import Door, http_config, open_door, queues_at
from clients.wire.listening import ListenError, listen, why_not
from clients.wire.rpc.server import AsyncServer
from clients.wire.rpc.tls import server_context
from embedding_service.bert_as_service import BertAsService, Embed
from embedding_service.guarding import RPCS, num_texts
from embedding_service.server import EmbeddingServicer
from embedding_service.settings import Settings


async def start_grpc(
    servicer: EmbeddingServicer, health: health_aio.HealthServicer, settings: Settings, guard: Guard | None = None
) -> tuple[AsyncServer, int]:
    """A started server, and its port. *guard*: who may call; None: everybody.

    Raises:
        ListenError: the port cannot be had, or the files of TLS cannot be used.
    """
    tls = _credentials(settings)
    server = AsyncServer([] if guard is None else [GuardedRpc(guard, RPCS, num_texts)])
    server.add_generic_rpc_handlers((servicer.handler(),))
    health_pb2_grpc.add_HealthServicer_to_server(health, cast("Any", server))
    try:
        address = host_port(settings.host, settings.grpc_port)
        port = server.add_insecure_port(address) if tls is None else server.add_secure_port(address, tls)
    except RuntimeError as error:
        raise ListenError(why_not(error.__cause__, settings.host, settings.grpc_port, "--grpc-port")) from None
    await server.start()
    return server, port


@contextlib.asynccontextmanager
async def http_server(app: ASGIApp, settings: Settings, door: Door = open_door) -> AsyncIterator[int]:
    """Serve *app*, behind *door*, for as long as the context lasts; gives the port.

    Raises:
        ListenError: the port cannot be had, or too few files may be open.
    """
    listener = listen(settings.host, settings.http_port, "--http-port")
    tls: dict[str, Any] = {
        "ssl_certfile": settings.tls_certificate_file,
        "ssl_keyfile": settings.tls_key_file,
        "ssl_ca_certs": None if settings.tls_client_ca_file is None else str(settings.tls_client_ca_file),
        "ssl_cert_reqs": ssl.CERT_NONE if settings.tls_client_ca_file is None else ssl.CERT_REQUIRED,
    }
    server = uvicorn.Server(http_config(app, drain_seconds=settings.drain_seconds, door=door, lifespan="off", **tls))
    # Signals are this module's business, not uvicorn's.
    queues = queues_at(listener)
    task = asyncio.create_task(server._serve(queues))  # noqa: SLF001
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        try:
            await task
        finally:
            for queue in queues:
                queue.close()


@contextlib.asynccontextmanager
async def bert_ports(bert: BertAsService, embed: Embed, settings: Settings) -> AsyncIterator[tuple[str, ...]]:
    """Both ports of bert-as-service as HOST:PORT, or none where none are set.

    Raises:
        ListenError: one cannot be had, or pyzmq is not installed.
    """
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
    except zmq_edge.PortError as error:
        flag = "--bert-port" if error.port == settings.bert_port else "--bert-port-out"
        raise ListenError(why_not(error.__cause__, settings.host, error.port, flag)) from None
    async with zmq_edge.serving(bert, embed, sockets, limits):
        yield host_port(settings.host, sockets.port), host_port(settings.host, sockets.port_out)


def _credentials(settings: Settings) -> ssl.SSLContext | None:
    if settings.tls_certificate_file is None or settings.tls_key_file is None:
        return None
    key, certificate = _pem(settings.tls_key_file, "tls_key_file"), _pem(settings.tls_certificate_file, "tls_certificate_file")
    authority = None if settings.tls_client_ca_file is None else _pem(settings.tls_client_ca_file, "tls_client_ca_file")
    try:
        return server_context(certificate, key, authority, is_asked=authority is not None)
    except ValueError:
        raise ListenError("the files of TLS do not fit: give a certificate and its own private key, both PEM") from None


def _pem(path: Path, setting: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ListenError(f"{setting} cannot be read: {error.strerror}") from None
    if b"-----BEGIN" not in content:
        raise ListenError(f"{setting} is not PEM")
    return content
