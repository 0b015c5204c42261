"""Whether deployments say the same: the labels of all their heads on the labelled set, beside those of another."""

import asyncio
from collections.abc import Sequence
from typing import Final

from perf.results import Answers, Difference
from perf.topologies.plan import HeadSet, Labels, RunningPlan

IN_FLIGHT: Final = 16
MOST_TOLD: Final = 20
"""Differences that are written down."""

NO_LABEL: Final = ""
"""Stands for the label of a head that gave none."""


async def labels_of(running: RunningPlan, texts: Sequence[str], *, in_flight: int = IN_FLIGHT) -> list[Labels]:
    """The deployment's, of each of *texts*; one text a call, at most *in_flight* at once. Raises what its client does."""
    found: list[Labels] = [{} for _ in texts]
    numbers = iter(range(len(texts)))

    async def ask() -> None:
        for number in numbers:
            [found[number]] = await running.classify([texts[number]])

    async with asyncio.TaskGroup() as group:
        for _ in range(min(in_flight, len(texts))):
            group.create_task(ask())
    return found


def compared(
    labels: Sequence[Labels],
    reference: Sequence[Labels],
    heads: HeadSet,
    *,
    system: str,
    reference_name: str,
    num_heads: int,
    least_agreement: float = 1.0,
) -> Answers:
    """*labels* and *reference* of each labelled text, head by head. A label that is missing differs from every other.

    Raises:
        ValueError: they are not of as many texts.
    """
    names = [head.name for head in heads.first(num_heads)]
    found = [
        Difference(place=place, head=name, label=one.get(name, NO_LABEL), reference=other.get(name, NO_LABEL))
        for place, (one, other) in enumerate(zip(labels, reference, strict=True))
        for name in names
        if name not in one or one[name] != other.get(name)
    ]
    right = [one.get(names[0]) == truth for one, truth in zip(labels, heads.truth, strict=True)]
    return Answers(
        system=system,
        reference=reference_name,
        num_heads=num_heads,
        num_texts=len(labels),
        num_labels=len(labels) * len(names),
        num_differences=len(found),
        least_agreement=least_agreement,
        accuracy=sum(right) / len(right),
        differences=tuple(found[:MOST_TOLD]),
    )
