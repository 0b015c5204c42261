import asyncio
import time
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.message import Message
from grpc.aio import insecure_channel
from grpc_health.v1 import health_pb2, health_pb2_grpc

from clients import AsyncEmbeddingClient, Deadline, InvalidRequest, TableKey, TextPair, View
from embedding_service.backend.fake import FakeBackend
from embedding_service.backend.tables import Table
from embedding_service.errors import DeadlineExceeded, Overloaded, Unavailable
from embedding_service.hosted_table import MAX_WAITING_INPUTS, HostedTable
from embedding_service.models.tables import prepare_table
from embedding_service.service import Addresses, running
from embedding_service.settings import Settings
from embedding_service.tokenization import InputLimits, ViewChoice
from embedding_service.tokenization import TableKey as Key

ROWS = {
    "red": [1.0, 0.0, 0.0],
    "green": [0.0, 2.0, 0.0],
    "blue": [0.0, 0.0, 4.0],
    "huge": [3e30, 4e30, 0.0],
    "tiny": [3e-30, 4e-30, 0.0],
}


@pytest.fixture
def table(tmp_path: Path) -> Table:
    source = tmp_path / "colours.txt"
    source.write_text("".join(f"{key} {' '.join(map(str, row))}\n" for key, row in ROWS.items()))
    prepared = prepare_table(source, name="colours", cache_dir=tmp_path / "cache")
    return Table(prepared.spec, prepared.folder)


@pytest.fixture
async def addresses(table: Table, tokenizer_json: bytes):
    settings = Settings(grpc_port=0, http_port=0, drain_seconds=2.0, max_request_inputs=8)
    async with running([FakeBackend(tokenizer_json)], settings, [table]) as found:
        yield found


async def test_keys_and_texts_get_their_vectors_and_what_is_missing_is_said(addresses: Addresses) -> None:
    async with AsyncEmbeddingClient(addresses.grpc) as client:
        answer = await client.embed(
            [TableKey("green"), "Red, blue and pink!", TableKey("Green"), TableKey("red")], trunk="colours"
        )

    np.testing.assert_array_equal([[0, 2, 0], [0.5, 0, 2], [0, 0, 0], [1, 0, 0]], answer.vectors)
    assert ((), ("and", "pink"), ("Green",), ()) == answer.missing
    assert 1 == answer.num_tokens[0]


async def test_a_table_scales_and_cuts_like_a_trunk(addresses: Addresses) -> None:
    async with AsyncEmbeddingClient(addresses.grpc) as client:
        answer = await client.embed(["red green"], trunk="colours", views=[View(normalize=True), View(dims=1), View("mean")])

    np.testing.assert_allclose(answer.views[0].array, [[1 / np.sqrt(5), 2 / np.sqrt(5), 0]], atol=1e-6)
    np.testing.assert_allclose(answer.views[1].array, [[0.5]])
    np.testing.assert_allclose(answer.views[2].array, [[0.5, 1, 0]])


async def test_vectors_of_any_size_are_scaled_to_length_one(addresses: Addresses) -> None:
    async with AsyncEmbeddingClient(addresses.grpc) as client:
        answer = await client.embed(["huge", TableKey("tiny"), TableKey("none")], trunk="colours", views=[View(normalize=True)])

    np.testing.assert_allclose(answer.views[0].array, [[0.6, 0.8, 0]] * 2 + [[0, 0, 0]], rtol=1e-6)


async def test_numbers_that_float16_does_not_hold_are_refused_in_it_and_the_others_answered(addresses: Addresses) -> None:
    async with AsyncEmbeddingClient(addresses.grpc) as client:
        with pytest.raises(InvalidRequest, match="float16"):
            await client.embed([TableKey("huge")], trunk="colours", dtype="float16")
        stream = client.stream(trunk="colours", dtype="float16")
        found, refused = await asyncio.gather(
            stream.embed([TableKey("blue")], Deadline.after(5)),
            stream.embed([TableKey("huge")], Deadline.after(5)),
            return_exceptions=True,
        )
        await stream.close()

    assert isinstance(refused, InvalidRequest)
    # What is answered together is written together.
    assert isinstance(found, InvalidRequest) or [0, 0, 4] == found[0][0].tolist()


async def test_a_stream_reads_tables_too(addresses: Addresses) -> None:
    async with AsyncEmbeddingClient(addresses.grpc) as client:
        stream = client.stream(trunk="colours")
        found = await stream.embed([TableKey("blue"), "red"], Deadline.after(5))
        with pytest.raises(InvalidRequest, match="has no token ids"):
            await stream.embed([[1, 2]], Deadline.after(5))
        await stream.close()

    assert [[0, 0, 4], [1, 0, 0]] == [vectors[0].tolist() for vectors in found]


async def test_a_table_describes_itself_and_is_healthy(addresses: Addresses, table: Table) -> None:
    async with AsyncEmbeddingClient(addresses.grpc) as client, insecure_channel(addresses.grpc) as channel:
        found = await client.trunk("colours", with_tokenizer=True)
        asked = health_pb2.HealthCheckRequest(service="trunk/colours")
        health: Message = await health_pb2_grpc.HealthStub(channel).Check(asked)

    assert (True, 5, 3, table.spec.fingerprint) == (found.is_table, found.num_keys, found.width, found.fingerprint)
    assert health_pb2.HealthCheckResponse(status=1) == health


@pytest.mark.parametrize(
    ("inputs", "views", "message"),
    [
        ([[1, 2]], [], "has no token ids"),
        ([TextPair("red", "blue")], [], "has no token ids"),
        ([""], [], "input 0 is empty"),
        ([TableKey("")], [], "the key of input 0 is empty"),
        (["red"], [View("cls")], "no other pooling"),
        (["red"], [View(layer=-1)], "has no layers"),
        (["red"], [View(dims=4)], "more than the 3"),
        (["red"] * 9, [], "more than the 8"),
    ],
)
async def test_what_a_table_cannot_answer_is_refused_in_words(addresses: Addresses, inputs, views, message) -> None:
    async with AsyncEmbeddingClient(addresses.grpc) as client:
        with pytest.raises(InvalidRequest, match=message):
            await client.embed(inputs, trunk="colours", views=views)


async def test_a_table_that_cannot_be_read_is_said_to_the_caller_and_told_once_to_whoever_runs_it(
    table: Table, caplog: pytest.LogCaptureFixture
) -> None:
    hosted = HostedTable(table)
    table.close()
    for _ in range(3):
        with pytest.raises(Unavailable, match="the table could not be read"):
            await hosted.look_up([Key("red")], [hosted.resolve(ViewChoice())], InputLimits(), time.monotonic() + 10)
    hosted.close()

    [told] = [record.getMessage() for record in caplog.records if record.name == "embedding_service.hosted_table"]
    assert told.startswith("the table colours could not be read: BackendError, ")


async def test_a_table_that_has_too_much_to_look_up_refuses_and_a_late_call_is_not_begun(table: Table) -> None:
    hosted = HostedTable(table)
    views, limits = [hosted.resolve(ViewChoice())], InputLimits()
    many = [Key("red")] * MAX_WAITING_INPUTS
    first = asyncio.create_task(hosted.look_up(many, views, limits, time.monotonic() + 10))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await hosted.look_up([Key("red")], views, limits, time.monotonic() + 10)
    vectors, facts = await first
    with pytest.raises(DeadlineExceeded):
        await hosted.look_up([Key("red")], views, limits, time.monotonic() - 1)
    await hosted.look_up([Key("red")], views, limits, time.monotonic() + 10)
    hosted.close()

    assert MAX_WAITING_INPUTS == len(vectors) == len(facts)
