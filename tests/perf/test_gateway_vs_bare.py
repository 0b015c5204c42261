from perf.gateway_vs_bare import Way, in_turns
from perf.load import LoadResult


async def test_what_is_compared_takes_turns_of_a_second_and_none_is_always_first() -> None:
    asked: list[tuple[str, float]] = []

    def way(name: str) -> Way:
        async def run(seconds: float) -> LoadResult:
            asked.append((name, seconds))
            return LoadResult(seconds=seconds, latencies=[float(len(asked))])

        return run

    found = await in_turns({("ours", 1): way("ours"), ("theirs", 1): way("theirs")}, 3.0)

    assert [("ours", 1.0), ("theirs", 1.0), ("theirs", 1.0), ("ours", 1.0), ("ours", 1.0), ("theirs", 1.0)] == asked
    assert {("ours", 1): [1.0, 4.0, 5.0], ("theirs", 1): [2.0, 3.0, 6.0]} == {
        key: result.latencies for key, result in found.items()
    }
    assert 3.0 == found["ours", 1].seconds


async def test_less_than_a_second_is_one_turn() -> None:
    async def run(seconds: float) -> LoadResult:
        return LoadResult(seconds=seconds)

    assert 0.25 == (await in_turns({("ours", 1): run}, 0.25))["ours", 1].seconds
