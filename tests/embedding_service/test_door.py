import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import numpy as np
import pytest

from embedding_service.backend.fake import FakeBackend
from embedding_service.door import TELLS
from embedding_service.errors import Overloaded
from tests.collector import no_collector, num_alive
from tests.embedding_service.conftest import Start
from tests.embedding_service.test_batching import Gate


@asynccontextmanager
async def filled(http: httpx.AsyncClient, backend: FakeBackend) -> AsyncIterator[None]:
    """While it lasts *backend* holds a pass, another is cut ahead, and the queue is full."""
    backend.fault = gate = Gate()
    calls = []
    async with asyncio.timeout(20):
        while f'queue_entries{{trunk="{backend.trunk.name}"}} 1.0' not in (await http.get("/metrics")).text:
            calls.append(asyncio.create_task(http.post("/embed", json={"inputs": f"w{len(calls)} w1 w1 w1 w1 w1"})))
            await asyncio.sleep(0.02)
    try:
        yield
    finally:
        gate.open()
        await asyncio.gather(*calls)


async def num_refused(http: httpx.AsyncClient) -> float:
    lines = (await http.get("/metrics")).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if 'requests_total{outcome="overloaded"}' in line)


@pytest.mark.parametrize("path", TELLS)
@pytest.mark.parametrize("more", [{}, {"access_log": True}, {"cache_bytes": 1_000_000}], ids=["outside", "told of", "in the app"])
async def test_a_full_service_refuses_in_the_words_of_each_protocol(
    start: Start, tokenizer_json: bytes, path: str, more: dict[str, object]
) -> None:
    backend = FakeBackend(tokenizer_json)
    addresses = await start(backend, max_queued_tokens=8, max_batch_tokens=8, **more)
    async with httpx.AsyncClient(base_url=addresses.http) as http:
        async with filled(http, backend):
            before = await num_refused(http)
            refused = await http.post(path, json={"input": "w7", "inputs": "w7"})
            seen = await num_refused(http) - before
        after = await http.post(path, json={"input": "w7", "inputs": "w7"})

    assert 429 == refused.status_code
    assert "overloaded" in refused.text.lower()
    assert int(refused.headers["retry-after"]) >= 1
    assert int(refused.headers["retry-after-ms"]) >= 50
    assert 1 == seen
    assert 200 == after.status_code


async def test_while_one_of_two_trunks_has_room_nobody_is_refused_at_the_door(start: Start, tokenizer_json: bytes) -> None:
    busy, free = FakeBackend(tokenizer_json), FakeBackend(tokenizer_json, name="free")
    addresses = await start(busy, free, max_queued_tokens=8, max_batch_tokens=8)
    async with httpx.AsyncClient(base_url=addresses.http) as http:
        async with filled(http, busy):
            refused = await http.post("/v1/embeddings", json={"input": "w7"})
            answering = asyncio.create_task(http.post("/v1/embeddings", json={"input": "w7", "model": "free"}))
            # The trunks take turns at the cores, so it waits, but it is in.
            while 'queue_entries{trunk="free"} 1.0' not in (await http.get("/metrics")).text:
                assert not answering.done()
        answered = await answering

    assert (429, 200) == (refused.status_code, answered.status_code)
    assert np.isfinite(answered.json()["data"][0]["embedding"]).all()


@pytest.mark.parametrize("more", [{}, {"access_log": True}], ids=["outside", "in the app"])
async def test_a_refusal_is_freed_once_it_is_told_and_needs_no_collector(
    start: Start, tokenizer_json: bytes, more: dict[str, object]
) -> None:
    backend = FakeBackend(tokenizer_json)
    addresses = await start(backend, max_queued_tokens=8, max_batch_tokens=8, **more)
    async with httpx.AsyncClient(base_url=addresses.http) as http, filled(http, backend):
        with no_collector():
            before = num_alive(Overloaded)
            statuses = [(await http.post("/v1/embeddings", json={"input": "w7"})).status_code for _ in range(5)]
            after = num_alive(Overloaded)

    assert [429] * 5 == statuses
    assert after <= before
