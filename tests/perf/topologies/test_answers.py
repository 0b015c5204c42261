import asyncio
from collections.abc import Sequence

import pytest

from perf.results import Difference
from perf.topologies.answers import compared, labels_of
from perf.topologies.plan import Labels, RunningPlan
from tests.perf.topologies.weighted import head, head_set

TEXTS = ("a", "b", "c", "d")
HEADS = head_set(head("tone", "good", "bad"), head("topic", "x", "y"), texts=TEXTS, truth=("good", "bad", "good", "bad"))
REFERENCE: list[Labels] = [{"tone": "good", "topic": "x"}] * 4


class Deployment:
    """Says of each text what it was given, once it was asked by all it can be asked by."""

    def __init__(self, labels: Sequence[Labels]) -> None:
        self.labels = dict(zip(TEXTS, labels, strict=True))
        self.now = 0
        self.most = 0

    async def classify(self, texts: Sequence[str]) -> list[Labels]:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0)
        self.now -= 1
        return [self.labels[text] for text in texts]

    def running(self) -> RunningPlan:
        return RunningPlan("it", 2, {}, 0.0, self.classify)


async def test_labels_are_in_the_order_of_the_texts_however_many_are_asked_at_once() -> None:
    deployment = Deployment([{"tone": text} for text in TEXTS])

    assert [{"tone": text} for text in TEXTS] == await labels_of(deployment.running(), TEXTS, in_flight=3)
    assert 3 == deployment.most


async def test_what_a_client_raises_ends_the_asking() -> None:
    deployment = Deployment(REFERENCE)

    with pytest.raises(ExceptionGroup) as raised:
        await labels_of(deployment.running(), ["a", "unknown"])
    assert isinstance(raised.value.exceptions[0], KeyError)


def test_each_label_that_differs_is_told_and_the_least_agreement_decides_the_rank() -> None:
    labels: list[Labels] = [REFERENCE[0], {"tone": "bad", "topic": "x"}, {"tone": "good"}, REFERENCE[0]]

    found = compared(labels, REFERENCE, HEADS, system="it", reference_name="one", num_heads=2)
    assert found.differences == (
        Difference(place=1, head="tone", label="bad", reference="good"),
        Difference(place=2, head="topic", label="", reference="x"),
    )
    assert (2, 0.75, 0.75) == (found.num_differences, found.agreement, found.accuracy)
    assert not found.is_ranked
    assert compared(labels, REFERENCE, HEADS, system="it", reference_name="one", num_heads=2, least_agreement=0.75).is_ranked


def test_a_label_that_both_lack_is_no_agreement() -> None:
    nothing: list[Labels] = [{}] * 4

    assert 4 == compared(nothing, nothing, HEADS, system="it", reference_name="one", num_heads=1).num_differences


def test_only_the_first_differences_are_written_down_and_all_are_counted() -> None:
    many = head_set(head("tone", "good", "bad"), texts=("a",) * 30, truth=("good",) * 30)
    found = compared([{"tone": "bad"}] * 30, [{"tone": "good"}] * 30, many, system="it", reference_name="one", num_heads=1)

    assert (30, 20, 0.0) == (found.num_differences, len(found.differences), found.accuracy)


def test_answers_to_other_texts_are_not_compared() -> None:
    with pytest.raises(ValueError, match="longer"):
        compared(REFERENCE[:2], REFERENCE, HEADS, system="it", reference_name="one", num_heads=2)
