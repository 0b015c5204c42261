import asyncio
import threading
from collections.abc import Callable
from typing import Any

import httpx
import huggingface_hub
import msgspec
import numpy as np
import pytest
from huggingface_hub import AsyncInferenceClient
from huggingface_hub.errors import HfHubHTTPError

from clients.wire.text import TextEncoder
from embedding_service import tokenization
from embedding_service.backend.fake import FakeBackend, checksum_vector
from embedding_service.errors import EmbedError
from embedding_service.tei import _ERRORS
from tests.embedding_service.conftest import Start
from tests.embedding_service.test_batching import Gate

SECRET = "SECRET-CANARY"


@pytest.fixture(autouse=True)
def _client_may_reach_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests run with the hub switched off, which this client takes for every address."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


async def test_the_hugging_face_client_embeds_one_text_and_several(start: Start, tokenizer_json: bytes) -> None:
    addresses = await start(FakeBackend(tokenizer_json))
    for url in (addresses.http, f"{addresses.http}/embed"):
        async with AsyncInferenceClient(url) as client:
            one = await client.feature_extraction("w1 w2")
            cut = await client.feature_extraction("w1 w2", truncate=True, truncation_direction="left", normalize=False)

        assert (1, 8) == one.shape
        np.testing.assert_allclose(checksum_vector((2, 5, 6, 3)), one[0], rtol=1e-5)
        np.testing.assert_allclose(one, cut, rtol=1e-5)


async def test_the_hugging_face_client_compares_sentences(start: Start, tokenizer_json: bytes) -> None:
    addresses = await start(FakeBackend(tokenizer_json))
    async with AsyncInferenceClient(f"{addresses.http}/similarity") as client:
        scores = await client.sentence_similarity("w1", other_sentences=["w1", "w2"])

    expected = float(checksum_vector((2, 5, 3)) @ checksum_vector((2, 6, 3)))
    np.testing.assert_allclose([float(checksum_vector((2, 5, 3)) @ checksum_vector((2, 5, 3))), expected], scores, rtol=1e-5)


async def test_the_hugging_face_client_sees_a_refusal_as_its_own_error(start: Start, tokenizer_json: bytes) -> None:
    addresses = await start(FakeBackend(tokenizer_json, max_tokens=4))
    async with AsyncInferenceClient(addresses.http) as client:
        with pytest.raises(HfHubHTTPError, match="more than the 4 tokens"):
            await client.feature_extraction("w1 w2 w3", truncate=False)


async def test_every_token_of_each_input_comes_back_in_its_own_list(start: Start, tokenizer_json: bytes) -> None:
    addresses = await start(FakeBackend(tokenizer_json))
    async with httpx.AsyncClient(base_url=addresses.http) as http:
        answer = await http.post("/embed_all", json={"inputs": ["w1", "w2 w3"]})

    assert [3, 4] == [len(rows) for rows in answer.json()]
    np.testing.assert_allclose(np.tile(checksum_vector((2, 5, 3)), (3, 1)), answer.json()[0], rtol=1e-6)


async def test_more_vectors_of_tokens_than_an_answer_carries_are_refused_before_the_pass(
    start: Start, tokenizer_json: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedding_service.tei.MAX_JSON_VECTOR_BYTES", 7 * 8 * 4)
    backend = FakeBackend(tokenizer_json)
    addresses = await start(backend)
    async with httpx.AsyncClient(base_url=addresses.http) as http:
        fits = await http.post("/embed_all", json={"inputs": ["w1", "w2 w3"]})
        num_passes = len(backend.batches)
        refused = await http.post("/embed_all", json={"inputs": ["w2 w3", "w3 w4"]})
        others = await http.post("/embed", json={"inputs": ["w1 w2 w3", "w2 w3 w4"]})

    assert (200, 422, 200) == (fits.status_code, refused.status_code, others.status_code)
    assert "send fewer texts at once" in refused.json()["error"]
    assert num_passes + 1 == len(backend.batches)


async def test_large_answers_are_written_beside_the_loop_and_are_the_same(
    start: Start, tokenizer_json: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses = await start(FakeBackend(tokenizer_json))
    asked = [("/embed", {"inputs": ["w1", "w2"]}), ("/embed_all", {"inputs": ["w1", "w2 w3"]})]
    asked.append(("/v1/embeddings", {"input": ["w1", "w2"], "model": "x"}))
    async with httpx.AsyncClient(base_url=addresses.http) as http:
        written = [(await http.post(path, json=body)).content for path, body in asked]
        threads: list[str] = []
        encode = msgspec.json.encode

        def noting(value: Any) -> bytes:
            threads.append(threading.current_thread().name)
            return encode(value)

        for module in ("edge", "http"):
            monkeypatch.setattr(f"embedding_service.{module}.INLINE_NUMBERS", 1)
        monkeypatch.setattr(msgspec.json, "encode", noting)
        assert written == [(await http.post(path, json=body)).content for path, body in asked]

    assert threading.main_thread().name not in threads
    assert len(threads) >= len(asked)


async def test_tokens_say_where_they_stand_and_decode_back(start: Start, tokenizer_json: bytes) -> None:
    addresses = await start(FakeBackend(tokenizer_json))
    async with httpx.AsyncClient(base_url=addresses.http) as http:
        tokens = (await http.post("/tokenize", json={"inputs": ["w1 w2", " w3"]})).json()
        bare = (await http.post("/tokenize", json={"inputs": "w1", "add_special_tokens": False})).json()
        decoded = (await http.post("/decode", json={"ids": [2, 5, 6, 3]})).json()
        whole = (await http.post("/decode", json={"ids": [[2, 5, 3], [6]], "skip_special_tokens": False})).json()

    assert {"id": 6, "text": "w2", "special": False, "start": 3, "stop": 5} == tokens[0][2]
    assert {"id": 2, "text": "[CLS]", "special": True, "start": None, "stop": None} == tokens[0][0]
    # Normalising moved it, so no place is claimed.
    assert {"id": 7, "text": "w3", "special": False, "start": None, "stop": None} == tokens[1][1]
    assert [[5]] == [[token["id"] for token in row] for row in bare]
    assert ["w1 w2"] == decoded
    assert ["[CLS] w1 [SEP]", "w2"] == whole


async def test_success_carries_the_timing_headers_and_info_the_names_its_clients_read(
    start: Start, tokenizer_json: bytes
) -> None:
    addresses = await start(FakeBackend(tokenizer_json))
    async with httpx.AsyncClient(base_url=addresses.http) as http:
        answer = await http.post("/embed", json={"inputs": ["w1 w2", "w3"]})
        info = (await http.get("/info")).json()
        health = [(await http.get(path)) for path in ("/health", "/ping", "/")]

    assert ("7", "7") == (answer.headers["x-compute-tokens"], answer.headers["x-compute-characters"])
    durations = ("x-compute-time", "x-total-time", "x-tokenization-time", "x-queue-time", "x-inference-time")
    assert all(answer.headers[name].isdigit() for name in durations)
    assert ("fake", 64, 1_024) == (info["model_id"], info["max_input_length"], info["max_client_batch_size"])
    assert {"embedding": {"pooling": "mean"}} == info["model_type"]
    assert [(200, b"")] * 3 == [(seen.status_code, seen.content) for seen in health]


@pytest.mark.parametrize(
    ("path", "body", "status", "expected"),
    [
        pytest.param("/embed", b"{", 400, None, id="not JSON"),
        pytest.param("/embed", b'{"inputs": "\xff"}', 400, None, id="invalid UTF-8"),
        pytest.param("/embed", b'{"inputs": [NaN]}', 400, None, id="NaN"),
        pytest.param("/embed", b'{"inputs": {"x": "SECRET-CANARY"}}', 422, None, id="wrong type"),
        pytest.param("/embed", b'{"text": "SECRET-CANARY"}', 422, None, id="no inputs"),
        pytest.param("/embed", b'{"inputs": "w1", "dimensions": 0}', 422, None, id="no dimensions"),
        pytest.param("/embed", b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 422, None, id="deep"),
        pytest.param("/embed", b'{"inputs": "' + b"x" * 20_000 + b'"}', 413, None, id="too long"),
        pytest.param("/embed", b'{"inputs": []}', 400, "Empty", id="no texts"),
        pytest.param("/embed", b'{"inputs": ["w1", ""]}', 400, "Empty", id="an empty text"),
        pytest.param("/embed", b'{"inputs": ["SECRET-CANARY", 3]}', 422, "Validation", id="mixed"),
        pytest.param("/embed", b'{"inputs": "\\u200b"}', 422, "Validation", id="nothing once normalised"),
        pytest.param("/embed", b'{"inputs": [[2, 99999, 3]]}', 422, "Validation", id="out of vocabulary"),
        pytest.param("/embed", b'{"inputs": [[2, -5, 3]]}', 422, "Validation", id="a negative id"),
        pytest.param("/embed", b'{"inputs": "w1", "dimensions": 9}', 422, "Validation", id="too many dimensions"),
        pytest.param("/embed", b'{"inputs": "w1", "prompt_name": "SECRET-CANARY"}', 422, "Validation", id="no such prompt"),
        pytest.param("/embed", b'{"inputs": ["w1", "w2", "w3", "w4"]}', 422, "Validation", id="too many texts"),
        pytest.param("/embed_all", b'{"inputs": ""}', 400, "Empty", id="no text for all"),
        pytest.param("/tokenize", b'{"inputs": []}', 400, "Empty", id="nothing to tokenise"),
        pytest.param("/tokenize", b'{"inputs": [1]}', 422, None, id="ids to tokenise"),
        pytest.param("/decode", b'{"ids": [99999999999999999999]}', 422, "Validation", id="no id at all"),
        pytest.param("/decode", b'{"ids": [99999]}', 422, "Validation", id="decode out of vocabulary"),
        pytest.param("/decode", b'{"ids": [1, [2]]}', 422, "Validation", id="decode mixed"),
        pytest.param("/similarity", b'{"inputs": {"source_sentence": "w1", "sentences": []}}', 400, "Empty", id="no sentences"),
        pytest.param("/similarity", b'{"inputs": {"source_sentence": "", "sentences": ["w1"]}}', 400, "Empty", id="no source"),
    ],
)
async def test_nonsense_is_refused_in_this_protocols_shape_and_never_echoed(
    start: Start, tokenizer_json: bytes, path: str, body: bytes, status: int, expected: str | None
) -> None:
    backend = FakeBackend(tokenizer_json)
    addresses = await start(backend, max_request_inputs=3, max_body_bytes=10_000 if len(body) < 100_000 else 1_000_000)
    async with httpx.AsyncClient(base_url=addresses.http) as http:
        answer = await http.post(path, content=body)

    assert status == answer.status_code, answer.text
    assert len(answer.content) < 2_000
    assert SECRET not in answer.text
    if expected is None:
        assert answer.headers["content-type"].startswith("text/plain")
    else:
        assert expected == answer.json()["error_type"]
    assert [] == backend.batches


async def test_a_full_queue_and_a_broken_trunk_have_their_own_kinds(start: Start, tokenizer_json: bytes) -> None:
    gate = Gate()
    backend = FakeBackend(tokenizer_json, fault=gate)
    addresses = await start(backend, max_queued_tokens=8, max_batch_tokens=8)
    async with httpx.AsyncClient(base_url=addresses.http) as http:
        calls = [asyncio.create_task(http.post("/embed", json={"inputs": "w1 w1 w1"}))]
        while not backend.batches:
            await asyncio.sleep(0.001)
        calls.append(asyncio.create_task(http.post("/embed", json={"inputs": "w2 w1 w1"})))
        while 'queue_entries{trunk="fake"} 1.0' not in (await http.get("/metrics")).text:
            await asyncio.sleep(0.01)
        full = await http.post("/embed", json={"inputs": "w7 w8 w9"})
        gate.open()
        await asyncio.gather(*calls)
        backend.fault = lambda _: (_ for _ in ()).throw(RuntimeError("broken"))
        broken = await http.post("/embed", json={"inputs": "w9"})
        health = await http.get("/health")

    assert (429, "Overloaded") == (full.status_code, full.json()["error_type"])
    assert int(full.headers["retry-after"]) >= 1
    assert (503, "Unhealthy") == (broken.status_code, broken.json()["error_type"])
    assert (503, "Unhealthy") == (health.status_code, health.json()["error_type"])


def test_every_error_has_a_kind() -> None:
    def kinds(root: type[EmbedError]) -> set[type[EmbedError]]:
        return {root, *(kind for child in root.__subclasses__() for kind in kinds(child))}

    assert kinds(EmbedError) - {EmbedError} == set(_ERRORS)


@pytest.mark.parametrize(("path", "body"), [("/tokenize", {"inputs": "w1 " * 50_000}), ("/decode", {"ids": [5] * 100_000})])
async def test_a_huge_text_is_tokenised_and_decoded_beside_the_loop(
    start: Start, tokenizer_json: bytes, path: str, body: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = set()
    for name in ("tokens", "decode"):
        original = getattr(TextEncoder, name)

        def noting(*given: object, original: Callable[..., object] = original, **named: object) -> object:
            threads.add(threading.current_thread())
            return original(*given, **named)

        monkeypatch.setattr(TextEncoder, name, noting)
    addresses = await start(FakeBackend(tokenizer_json))
    async with httpx.AsyncClient(base_url=addresses.http, timeout=30.0) as http:
        answer = await http.post(path, json=body)

    assert 200 == answer.status_code
    assert threads
    assert threading.main_thread() not in threads


async def test_a_text_that_is_too_long_to_embed_is_too_long_to_tokenise(start: Start, tokenizer_json: bytes) -> None:
    addresses = await start(FakeBackend(tokenizer_json))
    async with httpx.AsyncClient(base_url=addresses.http, timeout=30.0) as http:
        answer = await http.post("/tokenize", json={"inputs": "x" * 1_000_001})

    assert (422, "Validation") == (answer.status_code, answer.json()["error_type"])
    assert len(answer.content) < 500


async def test_texts_that_are_too_long_together_are_not_tokenised(start: Start, tokenizer_json: bytes) -> None:
    addresses = await start(FakeBackend(tokenizer_json))
    async with httpx.AsyncClient(base_url=addresses.http, timeout=30.0) as http:
        answer = await http.post("/tokenize", json={"inputs": ["x" * 600_000, "y" * 400_001]})
        whole = await http.post("/tokenize", json={"inputs": ["x" * 600_000, "y" * 400_000]})

    assert (422, "Validation") == (answer.status_code, answer.json()["error_type"])
    assert "together" in answer.json()["error"]
    assert 200 == whole.status_code


@pytest.mark.parametrize(("path", "body"), [("/tokenize", {"inputs": "w1 " * 10_000}), ("/decode", {"ids": [5] * 30_000})])
async def test_long_texts_are_refused_where_too_many_wait_and_given_up_at_their_deadline(
    start: Start, tokenizer_json: bytes, path: str, body: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = threading.Event(), threading.Event()

    def held(*_: object, **__: object) -> object:
        begun.set()
        assert go.wait(60)
        return "" if path == "/decode" else []

    monkeypatch.setattr(TextEncoder, "tokens", held)
    monkeypatch.setattr(TextEncoder, "decode", held)
    monkeypatch.setattr(tokenization, "MAX_WAITING_CHARACTERS", 0)
    addresses = await start(FakeBackend(tokenizer_json), default_timeout_seconds=1.5)
    async with httpx.AsyncClient(base_url=addresses.http, timeout=30.0) as http:
        first = asyncio.create_task(http.post(path, json=body))
        try:
            assert await asyncio.to_thread(begun.wait, 20)
            second = await http.post(path, json=body)
            given_up = await first
        finally:
            go.set()

    assert (429, "overloaded") == (second.status_code, second.json()["error_type"].lower())
    assert 424 == given_up.status_code
    assert "deadline" in given_up.json()["error"]
