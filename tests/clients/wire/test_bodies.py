from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from clients.wire.bodies import Bodies, WithBodies, bodies_of


def test_what_all_hold_is_bounded_and_given_back_whole() -> None:
    bodies = Bodies(100)
    one: dict[str, Any] = {}
    two: dict[str, Any] = {}
    assert bodies.take(one, 60)
    assert bodies.take(one, 30)
    assert not bodies.take(two, 20)
    assert bodies.take(two, 10)
    bodies.give(one)
    bodies.give(one)
    assert 10 == bodies.num_bytes
    bodies.give(two)
    assert 0 == bodies.num_bytes


def test_a_body_that_is_alone_is_let_in_whatever_its_length() -> None:
    bodies = Bodies(100)
    alone: dict[str, Any] = {}
    assert bodies.take(alone, 90)
    assert bodies.take(alone, 90)
    assert 180 == bodies.num_bytes
    assert not bodies.take({}, 1)


async def test_what_a_route_took_is_given_back_also_when_it_fails() -> None:
    bodies = Bodies(100)

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        assert bodies_of(scope).take(scope, 70)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await WithBodies(route, bodies)({"type": "http"}, None, None)  # type: ignore[arg-type]  # not asked
    assert 0 == bodies.num_bytes
