import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from clients import Overloaded
from clients.wire.http_server import open_door
from gateway.app import TELLS, door_of
from gateway.door import OuterDoor
from gateway.settings import Settings
from tests.collector import no_collector, num_alive
from tests.gateway.fakes import FakeGateway, FakeTrunks, head, state_of


def given(**settings: object) -> Settings:
    return Settings(**settings, _cli_parse_args=[])  # type: ignore[arg-type]  # pydantic checks them


@asynccontextmanager
async def full(trunks: FakeTrunks, **settings: object) -> AsyncIterator[tuple[httpx.AsyncClient, FakeGateway]]:
    """A gateway with no room, behind a port, and who asks it."""
    gateway = FakeGateway(state_of(trunks, head("one"), settings=given(max_concurrent_texts=4, max_texts=4, **settings)))
    async with gateway.served() as url, httpx.AsyncClient(base_url=url) as http:
        with gateway.state.admission.admit(4):
            yield http, gateway


def num_refused(gateway: FakeGateway) -> int:
    lines = gateway.state.telemetry.render(inside=0, catalogue_age=0).decode().splitlines()
    found = [line for line in lines if line.startswith('trunkline_gateway_refusals_total{reason="overloaded"}')]
    return int(float(found[0].split()[-1])) if found else 0


async def test_a_full_gateway_refuses_before_it_reads_and_lets_in_again(trunks: FakeTrunks) -> None:
    state = state_of(trunks, head("one"), settings=given(max_concurrent_texts=4, max_texts=4))
    gateway = FakeGateway(state)
    async with gateway.http() as http:
        with state.admission.admit(4):
            by_openai = await http.post("/v1/embeddings", json={"input": "a"})
            by_tei = await http.post("/predict", json={"inputs": "a"})
            refused = await http.post("/v1/classify", content=b"this is not read", headers={"x-request-id": "mine"})
            looked_at = await http.get("/v1/heads")
        answered = await http.post("/v1/classify", json={"text": "a"})

    assert 429 == refused.status_code
    assert {"code": "overloaded", "message": "the gateway is full", "request_id": "mine"} == refused.json()["error"]
    assert ["mine"] == refused.headers.get_list("x-request-id")
    assert "500" == refused.headers["retry-after-ms"]
    assert "nosniff" == refused.headers["x-content-type-options"]
    assert (429, 429) == (by_openai.status_code, by_tei.status_code)
    assert "message" in by_openai.json()["error"]
    assert "error_type" in by_tei.json()
    assert (200, 200) == (looked_at.status_code, answered.status_code)
    assert 'trunkline_gateway_refusals_total{reason="overloaded"} 3' in state.telemetry.render(inside=0, catalogue_age=0).decode()


async def test_of_many_that_come_at_once_no_more_pass_the_outer_door_than_have_room(trunks: FakeTrunks) -> None:
    state = state_of(trunks, settings=given(max_concurrent_texts=4, max_texts=4))
    door = OuterDoor(TELLS)
    with state.admission.admit(1):
        first = [door("/v1/classify", [], {"gateway": state}) for _ in range(10)]
        await asyncio.sleep(0)
        later = door("/v1/classify", [], {"gateway": state})

    assert [None] * 3 == first[:3]
    assert [429] * 7 == [answer.status_code for answer in first[3:] if answer is not None]
    assert later is None


@pytest.mark.parametrize("path", TELLS)
async def test_both_doors_say_the_same(trunks: FakeTrunks, path: str) -> None:
    named = {"x-request-id": "mine"}
    async with full(trunks) as (http, gateway):
        outer = await http.post(path, content=b"this is not read", headers=named)
        seen = num_refused(gateway)
        inner = await http.post(path, content=b"this is not read", headers={**named, "connection": "close"})

    assert (1, 2) == (seen, num_refused(gateway))
    assert 429 == outer.status_code == inner.status_code
    assert outer.content == inner.content
    assert {*inner.headers.items()} - {*outer.headers.items()} <= {("connection", "close"), ("date", inner.headers["date"])}
    assert {*outer.headers} == {*inner.headers} - {"connection"}


async def test_a_script_of_an_allowed_page_can_read_that_the_gateway_is_full(trunks: FakeTrunks) -> None:
    page = "http://page.example"
    async with full(trunks, cors_origins=page) as (http, gateway):
        refused = await http.post("/v1/classify", json={"text": "a"}, headers={"origin": page})

    assert 429 == refused.status_code
    assert page == refused.headers["access-control-allow-origin"]
    assert 1 == num_refused(gateway)


@pytest.mark.parametrize("given", ["", "not a word", "x" * 129, "a\tb"])
async def test_an_id_that_is_no_plain_word_is_replaced_at_the_door_too(trunks: FakeTrunks, given: str) -> None:
    async with full(trunks) as (http, _):
        refused = await http.post("/v1/classify", headers={"x-request-id": given})

    made = refused.headers["x-request-id"]
    assert made == refused.json()["error"]["request_id"]
    assert 32 == len(made)


async def test_what_has_room_or_another_path_passes_the_outer_door(trunks: FakeTrunks) -> None:
    async with full(trunks) as (http, gateway):
        elsewhere = await http.post("/v1/nothing", json={})
        looked_at = await http.get("/v1/heads")
        seen = num_refused(gateway)
    gateway = FakeGateway(state_of(trunks, head("one")))
    async with gateway.served() as url, httpx.AsyncClient(base_url=url) as http:
        answered = await http.post("/v1/classify", json={"text": "a"})

    assert (404, 200, 200) == (elsewhere.status_code, looked_at.status_code, answered.status_code)
    assert 0 == seen


@pytest.mark.parametrize(
    "settings", [{"access_log": True}, {"otlp_endpoint": "http://127.0.0.1:4318"}, {"cors_origins": "http://page.example"}]
)
def test_where_a_layer_must_see_each_request_none_ends_at_the_outer_door(settings: dict[str, object]) -> None:
    assert open_door is door_of(given(**settings))
    assert open_door is not door_of(given())


@pytest.mark.parametrize("settings", [{}, {"access_log": True}], ids=["outside", "in the app"])
async def test_a_refusal_is_freed_once_it_is_told_and_needs_no_collector(trunks: FakeTrunks, settings: dict[str, object]) -> None:
    async with full(trunks, **settings) as (http, _):
        with no_collector():
            before = num_alive(Overloaded)
            statuses = [(await http.post("/v1/classify", json={"text": "a"})).status_code for _ in range(5)]
            after = num_alive(Overloaded)

    assert [429] * 5 == statuses
    assert after <= before
