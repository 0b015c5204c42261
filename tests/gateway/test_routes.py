import asyncio
import json
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from clients import Cancelled, PermissionDenied, TrunklineError, Unauthenticated, Unavailable
from clients.wire.catalogue import CatalogueHead
from gateway.ports import FloatArray, Rows
from gateway.schemas import ClassifyAnswer, ErrorAnswer
from gateway.settings import Settings
from tests.collector import no_collector, num_alive
from tests.gateway.fakes import (
    FakeEmbedder,
    FakeGateway,
    FakePredictor,
    FakeTrunks,
    GatedEmbedder,
    head,
    live,
    manifest,
    raises,
    state_of,
)


def gateway(trunks: FakeTrunks, *heads: CatalogueHead, settings: Settings | None = None, **scores: Any) -> FakeGateway:
    return FakeGateway(state_of(trunks, *(heads or [head("spam")]), predictor=FakePredictor(**scores), settings=settings))


async def post(app: FakeGateway, body: Any, path: str = "/v1/classify", **headers: str) -> Any:
    async with app.http() as http:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = [(name.replace("_", "-").encode(), said.encode()) for name, said in headers.items()]
        return await http.post(path, content=content, headers=named)


async def test_an_answer_tells_label_confidence_tokens_and_its_stages(trunks: FakeTrunks) -> None:
    answer = await post(gateway(trunks), {"text": "a b"}, x_request_id="mine")

    assert 200 == answer.status_code
    assert "mine" == answer.headers["x-request-id"]
    assert ["preprocess", "embed", "heads", "total"] == [
        part.partition(";dur=")[0].strip() for part in answer.headers["server-timing"].split(",")
    ]
    [result] = msgspec.json.decode(answer.content, type=ClassifyAnswer, strict=True).results
    assert {"label": "spam", "score": 0.75, "confidence": 0.75, "version": 7} == answer.json()["results"][0]["heads"]["spam"]
    assert (4, False, False, []) == (result.num_tokens, result.truncated, result.cached, result.notes)


async def test_the_headers_of_an_answer_are_there_once_and_true(trunks: FakeTrunks) -> None:
    answer = await post(gateway(trunks), {"text": "a b"})

    assert [str(len(answer.content))] == answer.headers.get_list("content-length")
    assert ["application/json"] == answer.headers.get_list("content-type")
    assert len({"server-timing", "x-request-id"} & set(answer.headers)) == 2
    assert len(answer.headers.raw) == len(set(answer.headers))


async def test_notes_tell_what_normalising_changed(trunks: FakeTrunks) -> None:
    answer = await post(gateway(trunks), {"texts": ["a", "a  b", "e\u0301\u200b a", " b\n"]})

    assert [None, ["white_space_collapsed"], ["recomposed", "control_characters_removed"], ["white_space_collapsed"]] == [
        result.get("notes") for result in answer.json()["results"]
    ]


async def test_several_labels_are_answered_with_the_mean_confidence_and_a_threshold_takes_the_place_of_theirs(
    trunks: FakeTrunks,
) -> None:
    tags = live(replace(manifest("tags"), task="multi_label", thresholds=(0.2, 0.8)))
    app = gateway(trunks, tags)
    own = (await post(app, {"text": "a"})).json()["results"][0]["heads"]["tags"]
    given = (await post(app, {"text": "a", "threshold": 0.5, "scores": True})).json()["results"][0]["heads"]["tags"]
    none = (await post(app, {"text": "a", "threshold": 1})).json()["results"][0]["heads"]["tags"]

    assert {"label": "ham", "score": 0.25, "confidence": 0.75, "labels": ["ham"], "version": 7} == own
    assert ("spam", ["spam"], {"spam": 0.75, "ham": 0.25}) == (given["label"], given["labels"], given["scores"])
    assert ("label" in none, none["labels"], none["score"]) == (False, [], 0.75)


async def test_a_single_label_below_the_threshold_is_not_answered_but_its_score_is(trunks: FakeTrunks) -> None:
    answer = await post(gateway(trunks), {"text": "a", "threshold": 0.76})
    assert {"score": 0.75, "confidence": 0.75, "version": 7} == answer.json()["results"][0]["heads"]["spam"]


async def test_a_regression_answers_a_value_and_no_label(trunks: FakeTrunks) -> None:
    price = live(replace(manifest("price"), task="regression", labels=("value",)))
    answer = await post(gateway(trunks, price, price=lambda rows: np.array([[-41.5]] * len(rows), np.float32)), {"text": "a"})
    assert {"value": -41.5, "version": 7} == answer.json()["results"][0]["heads"]["price"]


def four(rows: Rows) -> FloatArray:
    return np.array([[0.125, 0.25, 0.5, 0.125]] * len(rows), np.float32)


@pytest.mark.parametrize(
    ("task", "above"),
    [("single_label", {"sport": 0.375, "sport/ball": 0.375}), ("multi_label", {"sport": 0.25, "sport/ball": 0.25})],
)
async def test_hierarchical_labels_are_told_as_paths_and_what_is_above_them_scores(
    trunks: FakeTrunks, task: Any, above: dict[str, float]
) -> None:
    labels = ("sport/ball/foot", "sport/ball/hand", "art", "war")
    deep = live(replace(manifest("deep"), task=task, labels=labels, label_separator="/", thresholds=()))
    app = gateway(trunks, deep, deep=four)
    found = (await post(app, {"text": "a", "scores": True})).json()["results"][0]["heads"]["deep"]
    foot = gateway(trunks, deep, deep=lambda rows: four(rows)[:, [2, 1, 0, 3]])
    path = (await post(foot, {"text": "a"})).json()["results"][0]["heads"]["deep"]

    assert ["art"] == found["path"]
    assert above == found["ancestors"]
    assert ["sport", "ball", "foot"] == path["path"]
    assert "ancestors" not in path


async def test_a_head_that_fails_is_alone_unless_the_request_is_strict(trunks: FakeTrunks) -> None:
    app = gateway(trunks, head("bad"), head("good"), bad=raises(Unavailable("at 10.0.0.7")))
    partial = await post(app, {"text": "a"})
    strict = await post(app, {"text": "a", "strict": True})

    assert "unavailable" == partial.json()["results"][0]["heads"]["bad"]["error"]["code"]
    assert "spam" == partial.json()["results"][0]["heads"]["good"]["label"]
    assert 503 == strict.status_code
    assert "head 'bad' is not available" == strict.json()["error"]["message"]
    assert int(strict.headers["retry-after-ms"]) > 0


async def test_one_head_has_a_route_of_its_own_and_its_failure_is_the_requests(trunks: FakeTrunks) -> None:
    app = gateway(trunks, head("bad"), head("good"), bad=raises(Unavailable("gone")))
    good = await post(app, {"text": "a"}, "/v1/heads/good/classify")
    versioned = await post(app, {"text": "a", "top_k": 1}, "/v1/heads/good@7/classify")

    assert {"good"} == good.json()["results"][0]["heads"].keys()
    assert {"spam": 0.75} == versioned.json()["results"][0]["heads"]["good@7"]["scores"]
    assert 503 == (await post(app, {"text": "a"}, "/v1/heads/bad/classify")).status_code
    assert 404 == (await post(app, {"text": "a"}, "/v1/heads/none/classify")).status_code
    assert 400 == (await post(app, {"text": "a", "heads": ["good"]}, "/v1/heads/good/classify")).status_code


async def test_heads_are_asked_for_by_tag(trunks: FakeTrunks) -> None:
    tagged = CatalogueHead(stable=7, versions={7: manifest("tagged")}, tags=("news",))
    answer = await post(gateway(trunks, head("spam"), tagged), {"text": "a", "tags": ["news"]})
    assert {"tagged"} == answer.json()["results"][0]["heads"].keys()


async def test_what_a_head_reads_of_a_text_is_shown(trunks: FakeTrunks) -> None:
    read = msgspec.structs.replace(manifest("read"), preprocess=("nfkc/1", "html-unescape/1"), long_text="max")
    async with gateway(trunks, live(read), head("plain")).http() as http:
        plain, shown = (await http.get("/v1/heads")).json()["heads"]

    assert (["nfkc/1", "html-unescape/1"], "max") == (shown["preprocess"], shown["long_text"])
    assert ([], "cut") == (plain["preprocess"], plain["long_text"])


async def test_the_same_sticky_key_in_body_or_header_gets_the_same_side_of_a_canary(trunks: FakeTrunks) -> None:
    versions = {number: manifest("topic", version=number) for number in (3, 4)}
    app = gateway(trunks, CatalogueHead(3, versions, canary=4, canary_share=0.5))

    async def version(**headers: str) -> int:
        body = {"text": "a"} if headers else {"text": "a", "sticky_key": key}
        return (await post(app, body, **headers)).json()["results"][0]["heads"]["topic"]["version"]

    seen = set()
    for key in [*map(str, range(10)), *("\N{LATIN SMALL LETTER E WITH ACUTE}" * count for count in range(1, 11))]:
        given = await version(x_sticky_key=key)
        assert given == await version() == await version()
        seen.add(given)
    assert {3, 4} == seen


async def test_who_asks_for_no_store_is_not_answered_from_memory(trunks: FakeTrunks) -> None:
    app = gateway(trunks)
    seen: list[bool] = []
    classify = app.state.pipeline.classify

    async def watched(work: Any, deadline: Any) -> Any:
        seen.append(work.may_reuse)
        return await classify(work, deadline)

    app.state.pipeline.classify = watched
    for said in ("", "max-age=3", "no-store", "private, No-Store"):
        await post(app, {"text": "a"}, cache_control=said)
    assert [True, True, False, False] == seen


@pytest.mark.parametrize(
    "body",
    [
        b'{"text": "a", "threshold": NaN}',
        b'{"text": "a", "threshold": 1e400}',
        b'{"text": "a", "threshold": -0.1}',
        b'{"text": "a", "threshold": 1.1}',
        b'{"text": "a", "top_k": 0}',
        b'{"text": "a", "top_k": 99999999999999999999}',
        b'{"text": "a", "truncation": "SECRET"}',
        b'{"text": "a", "priority": "SECRET"}',
        b'{"text": "a", "heads": ["SECRET", "SECRET"]}',
        b'{"text": "a", "tags": ["SECRET", "SECRET"]}',
        b'{"text": "a", "heads": [""]}',
        b'{"text": "a", "strict": 1}',
        b'{"text": "a", "SECRET": 1}',
        b'{"text": "\\ud800"}',
        b'{"text": {"SECRET": 1}}',
        b'{"text": "a", "sticky_key": "' + b"SECRET" * 50 + b'"}',
        json.dumps({"text": "a", "heads": [f"SECRET{number}" for number in range(257)]}).encode(),
        json.dumps({"text": "a", "heads": ["SECRET" * 50]}).encode(),
    ],
)
async def test_what_is_not_a_request_is_told_in_one_sentence_that_does_not_echo_it(trunks: FakeTrunks, body: bytes) -> None:
    answer = await post(gateway(trunks), body)

    assert 400 == answer.status_code, answer.text
    assert "SECRET" not in answer.text
    assert "\n" not in msgspec.json.decode(answer.content, type=ErrorAnswer).error.message


async def test_what_is_offered_on_the_page_is_what_there_is(trunks: FakeTrunks) -> None:
    async with gateway(trunks).http() as http:
        schema = (await http.get("/openapi.json")).json()
    named = {
        "/v1/classify",
        "/v1/heads/{name}/classify",
        "/v1/classify/stream",
        "/heads/{name}/predict",
        "/predict",
        "/v2/models/{name}/infer",
        "/v2/models/{name}/versions/{version}/infer",
        "/v1/embeddings",
        "/v1/models",
    }
    refs = set(msgspec.json.encode(schema).decode().split('"#/components/schemas/')[1:])
    ids = [told["operationId"] for methods in schema["paths"].values() for told in methods.values()]

    assert named <= schema["paths"].keys()
    assert {ref.partition('"')[0] for ref in refs} <= schema["components"]["schemas"].keys()
    assert len(ids) == len(set(ids))


async def test_a_full_gateway_says_when_to_come_back(trunks: FakeTrunks) -> None:
    app = gateway(trunks, settings=Settings(_cli_parse_args=[], max_texts=2, max_concurrent_texts=2))
    async with asyncio.timeout(5):
        with app.state.admission.admit(2):
            answers = [await post(app, {"text": "a"}), await post(app, {"input": "a"}, "/v1/embeddings")]
            answers.append(await post(app, {"inputs": "a"}, "/predict"))
    for answer in answers:
        assert 429 == answer.status_code
        assert int(answer.headers["retry-after-ms"]) > 0


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/classify", {"text": "a"}),
        ("/v1/classify", {"text": ""}),
        ("/v1/heads/nobody/classify", {"text": "a"}),
        ("/heads/nobody/predict", {"inputs": "a"}),
        ("/v2/models/nobody/infer", {"inputs": []}),
        ("/v1/embeddings", {"input": ""}),
    ],
)
async def test_an_answer_has_the_id_of_its_request_once(trunks: FakeTrunks, path: str, body: dict[str, object]) -> None:
    async with FakeGateway(state_of(trunks, head("one"))).http() as http:
        answer = await http.post(path, json=body, headers={"x-request-id": "mine"})

    assert ["mine"] == answer.headers.get_list("x-request-id")


class RefusingEmbedder(FakeEmbedder):
    """Serves nobody."""

    def __init__(self, trunks: FakeTrunks, error: TrunklineError) -> None:
        super().__init__(trunks)
        self._error = error

    async def embed(self, *_: object) -> list[Rows]:
        raise self._error


@pytest.mark.parametrize("error", [Unauthenticated("at 10.0.0.7"), PermissionDenied("at 10.0.0.7"), Cancelled("at 10.0.0.7")])
async def test_what_a_backend_refuses_to_the_gateway_is_no_fault_of_the_callers_key(
    trunks: FakeTrunks, error: TrunklineError
) -> None:
    refused = FakeGateway(state_of(trunks, head("spam"), embedder=RefusingEmbedder(trunks, error)))
    by_head = await post(gateway(trunks, spam=raises(error)), {"text": "a"}, "/v1/heads/spam/classify")
    by_trunk = await post(refused, {"text": "a"})

    for said in (by_head, by_trunk):
        assert (503, "unavailable") == (said.status_code, said.json()["error"]["code"])
        assert "10.0.0.7" not in said.text


async def test_a_caller_who_hangs_up_ends_its_work_and_gives_its_room_back(trunks: FakeTrunks) -> None:
    embedder = GatedEmbedder(trunks, expected="interactive")
    gateway = FakeGateway(state_of(trunks, head("one"), embedder=embedder))
    body = b'{"text": "a"}'
    asking = b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    async with gateway.served() as url, asyncio.timeout(10):
        _, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
        writer.write(asking + body)
        await embedder.entered.wait()
        assert 1 == gateway.state.admission.num_texts
        writer.close()
        while gateway.state.admission.num_texts:
            await asyncio.sleep(0.001)

    assert 1 == embedder.num_cancelled


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"nonsense", 400),
        (b"x" * 4_096, 413),
        ({"text": "a", "heads": ["nobody"]}, 404),
        ({"texts": ["a", "b"]}, 429),
        ({"text": "a", "strict": True}, 503),
    ],
)
async def test_what_is_refused_is_freed_with_its_answer_by_no_collector(trunks: FakeTrunks, body: Any, status: int) -> None:
    settings = Settings(max_body_bytes=1_024, max_concurrent_texts=2, max_texts=2, _cli_parse_args=[])
    app = gateway(trunks, settings=settings, spam=raises(Unavailable("broken")))
    with app.state.admission.admit(1):
        await post(app, body)
        with no_collector():
            before = num_alive(TrunklineError)
            seen = {(await post(app, body)).status_code for _ in range(5)}
            after = num_alive(TrunklineError)

    assert {status} == seen
    assert after < before + 5
