import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from clients.wire.text import TextEncoder, TextPair
from embedding_service.backend.fake import FakeBackend, checksum_vector
from embedding_service.bert_as_service import (
    INTERACTIVE_TEXTS,
    MAX_TEXTS,
    BertAsService,
    MalformedRequestError,
    Request,
    _kept,
    encode_tokens,
    error_frames,
    fault_frames,
    joined,
    parse_request,
    parse_texts,
    split_pair,
    vector_frames,
)
from embedding_service.errors import HTTP_STATUS, DeadlineExceeded, InvalidInput, Overloaded
from embedding_service.infer import EmbedAnswer, EmbedCall, HostedTrunk, Infer, ViewVectors
from embedding_service.queue import QueueLimits
from embedding_service.telemetry import PrometheusTelemetry
from embedding_service.tokenization import InputLimits, TokenIds
from tests.embedding_service.conftest import Start
from tests.embedding_service.test_batching import Gate

SECRET = "SECRET-CANARY"
REQUEST = Request(b"me", b"[]", b"7")


@asynccontextmanager
async def inferring(backend: FakeBackend, **limits: int) -> AsyncIterator[Infer]:
    telemetry = PrometheusTelemetry(CollectorRegistry())
    trunk = HostedTrunk(backend, QueueLimits(), telemetry.of_trunk("fake"))
    yield Infer([trunk], InputLimits(**limits), telemetry)
    await trunk.batcher.drain(1.0)


class Recorder:
    """Stands before an `Infer` and notes what is asked; *refusals* are raised in its stead, where not None."""

    def __init__(self, infer: Infer, *refusals: Exception | None) -> None:
        self.calls: list[EmbedCall] = []
        self._infer = infer
        self._refusals = list(refusals)

    async def __call__(self, call: EmbedCall) -> EmbedAnswer:
        self.calls.append(call)
        refusal = self._refusals.pop(0) if self._refusals else None
        if refusal is not None:
            raise refusal
        return await self._infer.embed(call)


@given(st.lists(st.binary(max_size=300) | st.sampled_from([b"0", b"12", b"SHOW_CONFIG"]), max_size=6))
def test_frames_are_a_request_or_malformed_whatever_they_hold(frames: list[bytes]) -> None:
    try:
        request = parse_request(frames)
    except MalformedRequestError:
        return
    assert [request.identity, request.message, request.number] == frames[:3]
    assert int(request.number) >= 0


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param([], id="none"),
        pytest.param([b"me", b"[]", b"1"], id="three"),
        pytest.param([b"me", b"[]", b"1", b"0", b""], id="five"),
        pytest.param([b"", b"[]", b"1", b"0"], id="nobody"),
        pytest.param([b"m" * 257, b"[]", b"1", b"0"], id="a long name"),
        pytest.param([b"me", b"[]", b"-1", b"0"], id="a negative number"),
        pytest.param([b"me", b"[]", b"1" * 21, b"0"], id="a long number"),
        pytest.param([b"me", b"[]", "\u0663".encode(), b"0"], id="another script's digit"),
        pytest.param([b"me", b"[]", b"1", b""], id="no number"),
    ],
)
def test_frames_that_are_no_request_are_told_apart(frames: list[bytes]) -> None:
    with pytest.raises(MalformedRequestError):
        parse_request(frames)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=12,
)


@given(st.binary(max_size=200) | _JSON.map(lambda found: json.dumps(found).encode()))
def test_a_message_is_texts_or_refused_whatever_it_holds(message: bytes) -> None:
    try:
        texts = parse_texts(message, max_bytes=150)
    except InvalidInput:
        return
    assert texts == json.loads(message)
    assert all(isinstance(text, type(texts[0])) and len(text) > 0 for text in texts)


_WORDS = st.text(min_size=1, max_size=8).filter(lambda word: not word.isspace())


@given(st.lists(_WORDS, min_size=1, max_size=5) | st.lists(st.lists(_WORDS, min_size=1, max_size=4), min_size=1, max_size=5))
def test_what_the_client_sends_is_read_back(texts: list[str] | list[list[str]]) -> None:
    assert texts == parse_texts(json.dumps(texts).encode(), max_bytes=1_000_000)


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"SECRET-CANARY", id="not JSON"),
        pytest.param(b'["\xff"]', id="invalid UTF-8"),
        pytest.param(b'["\\ud800"]', id="a lone surrogate"),
        pytest.param(b'{"SECRET-CANARY": 1}', id="an object"),
        pytest.param(b"[]", id="no texts"),
        pytest.param(b'["SECRET-CANARY", ""]', id="an empty text"),
        pytest.param(b'["SECRET-CANARY", " \\t"]', id="a blank text"),
        pytest.param(b'[["SECRET-CANARY"], []]', id="no tokens"),
        pytest.param(b'["SECRET-CANARY", ["w1"]]', id="mixed"),
        pytest.param(b'[[["SECRET-CANARY"]]]', id="deeper"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b'["SECRET-CANARY", 3]', id="a number"),
        pytest.param(b"[" + b",".join([b'"w"'] * (MAX_TEXTS + 1)) + b"]", id="too many texts"),
        pytest.param(b'["' + b"x" * 1_000_000 + b'"]', id="too long"),
    ],
)
def test_messages_that_cannot_be_served_are_refused_in_a_sentence_that_does_not_echo_them(message: bytes) -> None:
    with pytest.raises(InvalidInput) as refusal:
        parse_texts(message, max_bytes=500_000)
    assert SECRET not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b", "a b"),
        ("a ||| b", TextPair("a", "b")),
        (" a ||| b ", TextPair("a", "b")),
        ("a ||| b ||| c", TextPair("a ||| b", "c")),
        ("a|||b", "a|||b"),
        ("a |||", "a |||"),
        ("||| b", "||| b"),
    ],
)
def test_a_pair_is_divided_at_its_last_separator(text: str, expected: str | TextPair) -> None:
    assert expected == split_pair(text)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 40))
def test_the_longer_text_of_a_pair_loses_token_after_token(first: int, second: int, room: int) -> None:
    expected = [first, second]
    while sum(expected) > room:
        expected[0 if expected[0] > expected[1] else 1] -= 1

    assert tuple(expected) == _kept(first, second, room)


def test_tokens_are_looked_up_as_they_are_and_cut_to_what_fits(tokenizer_json: bytes) -> None:
    encoder = TextEncoder(tokenizer_json, max_tokens=6)

    assert TokenIds([2, 5, 1, 3]) == encode_tokens(["w1", "unheard"], encoder)
    assert TokenIds([2, 5, 5, 5, 5, 3]) == encode_tokens(["w1"] * 9, encoder)
    assert TokenIds([2, 5, 3, 6, 3], pair_at=3) == encode_tokens(["w1", "|||", "w2"], encoder)
    assert TokenIds([2, 5, 3, 6, 7, 3], pair_at=3) == encode_tokens(["w1", "|||", "w2", "w3", "w4"], encoder)
    assert TokenIds([2, 3, 6, 3], pair_at=2) == encode_tokens(["|||", "w2"], encoder)
    assert TokenIds([2, 6, 3]) == encode_tokens(["w2", "|||"], encoder)


@pytest.mark.parametrize("kind", HTTP_STATUS, ids=lambda kind: kind.__name__)
def test_numpy_quotes_every_error_to_the_client(kind: type[Exception]) -> None:
    message = "one, two, (three) [4] 'five': <f4"
    error = kind(message, retry_after=1.2) if kind is Overloaded else kind(message)  # type: ignore[call-arg]
    identity, facts, numbers, number = error_frames(REQUEST, error)  # type: ignore[arg-type]

    assert (b"me", b"7") == (identity, number)
    with pytest.raises(TypeError, match=r"server error \d{3}: one; two;.* not understood"):
        np.frombuffer(numbers, dtype=json.loads(facts)["dtype"])


def test_a_fault_is_quoted_too() -> None:
    with pytest.raises(TypeError, match="server error 500"):
        np.frombuffer(b"", dtype=json.loads(fault_frames(REQUEST)[1])["dtype"])


def test_vectors_travel_row_by_row_with_what_describes_them() -> None:
    vectors = np.arange(6, dtype=np.float32).reshape(3, 2)
    identity, facts, numbers, number = vector_frames(REQUEST, vectors.T, [["a"], ["b"]])

    assert {"dtype": "float32", "shape": [2, 3], "tokens": [["a"], ["b"]]} == json.loads(facts)
    assert [0.0, 2.0, 4.0, 1.0, 3.0, 5.0] == np.frombuffer(numbers, dtype=np.float32).tolist()
    assert (b"me", b"7") == (identity, number)


def test_token_vectors_of_all_parts_are_padded_to_the_longest() -> None:
    parts = [
        ViewVectors(np.full((3, 2), 1, dtype=np.float32), (2, 1)),
        ViewVectors(np.full((3, 2), 2, dtype=np.float32), (3,)),
    ]

    assert [[[1, 1], [1, 1], [0, 0]], [[1, 1], [0, 0], [0, 0]], [[2, 2]] * 3] == joined(parts).tolist()


async def test_a_large_request_is_asked_for_in_parts_and_joined_in_order(tokenizer_json: bytes) -> None:
    texts = [f"w{number}" for number in range(20)]
    async with inferring(FakeBackend(tokenizer_json), max_request_inputs=7) as infer:
        recorder = Recorder(infer)
        vectors = await BertAsService(infer).encode(texts, recorder, max_bytes=10_000)

    assert [7, 7, 6] == [len(call.inputs) for call in recorder.calls]
    np.testing.assert_array_equal([checksum_vector((2, 4 + number, 3)) for number in range(20)], vectors)


@pytest.mark.parametrize(("num_texts", "is_bulk"), [(INTERACTIVE_TEXTS, False), (INTERACTIVE_TEXTS + 1, True)])
async def test_small_requests_go_first(tokenizer_json: bytes, num_texts: int, is_bulk: bool) -> None:
    async with inferring(FakeBackend(tokenizer_json)) as infer:
        recorder = Recorder(infer)
        await BertAsService(infer).encode(["w1"] * num_texts, recorder, max_bytes=10_000)

    assert [is_bulk] == [call.is_bulk for call in recorder.calls]


async def test_a_request_that_has_begun_waits_for_room_and_one_that_has_not_is_refused(tokenizer_json: bytes) -> None:
    full = Overloaded("full", retry_after=0.001)
    async with inferring(FakeBackend(tokenizer_json), max_request_inputs=10) as infer:
        protocol = BertAsService(infer)
        begun = Recorder(infer, None, full, full)
        vectors = await protocol.encode(["w1"] * 20, begun, max_bytes=10_000)
        with pytest.raises(Overloaded):
            await protocol.encode(["w1"] * 20, Recorder(infer, full), max_bytes=10_000)
        with pytest.raises(Overloaded):
            await protocol.encode(["w1"] * 20, Recorder(infer, None, Overloaded("full", retry_after=60.0)), max_bytes=10_000)

    assert (20, 8) == vectors.shape
    assert [10] * 4 == [len(call.inputs) for call in begun.calls]


async def test_large_requests_take_turns_and_small_ones_need_none(tokenizer_json: bytes) -> None:
    async with inferring(FakeBackend(tokenizer_json)) as infer:
        protocol = BertAsService(infer, default_timeout=0.2)
        held, begun = asyncio.Event(), asyncio.Semaphore(0)

        async def embed(call: EmbedCall) -> EmbedAnswer:
            begun.release()
            await held.wait()
            return await infer.embed(call)

        large = [asyncio.create_task(protocol.encode(["w1"] * 17, embed, max_bytes=10_000)) for _ in range(4)]
        for _ in large:
            await begun.acquire()
        with pytest.raises(DeadlineExceeded, match="larger requests"):
            await protocol.encode(["w1"] * 17, infer.embed, max_bytes=10_000)
        assert (2, 8) == (await protocol.encode(["w1", "w2"], infer.embed, max_bytes=10_000)).shape
        held.set()
        await asyncio.gather(*large, return_exceptions=True)
        assert (17, 8) == (await protocol.encode(["w2"] * 17, infer.embed, max_bytes=10_000)).shape


async def test_vectors_too_large_for_an_answer_are_refused_after_the_first_part(tokenizer_json: bytes) -> None:
    async with inferring(FakeBackend(tokenizer_json), max_request_inputs=2) as infer:
        recorder = Recorder(infer)
        with pytest.raises(InvalidInput, match="more than 1000 bytes"):
            await BertAsService(infer, pooling="NONE").encode(["w1", "w2 w3"] * 8, recorder, max_bytes=1_000)

    assert 1 == len(recorder.calls)


async def test_the_config_says_what_the_client_checks(tokenizer_json: bytes) -> None:
    async with inferring(FakeBackend(tokenizer_json)) as infer:
        habit = BertAsService(infer).config()
        chosen = BertAsService(infer, pooling="CLS_TOKEN", show_tokens=True).config()

    assert ("1.10.0", 64, False) == (habit["server_version"], habit["max_seq_len"], habit["show_tokens_to_client"])
    assert (2, [-1]) == (habit["pooling_strategy"], habit["pooling_layer"])
    assert (4, True) == (chosen["pooling_strategy"], chosen["show_tokens_to_client"])


async def test_texts_tokens_and_pairs_are_encoded_over_http(start: Start, tokenizer_json: bytes) -> None:
    backend = FakeBackend(tokenizer_json)
    addresses = await start(backend)
    async with httpx.AsyncClient(base_url=addresses.http) as http:
        texts = (await http.post("/encode", json={"id": 123, "texts": ["w1 w2", "w3"], "is_tokenized": False})).json()
        tokens = (await http.post("/encode", json={"id": "a", "texts": [["w1", "w2"]], "is_tokenized": True})).json()
        pairs = (await http.post("/encode", json={"texts": ["w4 ||| w5"]})).json()
        more = (await http.post("/encode", json={"texts": [["w6", "|||", "w7"]]})).json()

    assert (123, 200) == (texts["id"], texts["status"])
    np.testing.assert_allclose([checksum_vector((2, 5, 6, 3)), checksum_vector((2, 7, 3))], texts["result"], rtol=1e-6)
    assert ("a", texts["result"][:1]) == (tokens["id"], tokens["result"])
    assert (None, 1) == (pairs["id"], len(more["result"]))
    assert [((2, 8, 3, 9, 3), 3), ((2, 10, 3, 11, 3), 3)] == [
        (batch.token_ids[0], batch.pair_at[0]) for batch in backend.batches if batch.pair_at
    ]


async def test_token_vectors_come_padded_with_zeros_over_http(start: Start, tokenizer_json: bytes) -> None:
    addresses = await start(FakeBackend(tokenizer_json), bert_pooling="NONE")
    texts = ["w1", *(" ".join(["w2"] * 62) for _ in range(150))]
    async with httpx.AsyncClient(base_url=addresses.http) as http:
        answer = (await http.post("/encode", json={"id": 1, "texts": texts})).json()

    vectors = np.array(answer["result"])
    assert (151, 64, 8) == vectors.shape
    np.testing.assert_allclose(np.tile(checksum_vector((2, 5, 3)), (3, 1)), vectors[0, :3], rtol=1e-6)
    assert not vectors[0, 3:].any()


async def test_both_status_pages_tell_what_was_asked(start: Start, tokenizer_json: bytes) -> None:
    addresses = await start(FakeBackend(tokenizer_json))
    async with httpx.AsyncClient(base_url=addresses.http) as http:
        await http.post("/encode", json={"id": 1, "texts": ["w1", "w2"]})
        server = (await http.get("/status/server")).json()
        client = (await http.get("/status/client")).json()

    assert ("1.10.0", "http") == (server["server_version"], server["client"])
    assert {"num_data_request": 1, "num_total_seq": 2, "num_total_client": 1}.items() <= server["statistic"].items()
    assert (1, [], "1.10.0") == (client["num_request"], client["pending_request"], client["client_version"])


@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param(b"", 400, id="nothing"),
        pytest.param(b'{"id": 1, "texts": ["\xff"]}', 400, id="invalid UTF-8"),
        pytest.param(b'{"id": 1, "texts": "SECRET-CANARY"}', 400, id="a text alone"),
        pytest.param(b'{"id": {"SECRET-CANARY": 1}, "texts": ["w1"]}', 400, id="an object as id"),
        pytest.param(b'{"id": 1}', 400, id="no texts"),
        pytest.param(b'{"id": 1, "texts": []}', 400, id="none"),
        pytest.param(b'{"id": 1, "texts": ["w1", ""]}', 400, id="an empty one"),
        pytest.param(b'{"id": 1, "texts": ["\\u200b"]}', 400, id="nothing once normalised"),
        pytest.param(b'{"id": 1, "texts": ["SECRET-CANARY"], "is_tokenized": true}', 400, id="texts said to be tokens"),
        pytest.param(b'{"id": 1, "texts": [["SECRET-CANARY"]], "is_tokenized": false}', 400, id="tokens said to be texts"),
        pytest.param(b'{"id": 1, "texts": ["' + b"x" * 20_000 + b'"]}', 413, id="too long"),
        pytest.param(b'{"texts":' + b"[" * 4_000 + b"]" * 4_000 + b"}", 400, id="deep"),
    ],
)
async def test_nonsense_is_refused_in_this_protocols_shape(start: Start, tokenizer_json: bytes, body: bytes, status: int) -> None:
    backend = FakeBackend(tokenizer_json)
    addresses = await start(backend, max_body_bytes=10_000)
    async with httpx.AsyncClient(base_url=addresses.http) as http:
        answer = await http.post("/encode", content=body)

    assert (status, status) == (answer.status_code, answer.json()["status"])
    assert answer.json()["description"]
    assert answer.json()["type"] in {"InvalidInput", "HTTPException"}
    assert SECRET not in answer.text
    assert [] == backend.batches


async def test_a_full_queue_and_a_broken_trunk_are_told_over_http(start: Start, tokenizer_json: bytes) -> None:
    gate = Gate()
    backend = FakeBackend(tokenizer_json, fault=gate)
    addresses = await start(backend, max_queued_tokens=8, max_batch_tokens=8)
    async with httpx.AsyncClient(base_url=addresses.http) as http:
        calls = [asyncio.create_task(http.post("/encode", json={"texts": ["w1 w1 w1"]}))]
        while not backend.batches:
            await asyncio.sleep(0.001)
        calls.append(asyncio.create_task(http.post("/encode", json={"texts": ["w2 w1 w1"]})))
        while 'queue_entries{trunk="fake"} 1.0' not in (await http.get("/metrics")).text:
            await asyncio.sleep(0.01)
        full = await http.post("/encode", json={"texts": ["w7 w8 w9"]})
        gate.open()
        await asyncio.gather(*calls)
        backend.fault = lambda _: (_ for _ in ()).throw(RuntimeError("broken"))
        broken = await http.post("/encode", json={"texts": ["w9"]})

    assert (429, "Overloaded") == (full.status_code, full.json()["type"])
    assert int(full.headers["retry-after"]) >= 1
    assert (503, "Unavailable") == (broken.status_code, broken.json()["type"])


async def test_what_waits_for_a_caller_that_hung_up_is_never_executed(start: Start, tokenizer_json: bytes) -> None:
    gate = Gate()
    backend = FakeBackend(tokenizer_json, fault=gate)
    addresses = await start(backend)
    async with httpx.AsyncClient(base_url=addresses.http) as staying, httpx.AsyncClient(base_url=addresses.http) as leaving:
        first = asyncio.create_task(staying.post("/encode", json={"texts": ["w1"]}))
        while not backend.batches:
            await asyncio.sleep(0.001)
        with pytest.raises(httpx.ReadTimeout):
            await leaving.post("/encode", json={"texts": ["w2"]}, timeout=0.3)
        while 'requests_total{outcome="cancelled"} 1.0' not in (await staying.get("/metrics")).text:
            await asyncio.sleep(0.01)
        gate.open()
        assert 200 == (await first).status_code
        assert [] == (await staying.get("/status/client")).json()["pending_request"]

    assert [(2, 5, 3)] == [ids for batch in backend.batches for ids in batch.token_ids]
