import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.wire.catalogue import GoldenExample, Manifest, Metrics, Task
from head_service.gate import GOLDEN_TOLERANCE, Comparison, as_found, check_golden, decide, metric_of, weigh
from tests.head_service.lifecycles import GOLDEN
from tests.head_service.versions_on_disk import manifest

SCORES = tuple(example.scores for example in GOLDEN)


def head(version: int, accuracy: float | None, data: str = "sha256:a", task: Task = "single_label") -> Manifest:
    metrics = None if accuracy is None else Metrics(accuracy, accuracy / 2, 80, 20, data)
    return msgspec.structs.replace(manifest(version=version), metrics=metrics, golden=GOLDEN, task=task)


def weighed(candidate: Manifest, live: Manifest | None, tolerance: float = 0.01) -> Comparison:
    return weigh(candidate, live, scorer=lambda _, __: SCORES, tolerance=tolerance)


@pytest.mark.parametrize(("accuracy", "verdict"), [(0.95, "passed"), (0.9, "passed"), (0.89, "passed"), (0.8899, "refused")])
def test_a_version_may_be_worse_by_the_tolerance_and_no_more(accuracy: float, verdict: str) -> None:
    found = weighed(head(2, accuracy), head(1, 0.9))

    assert (verdict, 1, 0.9, accuracy) == (found.verdict, found.live_version, found.live, found.candidate)
    assert "of live version 1" in found.reason


def test_the_first_version_has_only_its_golden_examples_to_pass() -> None:
    assert "passed" == weighed(head(1, None), None).verdict


def test_a_version_that_was_never_measured_does_not_replace_one() -> None:
    assert ("refused", "its accuracy was never measured") == (
        (found := weighed(head(2, None), head(1, 0.5))).verdict,
        found.reason,
    )
    assert "refused" == weighed(head(2, math.nan), head(1, 0.5)).verdict


def test_numbers_on_other_texts_are_not_compared() -> None:
    found = weighed(head(2, 0.99, "sha256:b"), head(1, 0.5, "sha256:a"))

    assert ("incomparable", None) == (found.verdict, found.live)
    assert "incomparable" == weighed(head(2, 0.99), head(1, None)).verdict


def test_the_live_version_is_measured_again_on_the_candidates_texts() -> None:
    asked = []

    def remeasure(live: Manifest, metrics: Metrics) -> Metrics:
        asked.append((live.version, metrics.data))
        return Metrics(0.99, 0.99, 80, 20, metrics.data)

    found = weigh(head(2, 0.9, "sha256:b"), head(1, 0.5), scorer=lambda _, __: SCORES, remeasure=remeasure)

    assert [(1, "sha256:b")] == asked
    assert ("refused", 0.99) == (found.verdict, found.live)


def test_scores_that_are_not_the_recorded_ones_are_refused_however_good_the_metric() -> None:
    found = weigh(head(2, 1.0), head(1, 0.1), scorer=lambda _, __: ((0.1, 0.9), (0.7, 0.3)))

    assert "refused" == found.verdict
    assert "differ by 0.1" in found.reason


@pytest.mark.parametrize(
    ("scores", "problem"),
    [
        (((0.1, 0.9),), "another shape"),
        (((0.1, 0.9, 0.0), (0.8, 0.2)), "another shape"),
        (((0.1, math.nan), (0.8, 0.2)), "not numbers"),
        (((math.inf, 0.9), (0.8, 0.2)), "not numbers"),
    ],
)
def test_scores_that_cannot_be_compared_are_refused(scores: tuple[tuple[float, ...], ...], problem: str) -> None:
    assert problem in check_golden(GOLDEN, scores).problem


def test_a_version_without_golden_examples_is_refused() -> None:
    bare = msgspec.structs.replace(head(1, 0.9), golden=())

    found = weighed(bare, None)

    assert ("refused", "it has no golden examples to be checked by") == (found.verdict, found.reason)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(-0.01, 0.01)), min_size=1, max_size=8))
def test_golden_examples_pass_exactly_when_every_score_is_near(pairs: list[tuple[float, float]]) -> None:
    example = GoldenExample("a text", "spam", tuple(score for score, _ in pairs))
    now = tuple(score + off for score, off in pairs)

    worst = max(abs(a - b) for a, b in zip(now, example.scores, strict=True))
    assert (worst <= GOLDEN_TOLERANCE) == (not check_golden([example], [now]).problem)


def test_versions_with_several_labels_a_text_are_compared_by_macro_f1() -> None:
    assert ["accuracy", "accuracy", "macro_f1"] == [
        metric_of(head(1, 0.9, task=task)) for task in ("single_label", "regression", "multi_label")
    ]
    golden = check_golden(GOLDEN, SCORES)
    found = decide(head(2, 0.9, task="multi_label"), head(1, 0.8), golden, live_metrics=head(1, 0.8).metrics)
    assert (0.45, 0.4) == (found.candidate, found.live)


def test_what_was_found_survives_being_written_down() -> None:
    found = weigh(head(2, 0.9), head(1, 0.9), scorer=lambda _, __: ((0.1, math.nan), (0.8, 0.2)))

    assert found == msgspec.json.decode(msgspec.json.encode(found), type=Comparison)


def test_a_live_version_of_another_trunk_is_none_to_compare_with() -> None:
    candidate, live = head(2, 0.5), head(1, 0.9)
    moved = msgspec.structs.replace(candidate, trunk=msgspec.structs.replace(candidate.trunk, fingerprint="sha256:another"))

    found = weigh(moved, live, scorer=lambda *_: SCORES)

    assert ("passed", None) == (found.verdict, found.live_version)


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({}, "passed"),
        ({"live": 0.99}, "refused"),
        ({"live": None}, "incomparable"),
        ({"live_version": 7}, "incomparable"),
        ({"live_version": None}, "incomparable"),
        ({"data": "sha256:c"}, "incomparable"),
        ({"metric": "macro_f1"}, "incomparable"),
    ],
)
def test_what_was_found_before_stands_for_the_same_live_version_and_texts_alone(changed: dict[str, object], verdict: str) -> None:
    kept = Comparison(verdict="passed", reason="", version=2, live_version=1, live=0.8, data="sha256:b")
    before = as_found(msgspec.structs.replace(kept, **changed))

    found = weigh(head(2, 0.9, "sha256:b"), head(1, 0.5), scorer=lambda *_: SCORES, remeasure=before)

    assert verdict == found.verdict
