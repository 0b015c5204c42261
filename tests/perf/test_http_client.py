import asyncio

import pytest

from perf.http_client import Connection, ConnectionLostError
from tests.perf.server import GOOD, Scripted, byte_by_byte, serving


async def test_one_connection_carries_many_requests() -> None:
    server = Scripted(GOOD)
    async with serving(server) as port:
        connection = await Connection.open("127.0.0.1", port)
        answers = [await connection.request(b"/", body, 5) for body in (b"1", b"22", b"")]
        connection.close()

    assert [(200, b"{}")] * 3 == answers
    assert [b"1", b"22", b""] == server.bodies


async def test_an_answer_in_single_bytes_is_one_answer() -> None:
    async with serving(byte_by_byte) as port:
        connection = await Connection.open("127.0.0.1", port)
        answers = [await connection.request(b"/", b"", 5) for _ in range(2)]
        connection.close()

    assert [(200, b"{}")] * 2 == answers


async def test_a_dropped_connection_fails_its_request_and_later_ones_at_once() -> None:
    async with serving(Scripted(None)) as port:
        connection = await Connection.open("127.0.0.1", port)
        for _ in range(2):
            with pytest.raises(ConnectionLostError):
                await connection.request(b"/", b"", 5)

    assert not connection.is_open


async def test_a_late_answer_is_a_timeout_and_closes_the_connection() -> None:
    async def never(_: asyncio.StreamWriter, __: bytes) -> None:
        pass

    async with serving(never) as port:
        connection = await Connection.open("127.0.0.1", port)
        with pytest.raises(TimeoutError):
            await connection.request(b"/", b"", 0.05)

        assert not connection.is_open


async def test_what_is_not_http_is_a_lost_connection() -> None:
    async with serving(Scripted(b"what?\r\n\r\n")) as port:
        connection = await Connection.open("127.0.0.1", port)
        with pytest.raises(ConnectionLostError):
            await connection.request(b"/", b"", 5)


async def test_an_answer_that_says_close_leaves_no_open_connection() -> None:
    async with serving(Scripted(GOOD.replace(b"\r\n", b"\r\nconnection: close\r\n", 1))) as port:
        connection = await Connection.open("127.0.0.1", port)

        assert (200, b"{}") == await connection.request(b"/", b"", 5)
        assert not connection.is_open
