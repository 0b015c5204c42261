from pathlib import Path

import pytest
from google.protobuf import text_format

from clients.wire.catalogue import Catalogue, CatalogueHead, encode
from clients.wire.tfs import serving_pb2 as pb
from head_service.catalogue import CATALOGUE, MODELS_CONFIG, ensure_layout, read_catalogue
from head_service.errors import ManifestError, RepositoryError
from head_service.lifecycle import Lifecycle, already_available
from head_service.repository import Repository, replace_file
from tests.head_service.versions_on_disk import FINGERPRINT, exporter


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository(tmp_path)
    for name in ("spam", "spam", "topic"):
        made.publish(name, exporter(name), fingerprint=FINGERPRINT)
    return made


def promote(repository: Repository, name: str, version: int) -> None:
    Lifecycle(repository, already_available).promote(name, version)


def models(root: Path) -> list[pb.ModelConfig]:
    config = text_format.Parse((root / MODELS_CONFIG).read_text(), pb.ModelServerConfig())
    assert config.HasField("model_config_list")
    return list(config.model_config_list.config)


def test_an_empty_repository_has_an_empty_catalogue_and_configuration(tmp_path: Path) -> None:
    ensure_layout(tmp_path / "new")

    assert Catalogue() == read_catalogue(tmp_path / "new")
    assert [] == models(tmp_path / "new")


def test_the_layout_is_made_once(repository: Repository) -> None:
    promote(repository, "spam", 1)

    ensure_layout(repository.root)

    assert {"spam"} == read_catalogue(repository.root).heads.keys()


def test_promoting_makes_a_version_the_one_that_answers(repository: Repository) -> None:
    promote(repository, "spam", 1)
    promote(repository, "topic", 1)
    promote(repository, "spam", 2)

    heads = read_catalogue(repository.root).heads

    assert {"spam": 2, "topic": 1} == {name: head.stable for name, head in heads.items()}
    assert ("ham", "spam") == heads["spam"].versions[2].labels
    assert {} == heads["spam"].versions[2].files


def test_promoting_keeps_whether_a_head_is_a_default(repository: Repository) -> None:
    promote(repository, "spam", 1)
    head = read_catalogue(repository.root).heads["spam"]
    quiet = CatalogueHead(head.stable, head.versions, default=False)
    replace_file(repository.root / CATALOGUE, encode(Catalogue({"spam": quiet})))

    promote(repository, "spam", 2)

    assert not read_catalogue(repository.root).heads["spam"].default


def test_a_version_that_is_not_its_manifest_is_not_promoted(repository: Repository) -> None:
    promote(repository, "spam", 1)
    (repository.path("spam", 2) / "saved_model.pb").write_bytes(b"other")

    with pytest.raises(ManifestError, match=r"changed saved_model\.pb"):
        promote(repository, "spam", 2)

    assert 1 == read_catalogue(repository.root).heads["spam"].stable


def test_a_version_that_is_not_there_is_not_promoted(repository: Repository) -> None:
    with pytest.raises(RepositoryError, match="spam has no version 3; there are 1, 2"):
        promote(repository, "spam", 3)


def test_a_file_that_is_no_catalogue_is_told(tmp_path: Path) -> None:
    (tmp_path / CATALOGUE).write_text("{")

    with pytest.raises(RepositoryError, match="is not a catalogue"):
        read_catalogue(tmp_path)


def test_the_head_server_is_told_of_every_live_head_by_absolute_path(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository.root / "empty").mkdir()
    (repository.root / "lost+found").mkdir()
    monkeypatch.chdir(repository.root.parent)

    for name, version in (("spam", 2), ("topic", 1)):
        promote(Repository(Path(repository.root.name)), name, version)

    found = [model for model in models(repository.root) if model.model_version_policy.specific.versions]
    assert [("spam", str(repository.root / "spam")), ("topic", str(repository.root / "topic"))] == [
        (model.name, model.base_path) for model in found
    ]
    assert [[2], [1]] == [list(model.model_version_policy.specific.versions) for model in found]
    assert [{"stable": 2}, {"stable": 1}] == [dict(model.version_labels) for model in found]
    assert {"tensorflow"} == {model.model_platform for model in models(repository.root)}


def test_a_candidate_is_named_beside_the_live_version_until_it_is_promoted(repository: Repository) -> None:
    promote(repository, "spam", 1)
    Lifecycle(repository, already_available).load_candidate("spam", 2)
    [spam] = models(repository.root)
    assert ([1, 2], {"stable": 1}) == (list(spam.model_version_policy.specific.versions), dict(spam.version_labels))

    promote(repository, "spam", 2)

    [spam] = models(repository.root)
    assert ([1, 2], {"stable": 2}) == (list(spam.model_version_policy.specific.versions), dict(spam.version_labels))
