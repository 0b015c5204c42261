import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from clients.wire.delivery import is_by_tls, num_arrived, num_on_the_way

MUCH = bytes(20_000_000)


@contextlib.asynccontextmanager
async def connected(family: socket.AddressFamily = socket.AF_INET) -> AsyncIterator[tuple[asyncio.Transport, socket.socket]]:
    """Both ends of a connection; the other one reads what it is told to."""
    if family == socket.AF_INET:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            theirs = socket.create_connection(listener.getsockname())
            ours, _ = listener.accept()
    else:
        ours, theirs = socket.socketpair()
    with theirs:
        theirs.setblocking(False)
        transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
        try:
            async with asyncio.timeout(20):
                yield transport, theirs
        finally:
            transport.abort()
            await asyncio.sleep(0)


async def settled(transport: asyncio.Transport) -> tuple[int | None, int]:
    """What has arrived and what has not, once neither changes any more."""
    found = None
    while found != (found := (num_arrived(transport), num_on_the_way(transport))):
        await asyncio.sleep(0.1)
    return found


async def test_what_was_read_has_arrived_and_the_kernel_keeps_what_nobody_takes() -> None:
    async with connected() as (transport, theirs):
        assert (0, 0) == await settled(transport)
        transport.write(MUCH)
        before, kept = await settled(transport)
        assert before is not None
        assert kept > 0
        num_read = 0
        while num_read < len(MUCH):
            num_read += len(await asyncio.get_running_loop().sock_recv(theirs, 1_000_000))

        assert (len(MUCH), 0) == await settled(transport)
        assert before < len(MUCH)


async def test_of_a_unix_socket_and_of_none_nothing_is_known_to_have_arrived() -> None:
    async with connected(socket.AF_UNIX) as (transport, _):
        transport.write(b"abc")
        assert num_arrived(transport) is None
        assert num_on_the_way(transport) > 0
    nowhere = asyncio.Transport()
    assert (None, 0) == (num_arrived(nowhere), num_on_the_way(nowhere))


@pytest.mark.parametrize("missing", ["TCP_INFO"])
async def test_where_the_system_does_not_tell_it_is_not_known(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, missing)
    async with connected() as (transport, _):
        assert num_arrived(transport) is None


async def test_what_is_closed_has_nothing_on_the_way() -> None:
    closed = socket.socket()
    closed.close()
    transport = asyncio.Transport({"socket": closed})

    assert (None, 0) == (num_arrived(transport), num_on_the_way(transport))


@pytest.mark.parametrize(("extra", "expected"), [({}, False), ({"ssl_object": object()}, True)])
def test_tls_is_told_by_its_object(extra: dict[str, Any], expected: bool) -> None:
    assert expected == is_by_tls(asyncio.Transport(extra))
