from collections import Counter

from perf.heads_scaling import NUM_HEADS, Case, cases, cpu_ms, head_names, ratios
from perf.load import LoadResult


def result(texts: int, cpu: float) -> LoadResult:
    return LoadResult(seconds=2.0, outcomes=Counter({"200": texts}), cpu_ms_per_text={"gateway": cpu, "heads": 1.0, "load": 9.0})


def test_what_many_heads_cost_is_told_in_parts_of_one_heads_cost() -> None:
    one, many = Case(1, True), Case(32, True)
    rounds = [{one: result(100, 1.0), many: result(80, 1.5)}, {one: result(100, 3.0), many: result(50, 3.0)}]

    assert 2.0 == cpu_ms(rounds[0][one]), "the generator's own is nobody's cost"
    assert ([1.25, 1.0], [1.25, 2.0]) == ratios(rounds, many)


def test_one_head_is_always_among_the_cases() -> None:
    assert Case(1, True) == cases(singles=False)[0]
    assert list(NUM_HEADS) == [case.num_heads for case in cases(singles=True) if case.bundles]
    assert ["head-000", "head-001"] == head_names(2)
