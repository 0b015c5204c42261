"""Bundles of real SavedModels, each asked by loading it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clients.wire.catalogue import BundleMember, Catalogue, CatalogueHead, Manifest, Task, TrunkRef, bundles_of, members_of
from head_service.bundling import Ask, Bundler, asking, bundle_name, is_same, needs_of, out_of_date, wanted_bundles
from head_service.catalogue import ensure_layout, read_catalogue
from head_service.configuration import MODELS_CONFIG, parse_config
from head_service.errors import RepositoryError
from head_service.export import export_head
from head_service.lifecycle import Lifecycle
from head_service.parts import FloatArray
from head_service.repository import Repository
from head_service.serving.servable import Servable
from head_service.training.heads import HeadSpec, HeadType
from head_service.training.linear_head import LinearHead
from head_service.training.network import NetworkHead, initial_weights
from tests.head_service.lifecycles import Clock
from tests.head_service.versions_on_disk import FINGERPRINT, OTHER_FINGERPRINT, exporter

WIDTH = 8
ROWS = (np.random.default_rng(9).normal(size=(12, WIDTH)) / WIDTH**0.5).astype(np.float32)


def drawn_head(seed: int, task: Task = "single_label", num_labels: int = 3, head_type: HeadType = "linear") -> NetworkHead:
    random = np.random.default_rng(seed)
    weights = initial_weights(HeadSpec(head_type, WIDTH), 4, num_labels, random)
    weights |= {"shift": random.normal(size=WIDTH).astype(np.float32), "scale": random.uniform(0.5, 2, WIDTH).astype(np.float32)}
    return NetworkHead(HeadSpec(head_type, WIDTH), task, tuple(f"label {n}" for n in range(num_labels)), weights)


class World:
    """A repository whose head server has everything that it is told of."""

    def __init__(self, root: Path) -> None:
        ensure_layout(root)
        self.root = root
        self.repository = Repository(root)
        self.clock = Clock()
        self.lifecycle = Lifecycle(self.repository, lambda _, __: None, clock=self.clock, sleep=self.clock.sleep)
        self.said: list[str] = []

    def publish(self, name: str, head: LinearHead | NetworkHead, temperature: float = 1.0) -> int:
        def export(directory: Path, version: int) -> None:
            described = Manifest(
                name=name,
                version=version,
                task=head.task,
                labels=head.labels,
                width=WIDTH,
                trunk=TrunkRef("tiny", FINGERPRINT),
                head_type=head.head_type,
                temperature=temperature,
            )
            export_head(head, described, ROWS, ["text"] * len(ROWS), directory)

        return self.repository.publish(name, export, fingerprint=FINGERPRINT)

    def go_live(self, name: str, head: LinearHead | NetworkHead, temperature: float = 1.0) -> int:
        version = self.publish(name, head, temperature)
        self.lifecycle.promote(name, version)
        return version

    def bundle(self, change: Callable[[Ask], Ask] = lambda ask: ask) -> None:
        with asking("", self.repository) as ask:
            Bundler(self.lifecycle, change(ask), self.said.append).run()

    @property
    def catalogue(self) -> Catalogue:
        return read_catalogue(self.root)

    @property
    def bundles(self) -> list[Manifest]:
        return list(bundles_of(self.catalogue).values())

    def scores(self, manifest: Manifest) -> FloatArray:
        servable = Servable(manifest.name, manifest.version, self.repository.path(manifest.name, manifest.version))
        try:
            return servable.run("", {"embedding": ROWS}, ("scores",))["scores"]
        finally:
            servable.close()

    def check_equal(self) -> None:
        """The bundle's columns are what its heads answer."""
        [bundle] = self.bundles
        together = self.scores(bundle)
        assert together.shape == (len(ROWS), len(bundle.labels))
        for member in members_of(bundle):
            alone = self.scores(self.repository.manifest(member.name, member.version))
            np.testing.assert_allclose(together[:, member.offset : member.offset + member.count], alone, rtol=0, atol=1e-6)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "repository")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Heads of all kinds, bundled; for reading only."""
    made = World(tmp_path_factory.mktemp("bundling") / "repository")
    made.go_live("topic", drawn_head(1), 2.5)
    made.go_live("mail", drawn_head(2), 0.7)
    made.go_live("words", drawn_head(3, "multi_label", 4), 1.7)
    made.go_live("number", drawn_head(4, "regression", 1))
    random = np.random.default_rng(5)
    kernel, bias = random.normal(size=(WIDTH, 3)).astype(np.float32), random.normal(size=3).astype(np.float32)
    made.go_live("rest", LinearHead(kernel, bias, ("a", "b", "c"), one_vs_rest=True), 3.0)
    made.go_live("deep", drawn_head(6, head_type="mlp"))
    made.bundle()
    return made


def test_a_bundle_answers_what_its_heads_answer(shared: World) -> None:
    shared.check_equal()
    [bundle] = shared.bundles
    assert {"topic", "mail", "words", "number", "rest"} == {member.name for member in members_of(bundle)}
    assert "words.label 3" in bundle.labels


def test_the_head_server_is_told_of_a_bundle_as_of_any_head(shared: World) -> None:
    [bundle] = shared.bundles
    assert frozenset({1}) == parse_config((shared.root / MODELS_CONFIG).read_bytes())[bundle.name].versions
    assert bundle.name == shared.repository.verify(bundle.name, 1).name


def test_bundles_are_no_heads_in_a_list_of_heads(shared: World) -> None:
    assert ["deep", "mail", "number", "rest", "topic", "words"] == [state.name for state in shared.lifecycle.states()]
    with pytest.raises(RepositoryError, match="cannot name a head"):
        shared.repository.publish("bundle-of-joy", exporter("bundle-of-joy"), fingerprint=FINGERPRINT)


def test_what_is_up_to_date_is_left_alone(shared: World) -> None:
    assert ([], []) == needs_of(shared.repository, shared.catalogue)
    before = shared.bundles
    shared.bundle()
    assert before == shared.bundles


kinds = st.tuples(st.sampled_from(["single_label", "multi_label", "regression"]), st.integers(2, 4), st.floats(0.3, 4.0))


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=st.lists(kinds, min_size=2, max_size=3), seed=st.integers(0, 999))
def test_heads_as_they_may_come_are_answered_for(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[Task, int, float]], seed: int
) -> None:
    world = World(tmp_path_factory.mktemp("drawn") / "repository")
    for number, (task, num_labels, temperature) in enumerate(drawn):
        head = drawn_head(seed + number, task, 1 if task == "regression" else num_labels)
        world.go_live(f"head-{number}", head, 1.0 if task == "regression" else temperature)

    world.bundle()

    assert len(drawn) == len(members_of(world.bundles[0]))
    world.check_equal()


def test_heads_with_a_hidden_layer_have_a_bundle_of_their_own(world: World) -> None:
    for number, name in enumerate(("deep", "deeper", "words")):
        world.go_live(name, drawn_head(number, "multi_label" if name == "words" else "single_label", 3, "mlp"), 1.5)
    world.bundle()
    world.check_equal()
    [deep] = world.bundles

    world.go_live("flat", drawn_head(7))
    world.go_live("flatter", drawn_head(8))
    world.bundle()
    assert [{"deep", "deeper", "words"}, {"flat", "flatter"}] == sorted(
        ({member.name for member in members_of(bundle)} for bundle in world.bundles), key=sorted
    )
    assert deep in world.bundles


def test_a_bundle_follows_its_heads(world: World) -> None:
    world.go_live("one", drawn_head(1))
    world.bundle()
    assert [] == world.bundles

    world.go_live("two", drawn_head(2))
    world.bundle()
    [first] = world.bundles

    world.go_live("one", drawn_head(3))
    assert [first] == world.bundles, "it stays, for the heads that it still stands for"
    world.bundle()
    [second] = world.bundles
    assert {("one", 2), ("two", 1)} == {(member.name, member.version) for member in members_of(second)}
    assert first.version < second.version
    world.check_equal()

    world.lifecycle.roll_back("one")
    world.bundle()
    world.clock.sleep(10)
    world.lifecycle.settle()
    [third] = world.bundles
    assert {("one", 1), ("two", 1)} == {(member.name, member.version) for member in members_of(third)}
    assert [third.version] == world.repository.versions(third.name), "former ones are gone"

    world.lifecycle.remove("two")
    world.bundle()
    assert [] == world.bundles


def test_a_head_that_answers_otherwise_than_its_weights_say_is_left_out_for_good(world: World) -> None:
    for name in ("one", "two", "odd"):
        world.go_live(name, drawn_head(len(name)))

    def odd(ask: Ask) -> Ask:
        return lambda manifest, rows: ask(manifest, rows) * np.float32(1.0 if manifest.name != "odd" else 0.99)

    world.bundle(odd)

    assert {"one", "two"} == {member.name for member in members_of(world.bundles[0])}
    assert any("odd version 1 is served alone" in said for said in world.said)
    assert ([], []) == needs_of(world.repository, world.catalogue)


def test_a_bundle_that_does_not_answer_what_its_heads_answer_is_never_told_of(world: World) -> None:
    world.go_live("one", drawn_head(1))
    world.go_live("two", drawn_head(2))

    def wrong_together(ask: Ask) -> Ask:
        return lambda manifest, rows: ask(manifest, rows) + np.float32(0.01 if members_of(manifest) else 0.0)

    with pytest.raises(RepositoryError, match="does not answer what"):
        world.bundle(wrong_together)

    assert [] == world.bundles
    assert {"one", "two"} == world.catalogue.heads.keys()


def test_a_head_that_answers_otherwise_among_others_is_left_out_for_good(world: World) -> None:
    for name in ("one", "two", "odd"):
        world.go_live(name, drawn_head(len(name)))

    def odd_together(ask: Ask) -> Ask:
        def asked(manifest: Manifest, rows: FloatArray) -> FloatArray:
            scores = ask(manifest, rows).copy()
            for member in members_of(manifest):
                if member.name == "odd":
                    scores[:, member.offset] += np.float32(1e-4)
            return scores

        return asked

    world.bundle(odd_together)

    [bundle] = world.bundles
    assert {"one", "two"} == {member.name for member in members_of(bundle)}
    assert [bundle.version] == world.repository.versions(bundle.name), "the one with it was dropped"
    assert any("odd version 1 is served alone" in said for said in world.said)
    assert ([], []) == needs_of(world.repository, world.catalogue)
    world.check_equal()


def test_of_two_heads_one_alone_makes_no_bundle(world: World) -> None:
    world.go_live("one", drawn_head(1))
    world.go_live("two", drawn_head(2))

    def first_differs(ask: Ask) -> Ask:
        shift = np.array([1e-4, *[0.0] * 5], np.float32)
        return lambda manifest, rows: ask(manifest, rows) + (shift if members_of(manifest) else np.float32(0.0))

    world.bundle(first_differs)

    assert [] == world.bundles
    assert any("is not made: of its heads 1 can be in it" in said for said in world.said)
    assert ([], []) == needs_of(world.repository, world.catalogue)


def test_the_rounding_of_large_terms_with_a_small_sum_is_no_difference() -> None:
    scores = np.array([[14.0], [0.5], [0.0]], np.float32)

    assert is_same(scores + np.float32(5e-6), scores)
    assert not is_same(scores + np.float32(5e-5), scores)
    assert not is_same(scores / 14 + np.float32(5e-6), scores / 14), "of scores up to one it is the absolute difference"
    assert not is_same(scores, np.full_like(scores, np.nan))


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scale=st.sampled_from([1.0, 50.0, 3_000.0]), bias=st.sampled_from([0.0, 7.4, -2_000.0]))
def test_numbers_of_any_size_are_answered_together(tmp_path_factory: pytest.TempPathFactory, scale: float, bias: float) -> None:
    world = World(tmp_path_factory.mktemp("repository"))
    for seed, name in enumerate(("one", "two", "three")):
        head = drawn_head(seed, "regression", 1)
        head.weights["weights"] *= np.float32(scale)
        head.weights["bias"] += np.float32(bias)
        world.go_live(name, head)

    world.bundle()

    assert 3 == len(members_of(world.bundles[0]))


def entry(name: str, version: int = 1, fingerprint: str = FINGERPRINT, **fields: object) -> CatalogueHead:
    one = Manifest(name=name, version=version, labels=("a", "b"), width=WIDTH, trunk=TrunkRef("tiny", fingerprint))
    return CatalogueHead(stable=version, versions={version: msgspec.structs.replace(one, **fields)})


def test_only_heads_that_read_the_same_and_are_one_product_are_put_together() -> None:
    heads = {
        "one": entry("one"),
        "two": entry("two"),
        "deep": entry("deep", head_type="mlp"),
        "elsewhere": entry("elsewhere", fingerprint=OTHER_FINGERPRINT),
        "wide": entry("wide", width=2 * WIDTH),
        "mixed": entry("mixed", mix_layers=(-1, -2), head_type="mix"),
        "tokens": entry("tokens", mask_input="mask"),
    }

    [(name, members)] = wanted_bundles(Catalogue(heads), {}).items()

    assert ["one", "two"] == [manifest.name for manifest in members]
    assert name == bundle_name(members[0])
    assert {} == wanted_bundles(Catalogue(heads), {name: frozenset({("two", 1)})})


def test_bundles_are_made_anew_when_a_member_changed_and_removed_when_nobody_needs_them() -> None:
    heads = {"one": entry("one"), "two": entry("two", 2)}
    [(name, members)] = wanted_bundles(Catalogue(heads), {}).items()
    assert ([name], []) == out_of_date(Catalogue(heads), {name: members})

    listed = tuple(BundleMember(one.name, one.version, 0, 2, "") for one in members)
    made = msgspec.structs.replace(members[0], name=name, version=5, head_type="bundle", members=listed)
    known = Catalogue(heads, bundles={name: made})

    assert ([], []) == out_of_date(known, {name: members})
    assert ([name], []) == out_of_date(known, {name: (members[0], entry("two", 3).versions[3])})
    assert ([], [name]) == out_of_date(known, {})
