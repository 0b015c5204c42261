import asyncio
import contextlib
import json
import math

import httpx
import pytest

from clients import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    HeadError,
    HeadResult,
    InvalidRequest,
    InvalidResponse,
    NotFound,
    Overloaded,
    Result,
    ServerFault,
    TrunklineError,
    Unavailable,
)
from clients._gateway_wire import HTTPX_ERRORS, error_for_httpx

ANSWER = {
    "results": [
        {
            "heads": {
                "spam": {"label": "ham", "score": 0.982, "version": 3, "scores": {"ham": 0.982, "spam": 0.018}},
                "topic": {"error": {"code": "unavailable", "message": "head 'topic' did not answer in time"}},
            },
            "num_tokens": 12,
            "truncated": False,
            "cached": True,
        }
    ],
    "trunk": {"name": "small", "fingerprint": "sha256:0"},
    "timings": {"total_ms": 4.0},
}
RESULT = Result(
    heads={
        "spam": HeadResult("ham", 0.982, 3, {"ham": 0.982, "spam": 0.018}),
        "topic": HeadError("unavailable", "head 'topic' did not answer in time"),
    },
    num_tokens=12,
    truncated=False,
    cached=True,
)


class FakeGateway:
    """Answers every request with *response*, or raises *error*, and keeps the requests."""

    def __init__(self, status: int = 200, body: object = None, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.requests: list[httpx.Request] = []
        self._answer = (status, content, headers)
        self.error: Exception | None = None

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if self.error is not None:
            raise self.error
        status, content, headers = self._answer
        return httpx.Response(status, content=content, headers=headers)

    def client(self) -> Client:
        return Client(transport=httpx.MockTransport(self))

    def async_client(self) -> AsyncClient:
        return AsyncClient(transport=httpx.MockTransport(self))


def test_a_text_is_classified_and_a_head_that_failed_fails_alone():
    gateway = FakeGateway(body=ANSWER)
    with gateway.client() as client:
        assert client.classify("some text", heads=["spam", "topic"], timeout=2.5) == [RESULT]
    [request] = gateway.requests
    assert (request.method, request.url.path) == ("POST", "/v1/classify")
    assert json.loads(request.content) == {"texts": ["some text"], "heads": ["spam", "topic"]}
    assert request.headers["x-request-timeout-ms"] == "2500"


def test_the_default_heads_are_the_gateways_choice():
    gateway = FakeGateway(body=ANSWER)
    with gateway.client() as client:
        client.classify(["some text"])
    assert json.loads(gateway.requests[0].content) == {"texts": ["some text"]}


async def test_the_async_twin_answers_the_same():
    gateway = FakeGateway(body=ANSWER)
    async with gateway.async_client() as client:
        assert await client.classify("some text") == [RESULT]


def test_a_path_in_the_base_url_is_kept():
    gateway = FakeGateway(body=ANSWER)
    with Client("http://host/prefix", transport=httpx.MockTransport(gateway)) as client:
        client.classify("some text")
    assert gateway.requests[0].url.path == "/prefix/v1/classify"


async def test_heads_are_told_as_the_gateway_describes_them():
    gateway = FakeGateway(body={"heads": [{"name": "spam", "labels": ["ham", "spam"]}]})
    with gateway.client() as client:
        assert client.heads() == [{"name": "spam", "labels": ["ham", "spam"]}]
    async with gateway.async_client() as twin:
        assert await twin.heads() == [{"name": "spam", "labels": ["ham", "spam"]}]


@pytest.mark.parametrize(("status", "ready"), [(200, True), (503, False), (404, False)])
async def test_ready_is_what_the_gateway_says(status, ready):
    gateway = FakeGateway(status)
    with gateway.client() as client:
        assert client.ready() is ready
    async with gateway.async_client() as twin:
        assert await twin.ready() is ready


@pytest.mark.parametrize("error", [httpx.ConnectError("refused"), httpx.ReadTimeout("slow")])
async def test_a_gateway_that_cannot_be_reached_is_not_ready(error):
    gateway = FakeGateway()
    gateway.error = error
    with gateway.client() as client:
        assert not client.ready()
    async with gateway.async_client() as twin:
        assert not await twin.ready()


@pytest.mark.parametrize(
    ("status", "kind"), [(400, InvalidRequest), (404, NotFound), (429, Overloaded), (500, ServerFault), (503, Unavailable)]
)
def test_an_error_keeps_its_kind_message_and_request_id(status, kind):
    body = {"error": {"code": "x", "message": "what went wrong", "request_id": "r-1"}}
    with FakeGateway(status, body).client() as client, pytest.raises(kind) as caught:
        client.classify("some text")
    assert type(caught.value) is kind
    assert caught.value.message == "what went wrong"
    assert caught.value.request_id == "r-1"
    assert caught.value.retry_after is None


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "2", "retry-after-ms": "1200"}, 1.2),
        ({"retry-after": "soon"}, None),
        ({"retry-after-ms": "-5"}, None),
    ],
)
def test_when_to_come_back_is_read_from_the_headers(headers, seconds):
    with FakeGateway(429, {}, headers).client() as client, pytest.raises(Overloaded) as caught:
        client.classify("some text")
    assert caught.value.retry_after == seconds


def test_an_error_page_of_something_between_us_is_still_an_error_of_ours():
    gateway = FakeGateway(502, b"<html>Bad gateway</html>", {"x-request-id": "r-9"})
    with gateway.client() as client, pytest.raises(InvalidResponse, match="502") as caught:
        client.classify("some text")
    assert caught.value.request_id == "r-9"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"not json"),
        (200, b'{"results": "caf\xe9"}'),
        (200, b"[" * 100_000),
        (502, b'{"error": "caf\xe9"}'),
        (200, {"results": []}),
        (200, {"results": [{"heads": {}}]}),
        (200, {"results": [{"heads": {"a": {"score": "high"}}, "num_tokens": 1, "truncated": False}]}),
        (204, b""),
        (302, b""),
    ],
)
def test_an_answer_that_is_not_the_contract_is_an_invalid_response(status, body):
    with FakeGateway(status, body).client() as client, pytest.raises(InvalidResponse):
        client.classify("some text")


@pytest.mark.parametrize("text", ["lone \ud800 surrogate", [object()]])
def test_a_text_that_cannot_travel_is_refused_here(text):
    gateway = FakeGateway()
    with gateway.client() as client, pytest.raises(InvalidRequest):
        client.classify(text)
    assert gateway.requests == []


def test_a_url_that_is_none_is_an_invalid_request():
    with pytest.raises(InvalidRequest):
        Client("http://host:port")
    with Client("gopher://host") as client, pytest.raises(InvalidRequest):
        client.classify("some text")


def _subclasses(kind: type[Exception]) -> set[type[Exception]]:
    return {kind}.union(*(_subclasses(sub) for sub in kind.__subclasses__()))


def test_every_error_of_httpx_is_in_the_table():
    """But for misuse of a response's stream and of cookies, which no call of ours can cause."""
    assert set(HTTPX_ERRORS) == _subclasses(httpx.HTTPError) | {httpx.InvalidURL}


@pytest.mark.parametrize("kind", sorted(HTTPX_ERRORS, key=lambda kind: kind.__name__))
async def test_what_httpx_raises_is_raised_as_ours(kind):
    gateway = FakeGateway()
    gateway.error = kind("why", request=None, response=None) if kind is httpx.HTTPStatusError else kind("why")
    with gateway.client() as client, pytest.raises(TrunklineError, match="why") as caught:
        client.heads()
    assert type(caught.value) is HTTPX_ERRORS[kind]
    async with gateway.async_client() as twin:
        with pytest.raises(HTTPX_ERRORS[kind], match="why"):
            await twin.heads()


def test_the_most_specific_entry_of_the_table_wins():
    class NewTimeout(httpx.ReadTimeout):
        pass

    assert type(error_for_httpx(NewTimeout(""))) is DeadlineExceeded
    assert error_for_httpx(NewTimeout("")).message == "NewTimeout"


async def test_an_async_call_ends_with_its_timeout_even_where_bytes_keep_trickling():
    handlers: list[asyncio.Task[None]] = []

    async def trickle(reader, writer):
        handlers.append(asyncio.current_task())
        writer.write(b"HTTP/1.1 200 OK\r\n")
        try:
            while True:
                writer.write(b"x-more: 1\r\n")
                await writer.drain()
                await asyncio.sleep(0.01)
        except ConnectionError:
            writer.close()

    server = await asyncio.start_server(trickle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, AsyncClient(f"http://127.0.0.1:{port}") as client:
        with pytest.raises(DeadlineExceeded):
            await asyncio.wait_for(client.heads(timeout=0.2), 10)
        await asyncio.wait_for(asyncio.gather(*handlers), 10)


async def test_calls_at_once_keep_their_connections_for_the_next_ones():
    num_calls, connections = 40, []
    here = asyncio.Barrier(num_calls)

    async def answer(reader, writer):
        connections.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                await here.wait()
                writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n{"heads":[]}')
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        async with AsyncClient(f"http://127.0.0.1:{port}") as client:
            for _ in range(3):
                await asyncio.gather(*(client.heads() for _ in range(num_calls)))
        await asyncio.gather(*(writer.wait_closed() for writer in connections))

    assert num_calls == len(connections)


async def test_a_timeout_that_is_spent_already_sends_nothing():
    gateway = FakeGateway(body=ANSWER)
    with gateway.client() as client, pytest.raises(DeadlineExceeded):
        client.classify("some text", timeout=-1.0)
    async with gateway.async_client() as twin:
        with pytest.raises(DeadlineExceeded):
            await twin.classify("some text", timeout=0.0)
    assert gateway.requests == []


@pytest.mark.parametrize("timeout", [math.inf, 1e12])
async def test_who_waits_for_ever_waits_as_long_as_the_header_can_say(timeout: float):
    gateway = FakeGateway(200, ANSWER)
    transport = httpx.MockTransport(gateway)
    with Client(transport=transport, timeout=timeout) as client:
        client.classify("some text")
    async with AsyncClient(transport=transport) as twin:
        await twin.classify("some text", timeout=timeout)

    for request in gateway.requests:
        assert "999999000" == request.headers["x-request-timeout-ms"]
        assert 999_999.0 == request.extensions["timeout"]["read"]


async def test_nobody_there_is_unavailable():
    with Client("http://127.0.0.1:1") as client, pytest.raises(Unavailable):
        client.classify("some text")


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with Client("http://localhost:8080/x") as client:
        assert not client._http.trust_env
    with Client("http://gateway.example") as client:
        assert client._http.trust_env


def test_every_option_travels_as_it_is_called():
    gateway = FakeGateway(body=ANSWER)
    options = {"tags": ("news",), "scores": True, "top_k": 2, "threshold": 0.5, "truncation": "window"}
    with gateway.client() as client:
        client.classify("a", **options, sticky_key="k", priority="bulk", strict=True, reuse=False, heads=None)
    [request] = gateway.requests
    assert json.loads(request.content) == {
        "texts": ["a"],
        **options,
        "tags": ["news"],
        "sticky_key": "k",
        "priority": "bulk",
        "strict": True,
    }
    assert request.headers["cache-control"] == "no-store"


def test_an_option_that_there_is_not_is_a_mistake_of_the_caller():
    with FakeGateway().client() as client, pytest.raises(TypeError, match="topk"):
        client.classify("a", topk=3)
    with FakeGateway().client() as client, pytest.raises(TypeError, match="strict"):
        list(client.classify_stream(["a"], strict=True))


def test_all_that_is_answered_of_a_head_is_there():
    head = {"label": "x/y", "score": 0.5, "version": 1, "confidence": 0.75, "labels": ["x/y"], "path": ["x", "y"]}
    head["ancestors"] = {"x": 0.5}
    body = {"heads": {"deep": head, "price": {"value": -2.5, "version": 3}}, "num_tokens": 3, "truncated": False}
    gateway = FakeGateway(body={"results": [{**body, "notes": ["recomposed"]}]})
    with gateway.client() as client:
        [result] = client.classify("a")
    assert result.heads == {
        "deep": HeadResult("x/y", 0.5, 1, None, 0.75, ["x/y"], None, ["x", "y"], {"x": 0.5}),
        "price": HeadResult(None, None, 3, value=-2.5),
    }
    assert result.notes == ("recomposed",)


class StreamedGateway:
    """Answers lines; *cuts* are, for each request, after how many the connection breaks, or None, or a status to refuse with."""

    def __init__(self, *cuts: int | str | None) -> None:
        self._cuts = list(cuts)
        self.starts: list[int] = []
        self.texts: list[list[str]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        cut = self._cuts.pop(0) if self._cuts else None
        self.starts.append(int(request.url.params["start"]))
        self.texts.append([json.loads(line)["text"] for line in request.content.splitlines()])
        if cut == "full":
            return httpx.Response(429, json={"error": {"message": "full"}}, headers={"retry-after-ms": "1"})
        return httpx.Response(200, stream=_Pieces(self.starts[-1], self.texts[-1], cut))


class _Pieces(httpx.SyncByteStream, httpx.AsyncByteStream):
    """The answer, torn in pieces that are no lines, and its connection cut after *cut* of them."""

    def __init__(self, start: int, texts: list[str], cut: int | str | None) -> None:
        results = [{"index": start + at, "heads": {}, "num_tokens": len(text)} for at, text in enumerate(texts)]
        if cut == "stopped":
            results = [{"done": False, "error": {"code": "unavailable", "message": "stopping"}}]
        elif cut is None:
            results.append({"done": True, "num_lines": len(texts), "num_errors": 0})
        elif isinstance(cut, int):
            results = results[:cut]
        content = b"".join(json.dumps(result).encode() + b"\n" for result in results)
        self._pieces = [content[at : at + 7] for at in range(0, len(content), 7)]
        self._is_cut = isinstance(cut, int)

    def __iter__(self):
        yield from self._pieces
        if self._is_cut:
            raise httpx.ReadError("cut")

    async def __aiter__(self):
        for piece in self:
            yield piece


@pytest.mark.parametrize("cuts", [(), (3, 0, 2), ("full", 1, "stopped"), (0, 0, 0)])
async def test_a_stream_that_breaks_goes_on_with_the_first_line_that_was_not_answered(cuts):
    texts = ["a" * number for number in range(1, 301)]
    for twin in (False, True):
        gateway = StreamedGateway(*cuts)
        transport = httpx.MockTransport(gateway)
        if twin:
            async with AsyncClient(transport=transport) as client:
                found = [result async for result in client.classify_stream(iter(texts))]
        else:
            with Client(transport=transport) as client:
                found = await asyncio.to_thread(lambda client=client: list(client.classify_stream(iter(texts))))

        assert [result.num_tokens for result in found] == [len(text) for text in texts]
        for start, sent in zip(gateway.starts, gateway.texts, strict=True):
            assert texts[start : start + len(sent)] == sent


@pytest.mark.parametrize("twin", [False, True])
async def test_the_time_that_the_caller_takes_for_an_answer_is_not_the_gateways(twin):
    transport = httpx.MockTransport(StreamedGateway(1))
    found = []
    if twin:
        async with AsyncClient(transport=transport, timeout=0.3) as client:
            async for result in client.classify_stream(["a", "ab"]):
                found.append(result.num_tokens)
                await asyncio.sleep(0.4)
    else:
        with Client(transport=transport, timeout=0.3) as client:
            for result in client.classify_stream(["a", "ab"]):
                found.append(result.num_tokens)
                await asyncio.sleep(0.4)

    assert [1, 2] == found


async def test_who_stops_reading_a_stream_gives_its_connection_back_at_once():
    closed = []

    class Pieces(_Pieces):
        async def aclose(self):
            closed.append(True)

    transport = httpx.MockTransport(lambda _: httpx.Response(200, stream=Pieces(0, ["a", "ab"], None)))
    async with AsyncClient(transport=transport) as client:
        async with contextlib.aclosing(client.classify_stream(["a", "ab"])) as results:
            async for _ in results:
                break
        assert [True] == closed


def test_answers_that_come_together_with_the_streams_early_end_are_given():
    lines = [{"index": 0, "heads": {}, "num_tokens": 1}, {"done": False, "error": {"code": "unavailable", "message": "stopping"}}]
    both = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    answers = iter([httpx.Response(200, content=both), StreamedGateway()])

    def answer(request):
        one = next(answers)
        return one if isinstance(one, httpx.Response) else one(request)

    with Client(transport=httpx.MockTransport(answer)) as client:
        assert [result.num_tokens for result in client.classify_stream(["a", "ab"])] == [1, 2]


@pytest.mark.parametrize("twin", [False, True])
async def test_a_text_that_is_no_unicode_has_an_error_of_its_own(twin):
    texts = ["a", "bad \udcff", "abc", "\ud800"]
    gateway = StreamedGateway(1)
    transport = httpx.MockTransport(gateway)
    if twin:
        async with AsyncClient(transport=transport) as client:
            found = [result async for result in client.classify_stream(texts)]
    else:
        with Client(transport=transport) as client:
            found = await asyncio.to_thread(lambda: list(client.classify_stream(texts)))

    assert [1, None, 3, None] == [getattr(result, "num_tokens", None) for result in found]
    assert ["invalid_argument"] * 2 == [found[place].code for place in (1, 3)]
    assert "not valid Unicode" in found[1].message


def test_options_that_cannot_be_written_fail_the_stream():
    with FakeGateway().client() as client, pytest.raises(InvalidRequest):
        list(client.classify_stream(["a"], heads=["\ud800"]))


def test_a_gateway_that_only_ever_stops_is_given_up():
    gateway = StreamedGateway(*["stopped"] * 1_000)
    with Client(transport=httpx.MockTransport(gateway), timeout=0.3) as client, pytest.raises(Unavailable, match="stopping"):
        list(client.classify_stream(["a"]))


def test_a_stream_that_never_gets_on_raises_what_stopped_it():
    gateway = StreamedGateway(*["full"] * 1_000)
    with Client(transport=httpx.MockTransport(gateway), timeout=0.05) as client, pytest.raises(Overloaded, match="full"):
        list(client.classify_stream(["a"]))


async def test_texts_may_come_by_and_by():
    async def texts():
        yield "a"
        yield "bc"

    async with AsyncClient(transport=httpx.MockTransport(StreamedGateway())) as client:
        assert [result.num_tokens async for result in client.classify_stream(texts())] == [1, 2]


@pytest.mark.parametrize(
    "line",
    [
        b"no JSON\n",
        b'{"index": 0, "x": "caf\xe9"}\n',
        b'{"index": 1, "heads": {}}\n',
        b'{"index": 0}\n',
        b'{"index": 0, "heads": {}}\n{"index": 1, "heads": {}}\n',
    ],
)
def test_an_answer_of_lines_that_is_not_the_contract_is_an_invalid_response(line):
    with FakeGateway(body=line).client() as client, pytest.raises(InvalidResponse):
        list(client.classify_stream(["a"]))


def test_a_stream_of_nothing_asks_nothing():
    gateway = FakeGateway()
    with gateway.client() as client:
        assert list(client.classify_stream([])) == []
    assert gateway.requests == []
