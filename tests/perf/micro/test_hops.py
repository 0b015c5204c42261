from collections import Counter

import pytest

from perf.load import LoadResult
from perf.micro.hops import DIRECT, FRONT, WHOLE, lines_of, measure


async def test_each_layout_answers_and_its_processes_are_counted() -> None:
    found = await measure(1, 0.2, in_flight=2, has_pass=False)

    assert [WHOLE, DIRECT, FRONT] == list(found)
    for [result] in found.values():
        assert result.outcomes["200"] > 0
        assert not result.num_errors
    assert {"whole", "load"} == set(found[WHOLE][0].cpu_ms_per_text)
    assert {"front", "trunk", "head", "load"} == set(found[FRONT][0].cpu_ms_per_text)


def test_calls_that_failed_are_never_left_out_in_silence() -> None:
    failed = LoadResult(latencies=[0.002], outcomes=Counter({"200": 1, "AioRpcError": 2}))

    with pytest.raises(RuntimeError, match=f"{DIRECT}: 2 calls failed"):
        lines_of({WHOLE: [], DIRECT: [failed], FRONT: []})


def test_layouts_are_compared_round_by_round() -> None:
    def round_of(seconds: float, **cpu: float) -> LoadResult:
        return LoadResult(latencies=[seconds], cpu_ms_per_text=cpu)

    found = {
        WHOLE: [round_of(0.002, whole=3.0), round_of(0.004, whole=5.0)],
        DIRECT: [round_of(0.003, trunk=3.5), round_of(0.005, trunk=5.5)],
        FRONT: [round_of(0.0035, front=1.0, trunk=3.5), round_of(0.0055, front=1.0, trunk=5.5)],
    }

    assert f"{FRONT} over {WHOLE}: p50 +1.50 ms (from +1.50 ms to +1.50 ms, 2 rounds), CPU +1.50 ms" in lines_of(found)[4]
    assert f"{FRONT} over {DIRECT}: p50 +0.50 ms" in lines_of(found)[5]
