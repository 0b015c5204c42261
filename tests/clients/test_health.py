from contextlib import aclosing, asynccontextmanager

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from clients import AsyncEmbeddingClient, AsyncHeadClient, TrunklineError
from tests.clients.fakes import serving

STATES = health_pb2.HealthCheckResponse


@asynccontextmanager
async def with_health():
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    health = health_aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}", health, server
    finally:
        await server.stop(None)


@pytest.mark.parametrize("client_of", [AsyncEmbeddingClient, AsyncHeadClient])
async def test_every_change_of_health_is_told(client_of):
    async with with_health() as (address, health, _), client_of(address) as client, aclosing(client.watch_health()) as watched:
        seen = [await anext(watched)]
        for state in (STATES.NOT_SERVING, STATES.SERVING, STATES.UNKNOWN):
            await health.set("", state)
            seen.append(await anext(watched))

    assert [True, False, True, False] == seen


async def test_the_end_of_the_connection_is_an_error():
    async with with_health() as (address, _, server), AsyncHeadClient(address) as client, aclosing(client.watch_health()) as said:
        assert await anext(said)
        await server.stop(None)
        with pytest.raises(TrunklineError):
            await anext(said)


async def test_a_server_without_a_health_service_says_nothing():
    async with serving({}) as address, AsyncHeadClient(address) as client:
        assert [] == [said async for said in client.watch_health()]
