import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from clients.wire.catalogue import Manifest, Metrics
from head_service.configuration import MODELS_CONFIG, parse_config
from head_service.errors import HeadServiceError
from head_service.gate import Comparison
from head_service.release import examine
from tests.head_service.lifecycles import World
from trunkline.cli import app
from trunkline.heads import HeadsError

Run = Callable[..., Result]


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path / "home" / "repository")
    for accuracy in (0.8, 0.9, 0.7):
        made.publish(accuracy=accuracy)
    made.publish("topic")
    made.clock.now = 4e9
    made.lifecycle.promote("spam", 1)
    made.lifecycle.promote("spam", 2)
    return made


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("TRUNKLINE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TRUNKLINE_GRACE_SECONDS", "0")
    monkeypatch.delenv("TRUNKLINE_REPOSITORY", raising=False)
    return lambda *words, **more: CliRunner().invoke(app, ["heads", *map(str, words)], **more)


def cells(result: Result) -> list[list[str]]:
    assert 0 == result.exit_code, result.output
    return [line.split("\t") for line in result.output.splitlines()]


def test_the_list_shows_every_head_with_its_versions_and_their_states(world: World, run: Run) -> None:
    run("canary", "spam", 3, "--share", "0.05")
    run("set", "spam", "--no-default", "--tag", "mail", "--tag", "en")

    columns, spam, topic = cells(run("list"))

    assert ["head", "stable", "canary", "shadow", "versions", "metric"] == columns[:6]
    assert ["spam", "2", "3 (5%)", "", "1 previous, 2 live, 3 canary", "accuracy 0.9000"] == spam[:6]
    assert ["on request", "mail en"] == spam[7:]
    assert ["topic", "", "", "", "1 published"] == topic[:5]


def test_a_head_is_shown_with_what_the_gate_found_and_what_happened(world: World, run: Run) -> None:
    found = Comparison(verdict="refused", reason="accuracy 0.7000 against 0.9000", version=3)
    world.lifecycle.refuse("spam", 3, found)

    shown = run("show", "spam").output

    assert "3\trefused\taccuracy 0.7000\t20\t\trefused: accuracy 0.7000 against 0.9000" in shown
    assert "previous version: 1; answers when no head is named; tags: none" in shown
    assert "somebody@here\tpromote\t2\t1\t2\t" in shown
    assert "texts go through the trunk's own normaliser alone; long ones are cut" in shown


def test_versions_are_rolled_back_tried_out_and_removed(world: World, run: Run) -> None:
    assert "version 1 is live again; version 2 is the previous one" in run("rollback", "spam", "--reason", "complaints").output
    assert "version 3 runs as a shadow" in run("shadow", "spam", 3).output
    assert "has no shadow" in run("shadow", "spam", "--end").output
    assert "version 3 answers 50.0% of the callers" in run("canary", "spam", 3, "--share", "0.5").output
    assert {"stable": 1, "canary": 3} == world.served()["spam"].labels
    assert "has no canary" in run("canary", "spam", "--end").output

    assert 1 == run("remove", "topic", input="n\n").exit_code
    assert [1] == world.repository.versions("topic")
    assert "topic is removed" in run("remove", "topic", "--yes").output
    assert [] == world.repository.versions("topic")


def test_a_promotion_without_a_stack_is_a_persons_decision(world: World, run: Run) -> None:
    refused = run("promote", "spam", 1)
    assert isinstance(refused.exception, HeadsError)
    assert "--force" in str(refused.exception)

    assert "spam version 1 is live" in run("promote", "spam", 1, "--force").output
    assert 1 == world.catalogue().heads["spam"].stable


def test_a_version_that_was_examined_when_it_was_trained_is_promoted_without_force(
    world: World, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scorer(manifest: Manifest, texts: object) -> list[tuple[float, ...]]:
        return [example.scores for example in manifest.golden]

    monkeypatch.setattr("trunkline.heads._scorer", lambda: contextlib.nullcontext(scorer))
    unseen, examined = (world.publish(accuracy=0.6, data="sha256:other") for _ in range(2))
    examine(
        world.lifecycle,
        "spam",
        examined,
        scorer=scorer,
        remeasure=lambda live, candidate: Metrics(0.5, 0.5, 80, 20, candidate.data),
    )

    assert "measured on other texts" in str(run("promote", "spam", unseen).exception)
    assert 2 == world.catalogue().heads["spam"].stable
    assert "gate: accuracy 0.6000 against 0.5000 of live version 2" in run("promote", "spam", examined).output
    assert examined == world.catalogue().heads["spam"].stable


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("show", "nobody"), "there is no head 'nobody'; there are spam, topic"),
        (("show", "../etc"), "cannot name a head"),
        (("rollback", "topic"), "topic has no live version"),
        (("canary", "spam"), "name the version"),
        (("canary", "spam", 3, "--share", "2"), "share"),
        (("shadow", "spam", 9), "spam has no version 9; there are 1, 2, "),
        (("promote", "spam", 9, "--force"), "spam has no version 9"),
        (("canary", "nobody", 1), "nobody has no version 1; there are none"),
        (("remove", "spam", 2), "version 2 is stable; end that first"),
        (("remove", "spam", 9), "spam has no version 9"),
        (("set", "spam"), "say what to set"),
        (("config", "--base-path", "repository"), "absolute path"),
    ],
)
def test_what_cannot_be_is_told_in_a_sentence(world: World, run: Run, words: tuple[str, ...], message: str) -> None:
    ended = run(*words)

    assert isinstance(ended.exception, (HeadsError, HeadServiceError))
    assert message in str(ended.exception)
    assert "\n" not in str(ended.exception)


def test_verifying_finds_a_changed_file_a_foreign_one_and_labels_that_disagree(world: World, run: Run) -> None:
    whole = run("verify")
    assert (0, 4) == (whole.exit_code, whole.output.count("whole"))

    (world.repository.path("spam", 1) / "saved_model.pb").write_bytes(b"other")
    (world.repository.path("spam", 3) / "notes.txt").write_text("mine")
    config = world.root / MODELS_CONFIG
    config.write_text(config.read_text().replace("value: 2", "value: 1"))
    broken = run("verify")

    assert 1 == broken.exit_code
    assert "spam version 1: the files are not those of the manifest: changed saved_model.pb" in broken.output
    assert "spam version 3: the files are not those of the manifest: unknown notes.txt" in broken.output
    assert "spam: the labels in models.config are not those of the catalogue" in broken.output


def test_a_truncated_catalogue_is_told_and_nothing_is_written(world: World, run: Run) -> None:
    catalogue = world.root / "catalogue.json"
    catalogue.write_bytes(catalogue.read_bytes()[:40])
    served = (world.root / MODELS_CONFIG).read_bytes()

    for words in (("list",), ("rollback", "spam"), ("promote", "spam", 1, "--force"), ("verify",)):
        ended = run(*words)
        assert "is not a catalogue" in str(ended.exception)

    assert served == (world.root / MODELS_CONFIG).read_bytes()
    assert 40 == len(catalogue.read_bytes())


def test_a_configuration_for_a_container_is_kept_current(world: World, run: Run, tmp_path: Path) -> None:
    inside, outside = world.root / "container.config", tmp_path / "elsewhere.config"

    assert "kept current" in run("config", "--base-path", "/repository", "--output", inside).output
    assert "write it again" in run("config", "--base-path", "/repository", "--output", outside).output
    assert inside.read_bytes() == outside.read_bytes()
    run("rollback", "spam")

    assert 'base_path: "/repository/spam"' in inside.read_text()
    assert [{"stable": 1}, {"stable": 2}] == [parse_config(path.read_bytes())["spam"].labels for path in (inside, outside)]


def test_without_a_stack_the_bare_command_says_where_to_look(run: Run) -> None:
    ended = run()

    assert isinstance(ended.exception, HeadsError)
    assert "no local stack runs" in str(ended.exception)


def test_a_grace_that_is_no_number_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_GRACE_SECONDS", "nan")

    assert "TRUNKLINE_GRACE_SECONDS is not a number" in str(run("list").exception)


def test_an_empty_repository_has_an_empty_list(run: Run) -> None:
    assert [["head", "stable"]] == [row[:2] for row in cells(run("list"))]
