from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients import Deadline, DeadlineExceeded, NotFound, Overloaded, TrunklineError, Unavailable
from clients.wire.catalogue import BundleMember, Catalogue, CatalogueHead, Manifest, TrunkRef, View, members_of
from gateway.bundles import FIRST_REST_SECONDS, MAX_REST_SECONDS, Bundles, places_in
from gateway.fanout import FanOut, HeadCall
from gateway.ports import FloatArray, Rows

WIDTH = 4
ROWS: Rows = [np.full(WIDTH, n, np.float32) for n in range(3)]


def manifest(name: str, version: int = 1, num_labels: int = 2, view: View | None = None) -> Manifest:
    labels = tuple(f"{name} {n}" for n in range(num_labels))
    return Manifest(
        name=name, version=version, labels=labels, width=WIDTH, trunk=TrunkRef("tiny", "sha256:one"), view=view or View()
    )


def bundle_of(*members: Manifest, version: int = 1, name: str = "bundle-1") -> Manifest:
    listed, offset = [], 0
    for one in members:
        listed.append(BundleMember(one.name, one.version, offset, len(one.labels), "sha256:any"))
        offset += len(one.labels)
    like = manifest(name, version, offset, members[0].view)
    return msgspec.structs.replace(like, members=tuple(listed))


def scores_of(one: Manifest, rows: Rows) -> FloatArray:
    """What a head answers: numbers of its own, by its name, its version and what it reads."""
    base = sum(map(ord, one.name)) + one.version
    return np.array([[base + 10 * row[0] + n for n in range(len(one.labels))] for row in rows], np.float32)


class Source:
    """A catalogue that can be exchanged."""

    def __init__(self, *bundles: Manifest, heads: tuple[Manifest, ...]) -> None:
        self.heads = {one.name: CatalogueHead(stable=one.version, versions={one.version: one}) for one in heads}
        self.tell(*bundles)

    def tell(self, *bundles: Manifest) -> None:
        self.catalogue = Catalogue(self.heads, bundles={one.name: one for one in bundles} or msgspec.UNSET)


class FakeHeads:
    """A head server: a bundle answers what its members answer. *broken*, by name, is what comes instead."""

    def __init__(self, *versions: Manifest) -> None:
        self.versions = {(one.name, one.version): one for one in versions}
        self.broken: dict[str, Callable[[FloatArray], FloatArray]] = {}
        self.asked: list[str] = []
        self.patience: list[float] = []

    async def predict(self, manifest: Manifest, rows: Rows, deadline: Deadline) -> FloatArray:
        self.asked.append(manifest.name)
        self.patience.append(deadline.remaining())
        members = [self.versions[one.name, one.version] for one in members_of(manifest)] or [manifest]
        scores = np.concatenate([scores_of(one, rows) for one in members], axis=1)
        return self.broken.get(manifest.name, lambda whole: whole)(scores)


class Heard:
    """Keeps what is told of heads."""

    def __init__(self) -> None:
        self.heads: list[tuple[str, int, str]] = []

    def head_ended(self, head: str, version: int, outcome: str, seconds: float) -> None:
        assert seconds >= 0
        self.heads.append((head, version, outcome))


class World:
    """Three heads and their bundle, and a clock that passes when told to."""

    def __init__(self) -> None:
        self.heads = (manifest("one"), manifest("two", num_labels=3), manifest("three"))
        self.source = Source(bundle_of(*self.heads), heads=self.heads)
        self.server = FakeHeads(*self.heads)
        self.now = 0.0
        self.bundles = Bundles(self.source, clock=lambda: self.now)
        self.heard = Heard()
        self.fan_out = FanOut(self.server, head_timeout=4.0, bundles=self.bundles, telemetry=self.heard)

    async def ask(self, *heads: Manifest, seconds: float = 60.0) -> list[FloatArray | TrunklineError]:
        self.server.asked.clear()
        self.server.patience.clear()
        calls = [HeadCall(one, ROWS) for one in heads or self.heads]
        return await self.fan_out.ask(calls, Deadline.after(seconds))

    async def check_answers(self, *heads: Manifest) -> None:
        """All heads answer what they answer by themselves."""
        found = await self.ask(*heads)
        for one, scores in zip(heads or self.heads, found, strict=True):
            assert not isinstance(scores, TrunklineError)
            np.testing.assert_array_equal(scores_of(one, ROWS), scores)


def fails(error: Exception) -> Callable[[FloatArray], FloatArray]:
    def fail(_: FloatArray) -> FloatArray:
        raise error

    return fail


@pytest.fixture
def world() -> World:
    return World()


async def test_heads_of_a_bundle_are_asked_in_one_call(world: World) -> None:
    await world.check_answers()
    assert ["bundle-1"] == world.server.asked

    await world.check_answers(world.heads[2], world.heads[0])
    assert ["bundle-1"] == world.server.asked


async def test_what_a_bundle_takes_is_told_of_the_heads_that_it_was_asked_for(world: World) -> None:
    await world.check_answers(world.heads[2], world.heads[0])
    assert [("three", 1, "ok"), ("one", 1, "ok")] == world.heard.heads

    # Heads that are asked by themselves are told of by whoever asks them.
    world.heard.heads.clear()
    world.server.broken["bundle-1"] = fails(Unavailable("away"))
    await world.check_answers()
    await world.check_answers(world.heads[1])
    assert [] == world.heard.heads


async def test_heads_that_get_nothing_by_their_bundle_are_told_of(world: World) -> None:
    world.server.broken["bundle-1"] = fails(Overloaded("full", retry_after=0.5))
    await world.ask()
    assert [(name, 1, "overloaded") for name in ("one", "two", "three")] == world.heard.heads


async def test_one_head_is_asked_by_itself(world: World) -> None:
    await world.check_answers(world.heads[1])
    assert ["two"] == world.server.asked


async def test_a_version_that_a_bundle_does_not_list_is_asked_by_itself_until_there_is_a_new_bundle(world: World) -> None:
    promoted = manifest("two", 2, 3)
    await world.check_answers(world.heads[0], promoted, world.heads[2])
    assert ["bundle-1", "two"] == sorted(world.server.asked)

    world.server.versions["two", 2] = promoted
    world.source.heads["two"] = CatalogueHead(stable=2, versions={2: promoted})
    world.source.tell(bundle_of(world.heads[0], promoted, world.heads[2], version=2))
    await world.check_answers(world.heads[0], promoted, world.heads[2])
    assert ["bundle-1"] == world.server.asked


async def test_without_a_bundle_every_head_is_asked(world: World) -> None:
    world.source.tell()
    await world.check_answers()
    assert ["one", "two", "three"] == world.server.asked


async def test_heads_that_are_given_other_rows_are_not_asked_together(world: World) -> None:
    calls = [HeadCall(world.heads[0], ROWS), HeadCall(world.heads[1], ROWS[:1])]
    first, second = await world.fan_out.ask(calls, Deadline.after(60))
    assert ["one", "two"] == sorted(world.server.asked)
    np.testing.assert_array_equal(scores_of(world.heads[0], ROWS), first)
    np.testing.assert_array_equal(scores_of(world.heads[1], ROWS[:1]), second)


@pytest.mark.parametrize(
    "broken",
    [
        fails(Unavailable("away")),
        fails(NotFound("not loaded")),
        fails(RuntimeError("nobody thought of this")),
        lambda scores: scores[:, :-1],
        lambda scores: scores[:-1],
        lambda scores: scores.astype(np.float64),
    ],
)
async def test_heads_answer_when_their_bundle_fails(world: World, broken: Callable[[FloatArray], FloatArray]) -> None:
    world.server.broken["bundle-1"] = broken
    await world.check_answers()
    assert ["bundle-1", "one", "two", "three"] == world.server.asked


async def test_what_is_not_a_number_is_the_error_of_the_head_whose_it_is(world: World) -> None:
    def spoilt(scores: FloatArray) -> FloatArray:
        scores[1, 3] = np.nan
        return scores

    world.server.broken["bundle-1"] = spoilt
    one, two, three = await world.ask()

    assert isinstance(two, TrunklineError)
    assert ("invalid_response", "head 'two' answered something that is not its contract") == (two.code, two.message)
    np.testing.assert_array_equal(scores_of(world.heads[0], ROWS), one)
    np.testing.assert_array_equal(scores_of(world.heads[2], ROWS), three)
    assert ["bundle-1"] == world.server.asked


async def test_a_bundle_has_half_of_the_time_and_its_heads_the_other(world: World) -> None:
    world.server.broken["bundle-1"] = fails(DeadlineExceeded("too late"))
    await world.check_answers()
    shared, *alone = world.server.patience
    assert shared <= 2.0 < min(alone) <= max(alone) <= 4.0


async def test_too_much_work_is_not_made_more(world: World) -> None:
    world.server.broken["bundle-1"] = fails(Overloaded("full", retry_after=0.5))
    outcomes = await world.ask()
    assert ["bundle-1"] == world.server.asked
    assert ["overloaded"] * 3 == [one.code for one in outcomes if isinstance(one, TrunklineError)]


async def test_a_bundle_that_fails_is_left_alone_for_longer_each_time(world: World) -> None:
    world.server.broken["bundle-1"] = fails(Unavailable("away"))
    await world.check_answers()
    rest = FIRST_REST_SECONDS
    for _ in range(8):
        world.now += rest * 0.99
        await world.check_answers()
        assert "bundle-1" not in world.server.asked
        world.now += rest * 0.02
        await world.check_answers()
        assert "bundle-1" in world.server.asked
        rest = min(2 * rest, MAX_REST_SECONDS)

    del world.server.broken["bundle-1"]
    world.now += rest * 1.01
    for _ in range(2):
        await world.check_answers()
        assert ["bundle-1"] == world.server.asked


async def test_a_new_bundle_is_not_blamed_for_the_one_before(world: World) -> None:
    world.server.broken["bundle-1"] = fails(Unavailable("away"))
    await world.check_answers()
    world.source.tell(bundle_of(*world.heads, version=2))
    del world.server.broken["bundle-1"]
    await world.check_answers()
    assert ["bundle-1"] == world.server.asked


async def test_a_caller_who_has_no_time_does_not_put_a_bundle_out_of_use(world: World) -> None:
    world.server.broken["bundle-1"] = fails(DeadlineExceeded("too late"))
    await world.ask(seconds=0.1)
    await world.ask()
    assert "bundle-1" in world.server.asked


async def test_one_asks_again_and_the_others_wait_for_what_comes_of_it(world: World) -> None:
    [first] = {id(place.bundle): place.bundle for place in world.bundles.places(world.heads) if place}.values()
    world.bundles.failed(first)
    world.bundles.failed(first)
    world.now += FIRST_REST_SECONDS
    assert all(world.bundles.places(world.heads))
    assert not any(world.bundles.places(world.heads))
    world.bundles.answered(first)
    assert all(world.bundles.places(world.heads))


def test_members_that_are_not_what_their_heads_say_are_left_out() -> None:
    one, two, three = manifest("one"), manifest("two"), manifest("three")
    whole = bundle_of(one, two, three)
    heads = {head.name: CatalogueHead(stable=1, versions={1: head}) for head in (one, two, three)}

    def found(bundle: Manifest) -> set[str]:
        return {name for name, _ in places_in(Catalogue(heads, bundles={bundle.name: bundle}))}

    assert {"one", "two", "three"} == found(whole)
    assert {"one", "two"} == found(msgspec.structs.replace(whole, labels=whole.labels[:-1]))
    assert set() == found(msgspec.structs.replace(whole, view=View(layer=-2)))
    assert set() == found(msgspec.structs.replace(whole, trunk=TrunkRef("tiny", "sha256:two")))
    longer = BundleMember("one", 1, 0, 3, "")
    assert {"two"} == found(msgspec.structs.replace(whole, members=(longer, members_of(whole)[1])))


@given(asked=st.lists(st.sampled_from(range(12)), min_size=1, max_size=12, unique=True), num_bundled=st.integers(0, 12))
async def test_whoever_is_asked_for_what_answers_the_same_with_a_bundle_and_without(asked: list[int], num_bundled: int) -> None:
    heads = tuple(manifest(f"head-{n}", 1 + n % 3, 1 + n % 4) for n in range(12))
    bundles = [bundle_of(*heads[:num_bundled])] if num_bundled else []
    calls = [HeadCall(heads[n], ROWS) for n in asked]
    server = FakeHeads(*heads)
    together = FanOut(server, head_timeout=1.0, bundles=Bundles(Source(*bundles, heads=heads)))

    found = await together.ask(calls, Deadline.after(60))

    alone = await FanOut(FakeHeads(*heads), head_timeout=1.0).ask(calls, Deadline.after(60))
    for one, other in zip(found, alone, strict=True):
        np.testing.assert_array_equal(one, other)
    shared = [n for n in asked if n < num_bundled]
    assert len(server.asked) == (len(asked) - len(shared) + 1 if len(shared) > 1 else len(asked))
