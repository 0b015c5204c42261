import pytest

from perf.bare_loop import BareResult
from perf.embedding_vs_peers import Turns
from perf.load import LoadResult
from perf.measuring.peers import OURS, beside_bare_of, beside_of
from perf.results import Load
from tests.perf.measuring.fakes import WORKLOAD

CLOSED = Load(kind="closed", in_flight=32)


def result(count: int, latency: float, name: str, lag: float = 0.0) -> LoadResult:
    found = LoadResult(seconds=1.0, lags=[lag])
    for _ in range(count):
        found.answered_in(latency, latency)
    found.cpu_ms_per_text = {name: 1000 / count, "load": 0.1}
    return found


def test_turns_with_a_peer_become_runs_and_ratios() -> None:
    speed = Turns({"/x": [result(100, 0.1, OURS), result(80, 0.1, OURS)]}, [result(50, 0.2, "peer"), result(20, 0.2, "peer")])
    tail = Turns({"/x": [result(10, 0.1, OURS), result(10, 0.1, OURS)]}, [result(10, 0.4, "peer"), result(10, 0.4, "peer", 1.0)])
    found = beside_of("peer", WORKLOAD, speed, tail, CLOSED, 35.0)

    assert {f"{OURS} beside peer", "peer"} == {run.system for run in found.runs}
    assert len(found.runs) == 8
    assert {0} == {run.num_heads for run in found.runs}
    assert [run.void != "" for run in found.runs if run.load.kind == "poisson"] == [False, False, False, True]
    values = {one.what: one.values for one in found.ratios}
    assert values["texts a second"] == pytest.approx((2.0, 4.0))
    assert values["CPU time a text"] == pytest.approx((0.5, 0.25))
    assert values["p99 at 70% of its best load"] == pytest.approx((0.25,)), "the void round is left out"


def test_the_bare_loop_is_a_run_of_its_own() -> None:
    found = beside_bare_of(WORKLOAD, [result(80, 0.1, OURS)], [BareResult(8, 100.0, 2.5)], 1.0)
    bare = found.runs[-1]

    assert (bare.system, bare.throughput, bare.load.texts_a_request, bare.num_heads) == ("bare-loop", 100.0, 8, 0)
    assert bare.cpu_ms_per_text == {"engine": 2.5}
    assert [(0.8,)] == [one.values for one in found.ratios]
