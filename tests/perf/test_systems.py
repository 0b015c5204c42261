import base64

import msgspec
import numpy as np
import pytest

from perf.embedding_vs_peers import Turns, compared_texts, found_of
from perf.load import LoadResult
from perf.systems import OPENAI, PEERS, TEI, Route, Running, least_and_mean_cosine
from perf.workloads import Workload
from tests.perf.server import UNAVAILABLE, Scripted, serving
from trunkline.processes import StackError

VECTOR = [0.6, 0.8]
BASE64 = {"data": [{"embedding": base64.b64encode(np.array(VECTOR, dtype="<f4").tobytes()).decode()}]}
ANSWERS = {
    "infinity": BASE64,
    "infinity-int8": BASE64,
    "sentence-transformers": VECTOR,
    "litserve": {"embedding": VECTOR},
}


def running(port: int, route: Route) -> Running:
    return Running("it", f"http://127.0.0.1:{port}", 0, (route,))


def answer_of(value: object) -> bytes:
    body = msgspec.json.encode(value)
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


@pytest.mark.parametrize(
    ("route", "answer"),
    [(OPENAI, BASE64), (TEI, [VECTOR]), *((peer.route, ANSWERS[name]) for name, peer in PEERS.items())],
)
async def test_the_vector_is_read_from_each_servers_answer(route: Route, answer: object) -> None:
    server = Scripted(answer_of(answer))
    async with serving(server) as port:
        vector = await running(port, route).vector(route, "é")
        least, mean = await least_and_mean_cosine(
            running(port, route), route, ["a", "b"], np.array([[0.6, 0.8], [1, 0]], np.float32)
        )

    assert VECTOR == pytest.approx(vector.tolist())
    assert "é" in msgspec.json.decode(server.bodies[0]).values()
    assert (least, mean) == pytest.approx((0.6, 0.8))


async def test_an_answer_that_is_no_vector_is_said() -> None:
    async with serving(Scripted(UNAVAILABLE)) as port:
        with pytest.raises(StackError, match="answered 503"):
            await running(port, TEI).vector(TEI, "a")


def test_a_target_has_a_body_and_a_class_for_each_text() -> None:
    workload = Workload("mix", ["a", "b"], ["short", "long"])
    target = running(80, TEI).target(TEI, workload)

    assert [{"inputs": "a"}, {"inputs": "b"}] == [msgspec.json.decode(body) for body in target.bodies]
    assert ["short", "long"] == target.classes
    assert b"/embed" == target.path


def test_answers_are_compared_on_texts_of_every_class() -> None:
    texts = [str(number) for number in range(100)]
    chosen = compared_texts(Workload("mix", texts, ["short"] * 98 + ["long"] * 2))

    assert {"98", "99", "0"} <= set(chosen)
    assert len(chosen) < 50


def result_of(throughput: int, *, cpu: dict[str, float], latency: float = 0.1) -> LoadResult:
    result = LoadResult(seconds=1, cpu_ms_per_text=cpu)
    for _ in range(throughput):
        result.answered_in(latency, latency)
    return result


def test_a_route_is_told_by_its_ratios_to_the_peer() -> None:
    ours, theirs = result_of(40, cpu={"ours": 2, "it": 0}, latency=0.1), result_of(10, cpu={"ours": 0.1, "it": 8}, latency=0.4)
    turns = Turns({"/embed": [ours]}, [theirs])
    found = found_of("/embed", turns, turns, ("ours", "it"))

    assert ([4.0], [0.25], [0.25]) == (pytest.approx(found.throughput), pytest.approx(found.cpu), pytest.approx(found.p99))
    assert 0 == found.num_errors
    assert 10 == turns.best_of_theirs
