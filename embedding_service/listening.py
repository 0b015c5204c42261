"""The ports: open them, or say in a sentence why they cannot be had."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import uvicorn
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from starlette.types import ASGIApp

from clients.wire.guard import Guard
from clients.wire.guarded_rpc import GuardedRpc
from clients.wire.http_server import http_config
from clients.wire.metadata import MAX_MESSAGE_BYTES
from embedding_service.bert_as_service import BertAsService, Embed
from embedding_service.guarding import RPCS, num_texts
from embedding_service.server import EmbeddingServicer
from embedding_service.settings import Settings


class ListenError(Exception):
    """A port could not be had; the message says which and what to do."""


async def start_grpc(
    servicer: EmbeddingServicer, health: health_aio.HealthServicer, settings: Settings, guard: Guard | None = None
) -> tuple[grpc.aio.Server, int]:
    """A started server, and its port. *guard*: who may call; None: everybody.

    Raises:
        ListenError: the port is taken, or the files of TLS cannot be used.
    """
    tls = _credentials(settings)
    server = grpc.aio.server(
        interceptors=[] if guard is None else [GuardedRpc(guard, RPCS, num_texts)],
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.so_reuseport", 0),
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ("grpc.keepalive_permit_without_calls", 1),
        ],
    )
    server.add_generic_rpc_handlers((servicer.handler(),))
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    try:
        address = f"{settings.host}:{settings.grpc_port}"
        port = server.add_insecure_port(address) if tls is None else server.add_secure_port(address, tls)
    except RuntimeError:
        raise ListenError(_taken(settings.grpc_port, "--grpc-port")) from None
    await server.start()
    return server, port


@contextlib.asynccontextmanager
async def http_server(app: ASGIApp, settings: Settings) -> AsyncIterator[int]:
    """Serve *app* for as long as the context lasts; gives the port.

    Raises:
        ListenError: the port is taken.
    """
    try:
        listener = socket.create_server((settings.host, settings.http_port))
        # uvloop does so by itself; asyncio does not for sockets that do not name their protocol.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError:
        raise ListenError(_taken(settings.http_port, "--http-port")) from None
    tls: dict[str, Any] = {
        "ssl_certfile": settings.tls_certificate_file,
        "ssl_keyfile": settings.tls_key_file,
        "ssl_ca_certs": None if settings.tls_client_ca_file is None else str(settings.tls_client_ca_file),
        "ssl_cert_reqs": ssl.CERT_NONE if settings.tls_client_ca_file is None else ssl.CERT_REQUIRED,
    }
    server = uvicorn.Server(http_config(app, drain_seconds=settings.drain_seconds, lifespan="off", **tls))
    # Signals are this module's business, not uvicorn's.
    task = asyncio.create_task(server._serve([listener]))  # noqa: SLF001
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task
        listener.close()


@contextlib.asynccontextmanager
async def bert_ports(bert: BertAsService, embed: Embed, settings: Settings) -> AsyncIterator[tuple[str, ...]]:
    """Both ports of bert-as-service as HOST:PORT, or none where none are set.

    Raises:
        ListenError: one is taken, or pyzmq is not installed.
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
    except zmq_edge.PortTakenError as error:
        flag = "--bert-port" if error.port == settings.bert_port else "--bert-port-out"
        raise ListenError(_taken(error.port, flag)) from None
    async with zmq_edge.serving(bert, embed, sockets, limits):
        yield f"{settings.host}:{sockets.port}", f"{settings.host}:{sockets.port_out}"


def _credentials(settings: Settings) -> grpc.ServerCredentials | None:
    if settings.tls_certificate_file is None or settings.tls_key_file is None:
        return None
    pair = (_pem(settings.tls_key_file, "tls_key_file"), _pem(settings.tls_certificate_file, "tls_certificate_file"))
    authority = None if settings.tls_client_ca_file is None else _pem(settings.tls_client_ca_file, "tls_client_ca_file")
    try:
        # What OpenSSL makes of them: gRPC would say no more than that the port cannot be had.
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=settings.tls_client_ca_file).load_cert_chain(
            settings.tls_certificate_file, settings.tls_key_file
        )
    except ssl.SSLError:
        raise ListenError("the files of TLS do not fit: give a certificate and its own private key, both PEM") from None
    return grpc.ssl_server_credentials([pair], authority, require_client_auth=authority is not None)


def _pem(path: Path, setting: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ListenError(f"{setting} cannot be read: {error.strerror}") from None
    if b"-----BEGIN" not in content:
        raise ListenError(f"{setting} is not PEM")
    return content


def _taken(port: int, flag: str) -> str:
    return f"port {port} is taken; stop what listens there or choose another with {flag} (0: any free one)"
