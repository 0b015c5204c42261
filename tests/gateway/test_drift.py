import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from prometheus_client import CollectorRegistry, generate_latest

from clients.wire.catalogue import Catalogue, CatalogueHead, Manifest, TrunkRef, ValidationSummary
from gateway.drift import (
    DriftMonitor,
    confidence_shift,
    jensen_shannon_distance,
    measure_drift,
    population_stability_index,
    stability_index_noise,
)

ALERTS = Path(__file__).resolve().parents[2] / "deploy" / "alerts" / "head_drift.yml"
LABELS = ("ham", "spam", "made up")
VALIDATION = ValidationSummary({"ham": 0.75, "spam": 0.25}, 0.9, 400)

weights = st.lists(st.integers(0, 100), min_size=4, max_size=4).filter(any)


def shares(counts: list[int]) -> list[float]:
    return [count / sum(counts) for count in counts]


def manifest(version: int, *, head: str = "spam", validation: ValidationSummary | None = VALIDATION) -> Manifest:
    return Manifest(name=head, version=version, labels=LABELS, width=2, trunk=TrunkRef("t", "f"), validation=validation)


def catalogue(*versions: int, validation: ValidationSummary | None = VALIDATION) -> Catalogue:
    manifests = {number: manifest(number, validation=validation) for number in versions}
    return Catalogue({"spam": CatalogueHead(stable=versions[0], versions=manifests)})


def monitor(**options: Any) -> DriftMonitor:
    made = DriftMonitor(CollectorRegistry(), **options)
    made.follow(catalogue(1))
    return made


@given(weights, weights)
def test_both_measures_are_even_and_zero_for_equal_shares_alone(one: list[int], other: list[int]) -> None:
    for measure in (population_stability_index, jensen_shannon_distance):
        assert measure(shares(one), shares(one)) == pytest.approx(0.0, abs=1e-7)
        assert measure(shares(one), shares(other)) == pytest.approx(measure(shares(other), shares(one)), abs=1e-9)
        assert measure(shares(one), shares(other)) >= 0.0


@given(weights, weights)
def test_the_distance_is_at_most_one(one: list[int], other: list[int]) -> None:
    assert jensen_shannon_distance(shares(one), shares(other)) <= 1.0


def test_shares_with_nothing_in_common_are_one_apart() -> None:
    assert 1.0 == jensen_shannon_distance([1.0, 0.0], [0.0, 1.0])


def test_the_index_is_what_its_formula_says() -> None:
    expected = 0.25 * math.log(0.5 / 0.25) + (-0.25) * math.log(0.5 / 0.75)

    assert population_stability_index([0.25, 0.75], [0.5, 0.5]) == pytest.approx(expected)


def test_without_drift_the_index_is_as_large_as_the_noise_that_is_told() -> None:
    random = np.random.default_rng(0)
    odds = [0.4, 0.3, 0.2, 0.1]

    found = [
        population_stability_index(random.multinomial(800, odds) / 800, random.multinomial(500, odds) / 500) for _ in range(400)
    ]

    assert np.mean(found) == pytest.approx(stability_index_noise(4, 800, 500), rel=0.15)


def test_the_confidence_shift_has_the_standard_error_of_two_means() -> None:
    random = np.random.default_rng(0)
    shifts = []
    for _ in range(400):
        first, live = random.normal(0.8, 0.1, 200), random.normal(0.8, 0.1, 100)
        shifts.append(confidence_shift(live.tolist(), ValidationSummary({}, float(first.mean()), 200)))

    errors = [found.standard_error for found in shifts if found.standard_error is not None]
    assert np.std([found.shift for found in shifts]) == pytest.approx(np.mean(errors), rel=0.15)


def test_one_text_has_no_standard_error() -> None:
    assert confidence_shift([0.5], VALIDATION).standard_error is None


def test_an_empty_window_has_no_drift() -> None:
    assert measure_drift({}, [], VALIDATION) is None


def say(watching: DriftMonitor, label: str, confidence: float, *, head: str = "spam", version: int = 1) -> None:
    """One live answer of a head of *LABELS*."""
    rest = (1.0 - confidence) / 2
    scores = [confidence if one == label else rest for one in LABELS]
    watching.answered(manifest(version, head=head), np.array([scores], np.float32))


def test_answers_like_those_of_validation_are_no_drift_and_others_are() -> None:
    same, other = monitor(), monitor()
    for number in range(400):
        say(same, "spam" if number % 4 == 0 else "ham", 0.9)
        say(other, "ham" if number % 4 == 0 else "spam", 0.6)

    calm, moved = same.drift("spam", 1), other.drift("spam", 1)

    assert calm is not None
    assert moved is not None
    assert calm.stability_index == pytest.approx(0.0)
    assert calm.confidence.shift == pytest.approx(0.0, abs=1e-6)
    assert moved.stability_index > 1.0
    assert moved.confidence.shift == pytest.approx(-0.3)
    assert {"ham": 0.25, "spam": 0.75} == moved.label_shares


def test_the_window_slides() -> None:
    watching = monitor(window_texts=10)
    for label in ["spam"] * 30 + ["ham"] * 10:
        say(watching, label, 0.5)

    drift = watching.drift("spam", 1)

    assert drift is not None
    assert 10 == drift.num_texts
    assert {"ham": 1.0, "spam": 0.0} == drift.label_shares


def test_what_is_not_followed_is_not_counted() -> None:
    watching = monitor()
    say(watching, "ham", 0.5, version=2)
    say(watching, "ham", 0.5, head="other")
    say(watching, "ham", math.nan)

    assert watching.drift("spam", 2) is watching.drift("other", 1) is watching.drift("spam", 1) is None


def test_a_version_without_a_summary_is_not_followed() -> None:
    watching = monitor()
    watching.follow(catalogue(1, validation=None))
    say(watching, "ham", 0.5)

    assert watching.drift("spam", 1) is None


def test_a_version_that_stays_keeps_its_answers_and_one_that_goes_is_forgotten() -> None:
    watching = monitor()
    say(watching, "ham", 0.5)

    watching.follow(catalogue(1, 2))
    kept = watching.drift("spam", 1)
    watching.follow(catalogue(2))
    watching.follow(catalogue(1))

    assert kept is not None
    assert watching.drift("spam", 1) is None


def test_a_label_that_validation_does_not_know_makes_no_new_series() -> None:
    watching = monitor()
    say(watching, "made up", 0.9)

    drift = watching.drift("spam", 1)

    assert drift is not None
    assert {"": 1.0, "ham": 0.0, "spam": 0.0} == drift.label_shares


def test_of_several_labels_each_counts_and_none_is_one_too() -> None:
    several = replace(manifest(1), task="multi_label", thresholds=(0.5, 0.3, 0.9))
    watching = DriftMonitor(CollectorRegistry())
    watching.follow(Catalogue({"spam": CatalogueHead(stable=1, versions={1: several})}))

    watching.answered(several, np.array([[0.6, 0.4, 0.0], [0.2, 0.1, 0.3]], np.float32))

    drift = watching.drift("spam", 1)
    assert drift is not None
    assert 2 == drift.num_texts
    assert {"ham": pytest.approx(1 / 3), "spam": pytest.approx(1 / 3), "": pytest.approx(1 / 3)} == drift.label_shares
    # The means of 0.6, 0.6, 1.0 and of 0.8, 0.9, 0.7.
    assert drift.mean_confidence == pytest.approx((2.2 / 3 + 0.8) / 2)


def exported() -> str:
    registry = CollectorRegistry()
    watching = DriftMonitor(registry)
    watching.follow(catalogue(1))
    for label in ("ham", "spam", "spam", "spam"):
        say(watching, label, 0.7)
    return generate_latest(registry).decode()


def test_prometheus_reads_the_drift_of_each_version() -> None:
    text = exported()

    assert 'trunkline_head_window_texts{head="spam",version="1"} 4.0' in text
    assert 'trunkline_head_live_label_share{head="spam",label="spam",version="1"} 0.75' in text
    assert 'trunkline_head_validation_mean_confidence{head="spam",version="1"} 0.9' in text
    assert 'trunkline_head_label_stability_index{head="spam",version="1"} 1.09' in text


def alert_rules() -> list[dict[str, str]]:
    """The rules, by what little of YAML the file uses: a list under `rules:`, one key a line, deeper keys with a dot."""
    found: list[dict[str, str]] = []
    parent = ""
    for line in ALERTS.read_text().splitlines():
        matched = re.fullmatch(r"( *)(- )?(\w+):(?: (.+))?", line)
        if not line or line.lstrip().startswith("#"):
            continue
        assert matched, line
        indent, dash, key, value = len(matched[1]) + 2 * bool(matched[2]), matched[2], matched[3], matched[4]
        if key == "alert" and dash:
            found.append({})
        if found:
            parent = parent if indent == 10 else key
            found[-1][key if indent == 8 else f"{parent}.{key}"] = value or ""
    return found


def test_the_alert_rules_have_the_shape_prometheus_wants_and_metrics_that_exist() -> None:
    text, rules = exported(), alert_rules()

    assert re.search(r"^groups:\n  - name: [\w-]+\n    rules:$", ALERTS.read_text(), re.MULTILINE)
    assert ["TrunklineHeadLabelsDrift", "TrunklineHeadConfidenceDrift"] == [rule["alert"] for rule in rules]
    for rule in rules:
        required = {"alert", "expr", "for", "labels", "labels.severity", "annotations"}
        assert required | {"annotations.summary", "annotations.description"} == rule.keys()
        assert re.fullmatch(r"\d+m", rule["for"])
        assert rule["expr"].count("(") == rule["expr"].count(")")
        for name in re.findall(r"trunkline_\w+", rule["expr"] + rule["annotations.description"]):
            assert f"# TYPE {name} gauge" in text
