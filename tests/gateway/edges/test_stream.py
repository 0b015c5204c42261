import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from clients import AsyncClient, Client, TextError, Unavailable
from gateway.edges import stream
from gateway.edges.stream import MAX_LINES
from gateway.quota import QuotaUsedUp
from gateway.settings import Settings
from tests.gateway.fakes import FakeEmbedder, FakeGateway, FakePredictor, FakeTrunks, GatedEmbedder, head, raises, state_of

PATH = "/v1/classify/stream"


@pytest.fixture
def gateway(trunks: FakeTrunks) -> FakeGateway:
    return FakeGateway(state_of(trunks, head("spam"), head("other", default=False)))


async def lines_of(app: FakeGateway, *lines: Any, path: str = PATH) -> list[dict[str, Any]]:
    content = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    async with app.http() as http:
        answer = await http.post(path, content=content)
    assert 200 == answer.status_code, answer.text
    return [json.loads(line) for line in answer.content.splitlines()]


async def test_lines_are_answered_in_order_and_what_is_wrong_with_one_is_its_own_error(gateway: FakeGateway) -> None:
    *results, end = await lines_of(
        gateway,
        {"id": "first", "text": "a b"},
        {"text": ""},
        b"  ",
        b"no JSON",
        {"id": 7, "text": "c", "heads": ["other"], "scores": True},
        {"id": 8, "text": "c", "heads": ["none"]},
    )
    assert [0, 1, 2, 3, 4] == [result["index"] for result in results]
    assert ["first", None, None, 7, 8] == [result.get("id") for result in results]
    assert ["invalid_argument", "invalid_argument", "not_found"] == [results[at]["error"]["code"] for at in (1, 2, 4)]
    assert ("spam", 4) == (results[0]["heads"]["spam"]["label"], results[0]["num_tokens"])
    assert {"spam": 0.75, "ham": 0.25} == results[3]["heads"]["other"]["scores"]
    assert "the text is empty" in results[1]["error"]["message"]
    assert {"done": True, "num_lines": 5, "num_errors": 3} == end


async def test_many_lines_are_few_requests_and_one_bad_text_fails_alone(trunks: FakeTrunks) -> None:
    embedder = FakeEmbedder(trunks)
    app = FakeGateway(state_of(trunks, head("spam"), embedder=embedder))
    *results, end = await lines_of(app, *({"text": f"w{number}"} for number in range(100)))
    calls = len(embedder.calls)
    *mixed, _ = await lines_of(app, {"text": "a"}, {"text": "\u200b"}, {"text": "b"})

    assert list(range(100)) == [result["index"] for result in results]
    assert 100 == end["num_lines"]
    # The last line has no end of its own: it comes when the body ends.
    assert 5 == calls
    assert [False, True, False] == ["error" in result for result in mixed]


async def test_who_was_cut_off_goes_on_counting_where_it_was(gateway: FakeGateway) -> None:
    *results, end = await lines_of(gateway, {"text": "a"}, {"text": "b"}, path=f"{PATH}?start=41")
    assert [41, 42] == [result["index"] for result in results]
    assert 2 == end["num_lines"]


@pytest.mark.parametrize("start", ["-1", "x", "1e3", "", "9" * 40, "%C2%B3"])
async def test_a_start_that_is_no_number_is_refused(gateway: FakeGateway, start: str) -> None:
    async with gateway.http() as http:
        assert 400 == (await http.post(f"{PATH}?start={start}", content=b"")).status_code


async def test_a_body_without_lines_is_only_an_end(gateway: FakeGateway) -> None:
    assert [{"done": True, "num_lines": 0, "num_errors": 0}] == await lines_of(gateway, b" \n\n")


async def test_a_line_that_is_too_long_is_that_lines_error(gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_LINE_BYTES", 100)
    *results, end = await lines_of(gateway, {"text": "a"}, {"text": "b" * 200}, {"text": "c"})
    assert [False, True, False] == ["error" in result for result in results]
    assert (3, 1) == (end["num_lines"], end["num_errors"])


async def test_a_failing_backend_is_told_without_its_address(trunks: FakeTrunks) -> None:
    app = FakeGateway(state_of(trunks, head("spam"), predictor=FakePredictor(spam=raises(Unavailable("at 10.0.0.7")))))
    [result, _] = await lines_of(app, {"text": "a"})
    assert "unavailable" == result["heads"]["spam"]["error"]["code"]
    assert "10.0.0.7" not in json.dumps(result)


async def test_a_stream_waits_while_the_gateway_is_full(gateway: FakeGateway) -> None:
    async with asyncio.timeout(10):
        with gateway.state.admission.admit(gateway.state.settings.max_concurrent_texts):
            waiting = asyncio.create_task(lines_of(gateway, {"text": "a"}))
            while not gateway.state.streams.num_open:
                await asyncio.sleep(0)
        [result, end] = await waiting
    assert "spam" in result["heads"]
    assert end["done"]


async def test_too_many_streams_are_told_to_come_back(trunks: FakeTrunks) -> None:
    app = FakeGateway(state_of(trunks, head("spam"), settings=Settings(_cli_parse_args=[], max_streams=1)))
    async with app.http() as http:
        with app.state.streams.opened():
            answer = await http.post(PATH, content=b"")
    assert 429 == answer.status_code
    assert 0 == app.state.streams.num_open


async def test_a_line_that_is_tried_alone_for_anothers_fault_is_charged_once(
    gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    charged: list[int] = []
    monkeypatch.setattr(stream, "charge", lambda _, num_texts: charged.append(num_texts))
    *results, _ = await lines_of(gateway, {"text": "a"}, {"text": ""}, {"text": "b"})

    assert 3 == sum(charged)
    assert [False, True, False] == ["error" in result for result in results]


async def test_a_gateway_that_stops_ends_its_streams_before_their_end(gateway: FakeGateway) -> None:
    gateway.state.drain.begin()
    [end] = await lines_of(gateway, {"text": "a"})
    assert not end["done"]
    assert "unavailable" == end["error"]["code"]


class Caller:
    """One stream by hand: what *receive* gives is put in, what is sent is kept."""

    def __init__(self, app: FakeGateway) -> None:
        self.pieces: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.num_taken = 0
        self.sent: list[dict[str, Any]] = []
        self.can_read = asyncio.Event()
        self.can_read.set()
        scope = {"type": "http", "method": "POST", "path": PATH, "raw_path": PATH.encode(), "query_string": b"", "headers": []}
        self.task = asyncio.create_task(app({**scope, "http_version": "1.1", "root_path": ""}, self._receive, self._send))

    def put(self, *lines: Any) -> None:
        content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        self.pieces.put_nowait({"type": "http.request", "body": content, "more_body": True})

    def end(self) -> None:
        self.pieces.put_nowait({"type": "http.request", "body": b"", "more_body": False})

    def leave(self) -> None:
        self.pieces.put_nowait({"type": "http.disconnect"})

    async def _receive(self) -> dict[str, Any]:
        piece = await self.pieces.get()
        self.num_taken += 1
        return piece

    async def _send(self, message: Any) -> None:
        await self.can_read.wait()
        self.sent.append(message)


async def settled(told: Callable[[], object]) -> None:
    """Until the event loop has nothing left to do but what is gated: *told* stays what it is."""
    seen, same = told(), 0
    while same < 50:
        await asyncio.sleep(0)
        same, seen = (same + 1, seen) if told() == seen else (0, told())


async def test_no_more_is_read_than_can_be_answered(trunks: FakeTrunks) -> None:
    embedder = GatedEmbedder(trunks)
    app = FakeGateway(state_of(trunks, head("spam"), embedder=embedder))
    caller = Caller(app)
    for _ in range(100):
        caller.put(*({"text": "a"} for _ in range(32)))
    caller.end()
    async with asyncio.timeout(20):
        await embedder.entered.wait()
        await settled(lambda: caller.num_taken)
        read = caller.num_taken * 32
        embedder.opened.set()
        while b'"done":true' not in caller.sent[-1].get("body", b""):
            await asyncio.sleep(0)
        caller.leave()
        await caller.task
    lines = [json.loads(line) for message in caller.sent for line in message.get("body", b"").splitlines()]

    assert MAX_LINES <= read <= MAX_LINES + 32
    assert list(range(3_200)) == [line["index"] for line in lines[:-1]]
    assert 3_200 == lines[-1]["num_lines"]


async def test_a_gateway_that_stops_does_not_wait_for_the_next_line(gateway: FakeGateway) -> None:
    caller = Caller(gateway)
    async with asyncio.timeout(10):
        caller.put({"text": "a"})
        while len(caller.sent) < 2:
            await asyncio.sleep(0)
        gateway.state.drain.begin()
        await caller.task
    answered, end = (json.loads(message["body"]) for message in caller.sent[1:])

    assert "spam" in answered["heads"]
    assert (False, 1, "unavailable") == (end["done"], end["num_lines"], end["error"]["code"])


async def test_an_answer_comes_before_the_next_line_is_sent(gateway: FakeGateway) -> None:
    caller = Caller(gateway)
    async with asyncio.timeout(10):
        for number in range(3):
            caller.put({"text": "a"})
            while len(caller.sent) < number + 2:
                await asyncio.sleep(0)
        caller.leave()
        await caller.task
    assert [0, 1, 2] == [json.loads(message["body"])["index"] for message in caller.sent[1:]]


@pytest.mark.parametrize("has_ended", [True, False])
async def test_a_caller_who_leaves_takes_its_work_along(trunks: FakeTrunks, has_ended: bool) -> None:
    embedder = GatedEmbedder(trunks)
    app = FakeGateway(state_of(trunks, head("spam"), embedder=embedder))
    caller = Caller(app)
    caller.put({"text": "a"})
    if has_ended:
        caller.end()
    async with asyncio.timeout(10):
        await embedder.entered.wait()
        caller.leave()
        await caller.task
    assert 1 == embedder.num_cancelled
    assert (0, 0) == (app.state.admission.num_texts, app.state.streams.num_open)
    counted = app.state.telemetry.render(inside=0, catalogue_age=0.0).decode()
    assert 'trunkline_gateway_refusals_total{reason="departed"} 1.0' in counted


async def test_a_caller_who_neither_sends_nor_reads_is_let_go(gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "IDLE_SECONDS", 0.01)
    caller = Caller(gateway)
    caller.put({"text": "a"})
    async with asyncio.timeout(10):
        while len(caller.sent) < 3:
            await asyncio.sleep(0.001)
        caller.leave()
        await caller.task
    assert not json.loads(caller.sent[-1]["body"])["done"]


async def test_who_does_not_read_has_no_more_answered_than_is_kept_for_it(
    trunks: FakeTrunks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "MAX_ANSWER_BYTES", 1_000)
    embedder = FakeEmbedder(trunks)
    app = FakeGateway(state_of(trunks, head("spam"), embedder=embedder))
    caller = Caller(app)
    caller.can_read.clear()
    for number in range(100):
        caller.put(*({"text": f"w{number} {line}"} for line in range(10)))
    caller.end()
    async with asyncio.timeout(20):
        await settled(lambda: len(embedder.calls))
        num_answered = len(embedder.calls)
        caller.can_read.set()
        while b'"done":true' not in b"".join(message.get("body", b"") for message in caller.sent[-1:]):
            await asyncio.sleep(0)
        caller.leave()
        await caller.task
    lines = [json.loads(line) for message in caller.sent for line in message.get("body", b"").splitlines()]

    assert stream.MAX_RUNNING <= num_answered <= stream.MAX_RUNNING + 2
    assert list(range(1_000)) == [line["index"] for line in lines[:-1]]
    assert 0 == lines[-1]["num_errors"]


async def test_a_stream_goes_on_at_the_rate_of_its_key(trunks: FakeTrunks, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(_cli_parse_args=[], max_timeout_seconds=0.001, default_timeout_seconds=0.001)
    app = FakeGateway(state_of(trunks, head("spam"), settings=settings))
    refused: list[int] = []

    def charge_each_third_time(_: object, num_texts: int) -> None:
        refused.append(num_texts)
        if len(refused) % 3:
            raise QuotaUsedUp("the key's quota is used up", retry_after=0.002)

    monkeypatch.setattr(stream, "charge", charge_each_third_time)
    monkeypatch.setattr(stream, "patience", lambda *_: 10.0)
    *results, end = await lines_of(app, *({"text": "a", "id": number, "top_k": number + 1} for number in range(6)))

    assert list(range(6)) == [result["id"] for result in results]
    assert 0 == end["num_errors"]
    assert 18 == len(refused)


async def in_thread(work: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(work)


async def test_our_clients_stream_more_lines_than_fit_at_once(gateway: FakeGateway) -> None:
    texts = ["a", "", *("b c" for _ in range(600)), "a" * 2_000_000]

    def blocking(url: str) -> list[Any]:
        with Client(url) as client:
            return list(client.classify_stream(iter(texts), heads=["other"], top_k=1))

    async with gateway.served() as url:
        found = await in_thread(lambda: blocking(url))
        async with AsyncClient(url) as client:
            twin = [result async for result in client.classify_stream(texts, heads=["other"], top_k=1)]

    assert found == twin
    assert len(texts) == len(found)
    assert isinstance(found[1], TextError)
    assert isinstance(found[-1], TextError)
    assert {"spam": 0.75} == found[0].heads["other"].scores
    assert [4] * 600 == [result.num_tokens for result in found[2:-1]]
