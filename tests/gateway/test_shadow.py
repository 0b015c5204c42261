import asyncio
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from clients import Deadline, Overloaded, Unavailable
from clients.wire.catalogue import CatalogueHead, Manifest, View
from gateway.classification import Classification, HeadAnswer
from gateway.fanout import FanOut
from gateway.outputs import NoOutputs
from gateway.pipeline import Pipeline
from gateway.plan import Planner
from gateway.ports import FloatArray, Rows
from gateway.shadow import Comparison, Shadows, compare
from tests.gateway.fakes import FakeCatalogue, FakeEmbedder, FakeTrunks, encoder, manifest

LIVE, SHADOW = 7, 8


class VersionedPredictor:
    """Version `LIVE` says spam, `SHADOW` what it is made to; waits for *gate* there."""

    def __init__(self, shadow: Exception | tuple[float, float] = (0.5, 0.25), *, gate: asyncio.Event | None = None) -> None:
        self._shadow = shadow
        self._gate = gate
        self.asked: Counter[int] = Counter()

    async def predict(self, manifest: Manifest, rows: Rows, deadline: Deadline) -> FloatArray:
        self.asked[manifest.version] += len(rows)
        if manifest.version == LIVE:
            return np.array([[0.25, 0.75]] * len(rows), np.float32)
        if self._gate is not None:
            await self._gate.wait()
        if isinstance(self._shadow, Exception):
            raise self._shadow
        return np.array([self._shadow] * len(rows), np.float32)


@dataclass
class FakeTelemetry:
    compared: list[tuple[str, int, Comparison]] = field(default_factory=list)
    left_out: list[tuple[str, int, str, int]] = field(default_factory=list)

    def shadow_compared(self, head: str, version: int, comparison: Comparison) -> None:
        self.compared.append((head, version, comparison))

    def shadow_left_out(self, head: str, version: int, reason: str, num_texts: int) -> None:
        self.left_out.append((head, version, reason, num_texts))


class Setup:
    """A pipeline whose head has a shadow."""

    def __init__(self, folder: Path, predictor: VersionedPredictor, *, max_texts: int = 8, view: View | None = None) -> None:
        trunks = FakeTrunks(encoder(folder))
        self.embedder, self.telemetry = FakeEmbedder(trunks), FakeTelemetry()
        self.shadows = Shadows(self.embedder, predictor, self.telemetry, max_texts=max_texts, timeout=5.0, head_start=0.0)
        versions = {LIVE: manifest("topic", version=LIVE), SHADOW: manifest("topic", version=SHADOW, view=view)}
        head = CatalogueHead(stable=LIVE, versions=versions, shadow=SHADOW)
        fan_out = FanOut(predictor, head_timeout=1.0)
        self.pipeline = Pipeline(trunks, self.embedder, fan_out, FakeCatalogue(head), NoOutputs(), Planner(), self.shadows)

    async def ask(self, *texts: str) -> list[HeadAnswer]:
        answer = await self.pipeline.classify(Classification(texts), Deadline.after(5))
        outcome = answer.outcomes["topic"]
        assert isinstance(outcome, list)
        return outcome

    async def settled(self) -> None:
        """All runs have ended."""
        while self.shadows.num_texts:
            await asyncio.sleep(0)


async def test_a_shadow_is_compared_with_what_was_answered_and_never_heard(tmp_path: Path) -> None:
    setup = Setup(tmp_path, VersionedPredictor())

    answers = await setup.ask("a", "b c", "a")
    await setup.settled()

    assert [HeadAnswer("spam", 0.75, LIVE)] * 3 == answers
    assert [("topic", SHADOW, Comparison(3, 0, pytest.approx(1.125)))] == setup.telemetry.compared
    assert 1 == len(setup.embedder.calls), "what it reads was known"


async def test_a_shadow_that_reads_another_view_is_embedded_by_itself(tmp_path: Path) -> None:
    setup = Setup(tmp_path, VersionedPredictor(), view=View(pooling="cls"))

    await setup.ask("a", "a")
    await setup.settled()

    assert [(1, (View(),)), (1, (View(pooling="cls"),))] == setup.embedder.calls
    assert 2 == setup.telemetry.compared[0][2].num_texts


async def test_an_answer_does_not_wait_for_the_shadow_and_what_does_not_fit_is_left_out(tmp_path: Path) -> None:
    gate = asyncio.Event()
    setup = Setup(tmp_path, VersionedPredictor(gate=gate), max_texts=3)

    for _ in range(2):
        assert 2 == len(await setup.ask("a", "b"))
    assert [("topic", SHADOW, "full", 2)] == setup.telemetry.left_out
    assert "<Shadows [1 runs, 2 texts]>" == repr(setup.shadows)
    gate.set()
    await setup.settled()

    assert 1 == len(setup.telemetry.compared)


@pytest.mark.parametrize(
    ("error", "code"),
    [(Overloaded("full"), "overloaded"), (Unavailable("gone"), "unavailable"), (RuntimeError("a bug"), "internal")],
)
async def test_errors_of_the_shadow_are_counted_and_seen_by_nobody(tmp_path: Path, error: Exception, code: str) -> None:
    setup = Setup(tmp_path, VersionedPredictor(error))

    assert [HeadAnswer("spam", 0.75, LIVE)] == await setup.ask("a")
    await setup.settled()

    assert [("topic", SHADOW, code, 1)] == setup.telemetry.left_out
    assert [] == setup.telemetry.compared


async def test_scores_of_a_shadow_that_are_no_numbers_are_its_error(tmp_path: Path) -> None:
    setup = Setup(tmp_path, VersionedPredictor((float("nan"), 0.5)))

    await setup.ask("a")
    await setup.settled()

    assert [("topic", SHADOW, "invalid_response", 1)] == setup.telemetry.left_out


async def test_closing_cancels_what_is_under_way(tmp_path: Path) -> None:
    setup = Setup(tmp_path, VersionedPredictor(gate=asyncio.Event()))
    await setup.ask("a")

    await setup.shadows.close()

    assert 0 == setup.shadows.num_texts
    assert ([], []) == (setup.telemetry.compared, setup.telemetry.left_out)


def scores(*rows: tuple[float, ...]) -> FloatArray:
    return np.array(rows, np.float32)


def test_agreement_is_the_same_label_whatever_its_score() -> None:
    live, shadow = manifest("topic"), manifest("topic", version=8)

    found = compare(live, scores((0.5, 0.25), (0.5, 0.25)), shadow, scores((1.0, 0.25), (0.25, 0.5)))

    assert Comparison(2, 1, pytest.approx(0.25 + 0.25)) == found


def test_labels_are_compared_by_name_and_one_that_the_other_lacks_scores_nothing() -> None:
    live, shadow = manifest("topic"), replace(manifest("topic", version=8), labels=("new", "spam", "ham"))

    found = compare(live, scores((0.25, 0.75)), shadow, scores((0.3, 0.45, 0.25)))

    assert Comparison(1, 1, pytest.approx((0.0 + 0.3 + 0.3) / 3)) == found


def test_of_several_labels_all_must_be_the_same_each_by_its_versions_thresholds() -> None:
    live = replace(manifest("tags"), task="multi_label", thresholds=(0.5, 0.5))
    shadow = replace(manifest("tags", version=8), task="multi_label", thresholds=(0.2, 0.5))

    found = compare(live, scores((0.6, 0.1), (0.6, 0.1)), shadow, scores((0.3, 0.1), (0.1, 0.1)))

    assert (2, 1) == (found.num_texts, found.num_agreed)


def test_values_agree_when_they_are_equal() -> None:
    live = replace(manifest("price"), task="regression", labels=("value",))

    assert Comparison(2, 1, pytest.approx(3.0)) == compare(live, scores((1.0,), (2.0,)), live, scores((1.0,), (5.0,)))
