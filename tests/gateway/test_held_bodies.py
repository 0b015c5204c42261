import asyncio
from collections.abc import AsyncIterator

from gateway.settings import Settings
from tests.gateway.fakes import FakeGateway, FakeTrunks, GatedEmbedder, head, state_of


async def test_who_sends_while_others_hold_all_there_is_comes_back_later(trunks: FakeTrunks) -> None:
    embedder = GatedEmbedder(trunks, expected="interactive")
    settings = Settings(_cli_parse_args=[], max_held_bytes=1_024)
    app = FakeGateway(state_of(trunks, head("spam"), embedder=embedder, settings=settings))
    body = {"texts": ["a"], "sticky_key": "k" * 100}

    async def in_pieces() -> AsyncIterator[bytes]:
        yield b'{"texts": ["'
        yield b"a " * 600
        yield b'"]}'

    async with asyncio.timeout(20), app.http() as http:
        waiting = asyncio.create_task(http.post("/v1/classify", json=body))
        await embedder.entered.wait()
        refused = [await http.post(path, content=in_pieces()) for path in ("/v1/classify", "/predict", "/v1/embeddings")]
        held = app.state.bodies.num_bytes
        embedder.opened.set()
        served = await waiting
        alone = await http.post("/v1/classify", content=in_pieces())

    assert [429] * 3 == [answer.status_code for answer in refused]
    assert all(answer.headers["retry-after"] for answer in refused)
    assert len(served.request.content) == held
    assert (200, 200) == (served.status_code, alone.status_code)
    assert 0 == app.state.bodies.num_bytes
