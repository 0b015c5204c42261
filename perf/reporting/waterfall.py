"""Where each stage of a request stands on the time line."""

from collections.abc import Sequence
from dataclasses import dataclass

from perf.results import Stage


@dataclass(frozen=True, slots=True)
class Placed:
    """*stage* begins *start* milliseconds after the request was sent; *depth* stages are around it."""

    stage: Stage
    start: float
    depth: int


def placed(stages: Sequence[Stage]) -> list[Placed]:
    """Each stage, and below it those inside it, one after another from its start in the order given.

    What is inside a stage that is not there is left out, and so is what is inside itself.
    """
    inside: dict[str, list[Stage]] = {}
    for stage in stages:
        inside.setdefault(stage.inside, []).append(stage)
    return _placed(inside, "", 0.0, 0, frozenset())


def _placed(inside: dict[str, list[Stage]], around: str, start: float, depth: int, above: frozenset[str]) -> list[Placed]:
    found = []
    for stage in inside.get(around, []):
        found.append(Placed(stage, start, depth))
        if stage.name not in above:
            found += _placed(inside, stage.name, start, depth + 1, above | {stage.name})
        start += stage.ms
    return found
