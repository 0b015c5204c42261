import random

import pytest

from perf.measuring.waterfall import DoesNotAddUp, Sample, middle_of, stages_of
from perf.results import Stage


def sample(request: float, scale: float = 1.0) -> Sample:
    gateway = {"preprocess_ms": 0.5, "embed_ms": 3.0, "heads_ms": 1.0, "total_ms": 5.0}
    service = {"tokenization": 0.125, "queue": 0.25, "inference": 1.5, "total": 2.0}
    return Sample(request, {name: ms * scale for name, ms in gateway.items()}, {name: ms * scale for name, ms in service.items()})


def inside(stages: tuple[Stage, ...], name: str) -> dict[str, float]:
    return {stage.name: stage.ms for stage in stages if stage.inside == name}


def test_each_stage_is_the_sum_of_what_is_inside_it() -> None:
    chance = random.Random(0)
    stages = stages_of([sample(chance.uniform(6, 9), chance.uniform(0.9, 1.1)) for _ in range(200)])
    around = [stage for stage in stages if inside(stages, stage.name)]

    assert ["request", "gateway", "embedding"] == [stage.name for stage in around]
    for stage in around:
        assert sum(inside(stages, stage.name).values()) == pytest.approx(stage.ms)
    assert [stage.name for stage in stages if not stage.inside] == ["request"]


def test_the_rest_of_a_stage_has_a_name() -> None:
    stages = stages_of([sample(6.0)])

    assert {"gateway": 5.0, "HTTP and network": 1.0} == inside(stages, "request")
    assert {"preprocess": 0.5, "embedding": 3.0, "heads": 1.0, "other": 0.5} == inside(stages, "gateway")
    assert inside(stages, "embedding") == {
        "tokenization": 0.125,
        "queue": 0.25,
        "inference": 1.5,
        "answering": 0.125,
        "hop to the embedding service": 1.0,
    }


def test_slow_and_quick_requests_do_not_count() -> None:
    samples = [sample(request) for request in (100, 6, 1, 6, 7)]

    assert [6] == [one.request for one in middle_of(samples)]


def test_stages_of_different_requests_are_not_told_as_one() -> None:
    with pytest.raises(DoesNotAddUp, match=r"'request' around them 4\.00 ms"):
        stages_of([sample(4.0)])
