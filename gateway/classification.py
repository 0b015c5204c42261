"""What is asked of the gateway and what it answers, in its own words: no HTTP, no gRPC."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from clients import TrunklineError
from gateway.ports import LiveTrunk, PriorityName

Truncation = Literal["right", "left", "error", "window"]


@dataclass(frozen=True, slots=True)
class Classification:
    """What to do.

    *heads*: by name, or NAME@VERSION, NAME@stable, NAME@canary; *tags*: all heads that have one of them; neither: the default
    ones. *with_scores*: every label's score, the *top_k* best of them. *threshold* takes the place of the heads' own: labels that
    score less are not answered. *truncation*: which end of a text that is too long is dropped; "error": it is refused; "window":
    all of it is read. *sticky_key*: callers with the same one get the same side of a canary.
    *may_reuse*: whether outputs of texts seen before may answer.
    """

    texts: Sequence[str]
    heads: Sequence[str] | None = None
    tags: Sequence[str] | None = None
    with_scores: bool = False
    top_k: int | None = None
    threshold: float | None = None
    truncation: Truncation = "right"
    priority: PriorityName = "interactive"
    sticky_key: str = ""
    may_reuse: bool = True


class HeadAnswer(msgspec.Struct, frozen=True):
    """One head on one text. *label* is None where no label reaches its threshold, and of a regression, whose *value* it is.

    Of multi_label *labels* are all that reach theirs, *label* the best of them, and *confidence* the mean over all labels of the
    score or one minus it, whichever is more; of single_label the score is the confidence, and None stands here. *path* is a
    hierarchical label from the top down; *ancestors* are the scores of what is above the labels, where scores were asked for.

    A struct, since it is made for each head of each text: a frozen dataclass takes several times as long to make.
    """

    label: str | None
    score: float
    version: int
    labels: list[str] | None = None
    scores: dict[str, float] | None = None
    confidence: float | None = None
    value: float | None = None
    path: list[str] | None = None
    ancestors: dict[str, float] | None = None


HeadOutcome = list[HeadAnswer] | TrunklineError
"""One head on all texts, or why it has no answer."""


@dataclass(slots=True)
class StageTimings:
    """Seconds of each stage."""

    preprocess: float = 0.0
    embed: float = 0.0
    heads: float = 0.0
    total: float = 0.0


@dataclass(frozen=True, slots=True)
class TextFacts:
    """What became of one text on its way to the trunk: *cached* when no head asked for anything to be computed for it."""

    num_tokens: int
    truncated: bool
    cached: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """All texts by all heads, these by the words they were asked for with."""

    trunk: LiveTrunk
    texts: list[TextFacts]
    outcomes: dict[str, HeadOutcome]
    timings: StageTimings = field(default_factory=StageTimings)
