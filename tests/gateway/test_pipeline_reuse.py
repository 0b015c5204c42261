"""The pipeline with what it remembers and what it is watched by: kept outputs, canaries, versions that come and go."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from prometheus_client import CollectorRegistry, generate_latest

from clients import Deadline, Unavailable
from clients.wire.catalogue import Catalogue, CatalogueHead, Manifest, Metrics, encode
from gateway.catalogue import CataloguePoller, FileFetch
from gateway.classification import Answer, Classification, HeadAnswer
from gateway.fanout import FanOut
from gateway.outputs import OutputCache, OutputRules
from gateway.pipeline import Pipeline
from gateway.plan import Planner
from gateway.ports import FloatArray, Rows
from gateway.versions import VersionCounts
from tests.gateway.fakes import FakeEmbedder, FakeTrunks, encoder, manifest
from tests.gateway.test_outputs import FakeTelemetry

SECONDS_TO_BE_LIVE = 2.0


class CountingPredictor:
    """Each version says the number of tokens less one, and its own number; *broken* heads are not there."""

    def __init__(self) -> None:
        self.asked: Counter[tuple[str, int]] = Counter()
        self.broken: set[str] = set()

    async def predict(self, manifest: Manifest, rows: Rows, deadline: Deadline) -> FloatArray:
        self.asked[manifest.name, manifest.version] += len(rows)
        if manifest.name in self.broken:
            raise Unavailable("gone")
        return np.array([[row[0], manifest.version] for row in rows], np.float32)


def rated(name: str, version: int, accuracy: float = 0.9) -> Manifest:
    return replace(manifest(name, version=version), metrics=Metrics(accuracy, 0.0, 100, 100, "sha256:data"))


def head(*versions: Manifest, **roles: object) -> CatalogueHead:
    """The first one is stable."""
    return CatalogueHead(stable=versions[0].version, versions={one.version: one for one in versions}, **roles)  # type: ignore[arg-type]


class Setup:
    """A pipeline with a cache, over a catalogue file that is replaced as the control plane does it."""

    def __init__(self, folder: Path, *heads: CatalogueHead, draws: Sequence[float] = ()) -> None:
        self._path = folder / "catalogue.json"
        trunks = FakeTrunks(encoder(folder))
        self.embedder, self.predictor = FakeEmbedder(trunks), CountingPredictor()
        self.registry = CollectorRegistry()
        self.outputs = OutputCache(1_000_000, OutputRules(), FakeTelemetry())
        versions = VersionCounts(self.registry)
        self.publish(*heads)
        self.catalogue = CataloguePoller(FileFetch(self._path), poll_seconds=0.01, followers=[self.outputs, versions])
        fan_out = FanOut(self.predictor, head_timeout=1.0)
        planner = Planner(draw=iter(draws).__next__) if draws else Planner()
        self.pipeline = Pipeline(trunks, self.embedder, fan_out, self.catalogue, self.outputs, planner, None, [versions])

    @classmethod
    async def started(cls, folder: Path, *heads: CatalogueHead, draws: Sequence[float] = ()) -> "Setup":
        setup = cls(folder, *heads, draws=draws)
        await setup.catalogue.refresh()
        return setup

    def publish(self, *heads: CatalogueHead) -> None:
        temporary = self._path.with_suffix(".new")
        temporary.write_bytes(encode(Catalogue({next(iter(one.versions.values())).name: one for one in heads})))
        temporary.replace(self._path)

    async def ask(self, *texts: str, heads: Sequence[str] | None = None, may_reuse: bool = True, sticky_key: str = "") -> Answer:
        request = Classification(texts, heads=heads, may_reuse=may_reuse, sticky_key=sticky_key, with_scores=True)
        return await self.pipeline.classify(request, Deadline.after(5))

    def metrics(self) -> str:
        return generate_latest(self.registry).decode()


def answers(answer: Answer, name: str = "topic") -> list[HeadAnswer]:
    outcome = answer.outcomes[name]
    assert isinstance(outcome, list)
    return outcome


async def test_a_text_seen_before_is_answered_without_any_call(tmp_path: Path) -> None:
    setup = await Setup.started(tmp_path, head(rated("topic", 3)))

    first = await setup.ask("a b")
    second = await setup.ask(" a  b ")

    assert 1 == len(setup.embedder.calls)
    assert {("topic", 3): 1} == setup.predictor.asked
    assert answers(first) == answers(second)
    assert [False, True] == [answer.texts[0].cached for answer in (first, second)]


async def test_only_what_is_not_known_is_computed_and_every_text_gets_its_own_scores(tmp_path: Path) -> None:
    setup = await Setup.started(tmp_path, head(rated("topic", 3)))
    await setup.ask("a b")

    answer = await setup.ask("c", "a b", "c d e", "c")

    # Three, four, five and three tokens, less one for the layer.
    assert [2.0, 3.0, 4.0, 2.0] == [(one.scores or {})["ham"] for one in answers(answer)]
    assert [False, True, False, False] == [text.cached for text in answer.texts]
    assert {("topic", 3): 3} == setup.predictor.asked


async def test_a_text_is_cached_only_when_all_its_heads_are(tmp_path: Path) -> None:
    setup = await Setup.started(tmp_path, head(rated("topic", 3)), head(rated("poor", 3, accuracy=0.7)))
    await setup.ask("a")

    answer = await setup.ask("a")

    assert not answer.texts[0].cached
    assert {("topic", 3): 1, ("poor", 3): 2} == setup.predictor.asked
    assert answers(answer) == answers(answer, "poor")


async def test_who_wants_nothing_stored_reads_nothing_either(tmp_path: Path) -> None:
    setup = await Setup.started(tmp_path, head(rated("topic", 3)))

    await setup.ask("a", may_reuse=False)
    await setup.ask("a")
    await setup.ask("a", may_reuse=False)

    assert {("topic", 3): 3} == setup.predictor.asked
    assert 1 == setup.outputs.num_entries


async def test_what_a_head_failed_to_say_is_not_remembered(tmp_path: Path) -> None:
    setup = await Setup.started(tmp_path, head(rated("topic", 3)))
    setup.predictor.broken.add("topic")
    failed = await setup.ask("a")
    setup.predictor.broken.clear()

    assert not isinstance(failed.outcomes["topic"], list)
    assert [2.0] == [(one.scores or {})["ham"] for one in answers(await setup.ask("a"))]


async def test_an_answer_kept_from_an_older_version_says_so_beside_one_of_the_new(tmp_path: Path) -> None:
    setup = await Setup.started(tmp_path, head(rated("topic", 3)))
    await setup.ask("a")
    setup.publish(head(rated("topic", 4, accuracy=0.905), rated("topic", 3)))
    await setup.catalogue.refresh()

    said = answers(await setup.ask("a", "b c"))

    assert [3, 4] == [one.version for one in said]
    assert [3.0, 4.0] == [(one.scores or {})["spam"] for one in said]
    assert [4] == [one.version for one in answers(await setup.ask("a", heads=["topic@4"]), "topic@4")]


async def test_a_canary_answers_its_share_and_each_version_is_counted(tmp_path: Path) -> None:
    draws = [number / 20 for number in range(20)]
    heads = head(rated("topic", 3), rated("topic", 4), canary=4, canary_share=0.25)
    setup = await Setup.started(tmp_path, heads, draws=draws)

    seen = Counter([answers(await setup.ask("the same text"))[0].version for _ in draws])

    assert {3: 15, 4: 5} == seen
    assert 'trunkline_gateway_answered_texts_total{head="topic",version="3"} 15.0' in setup.metrics()
    assert 'trunkline_gateway_answered_texts_total{head="topic",version="4"} 5.0' in setup.metrics()
    assert {("topic", 3): 1, ("topic", 4): 1} == setup.predictor.asked, "each side is asked for itself, and once"


async def test_callers_with_one_key_stay_on_one_side_of_a_canary(tmp_path: Path) -> None:
    heads = head(rated("topic", 3), rated("topic", 4), canary=4, canary_share=0.5)
    setup = await Setup.started(tmp_path, heads)

    for key in ("one caller", "another", "a third"):
        sides = {answers(await setup.ask("a", sticky_key=key))[0].version for _ in range(10)}
        assert 1 == len(sides)


async def test_counts_of_a_version_end_with_it(tmp_path: Path) -> None:
    setup = await Setup.started(tmp_path, head(rated("topic", 3)))
    await setup.ask("a")
    setup.publish(head(rated("topic", 4)))
    await setup.catalogue.refresh()

    assert 'version="3"' not in setup.metrics()


@pytest.mark.parametrize("may_reuse", [True, False])
async def test_heads_come_move_and_go_while_requests_run_and_none_fails(tmp_path: Path, may_reuse: bool) -> None:
    setup = await Setup.started(tmp_path, head(rated("topic", 3)))
    polling = asyncio.create_task(setup.catalogue.run())

    async def until(wanted: dict[str, int]) -> None:
        """Ask until exactly *wanted* answers."""
        give_up = time.monotonic() + SECONDS_TO_BE_LIVE
        while time.monotonic() < give_up:
            answer = await setup.ask("a", "b c", may_reuse=may_reuse)
            found = {name: answers(answer, name)[0].version for name in answer.outcomes}
            if found == wanted:
                return
            # The fakes never wait, so the poller would not come round.
            await asyncio.sleep(0)
        pytest.fail(f"not live within {SECONDS_TO_BE_LIVE} s: {found}")

    try:
        await until({"topic": 3})
        setup.publish(head(rated("topic", 3)), head(rated("mood", 1)))
        await until({"topic": 3, "mood": 1})
        setup.publish(head(rated("topic", 4, accuracy=0.95), rated("topic", 3)), head(rated("mood", 1)))
        await until({"topic": 4, "mood": 1})
        setup.publish(head(rated("topic", 3), rated("topic", 4, accuracy=0.95)), head(rated("mood", 1)))
        await until({"topic": 3, "mood": 1})
        setup.publish(head(rated("topic", 3)))
        await until({"topic": 3})
    finally:
        polling.cancel()
        await asyncio.gather(polling, return_exceptions=True)
