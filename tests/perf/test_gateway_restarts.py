import msgspec
import pytest

from perf.gateway_restarts import Callers, NoAnswerError
from tests.perf.server import Scripted, serving


def said(version: int, **more: object) -> bytes:
    return msgspec.json.encode({"results": [{"heads": {"head-000": {"version": version, **more}}}]})


def answer(content: bytes) -> Scripted:
    return Scripted(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(content) + content)


async def test_a_gateway_that_cannot_be_reached_is_left_for_the_other_one() -> None:
    async with serving(answer(said(1))) as port:
        callers = Callers([("127.0.0.1", 1), ("127.0.0.1", port)], ["a"])
        for number in range(4):
            await callers(number)
        callers.close()

    assert 2 == callers.num_moved
    assert {"200": 4} == callers.statuses


async def test_an_error_of_the_head_counts_as_a_failure() -> None:
    async with serving(answer(said(1, error={"code": "unavailable"}))) as port:
        callers = Callers([("127.0.0.1", port)] * 2, ["a"])
        with pytest.raises(NoAnswerError):
            await callers(0)
        callers.close()

    assert {"unavailable": 1} == callers.statuses


async def test_a_version_that_answers_after_two_newer_ones_is_seen() -> None:
    callers = Callers([], ["a"])
    for version in (1, 2, 1, 3, 1):
        callers.count(200, said(version))

    assert 1 == callers.went_back
