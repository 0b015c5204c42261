from pathlib import Path

import pytest

from head_service.control.publishing import BRIEF_SECONDS, PATIENT_SECONDS, RUN_PATH, LeaseLostError, RunRepository, published_by
from head_service.errors import ManifestError
from head_service.manifest import verify
from head_service.repository import Repository
from tests.head_service.versions_on_disk import FINGERPRINT, exporter

RUN, OTHER = "a" * 32, "b" * 32


def repository(tmp_path: Path, run_id: str = RUN, *, may: bool = True, told: list[int] | None = None) -> RunRepository:
    told = [] if told is None else told
    return RunRepository(tmp_path / "heads", run_id, lambda _: may, told.append)


def test_a_version_says_which_run_made_it_and_its_manifest_holds(tmp_path: Path):
    told: list[int] = []
    version = repository(tmp_path, told=told).publish("spam", exporter(), fingerprint=FINGERPRINT)

    found = Repository(tmp_path / "heads")
    assert [version] == told
    assert RUN_PATH in verify(found.path("spam", version)).files
    assert version == published_by(found, "spam", RUN)
    assert published_by(found, "spam", OTHER) is None


def test_a_run_that_is_tried_again_publishes_nothing_more_and_learns_its_version(tmp_path: Path):
    first = repository(tmp_path).publish("spam", exporter(), fingerprint=FINGERPRINT)
    other = repository(tmp_path, OTHER).publish("spam", exporter(), fingerprint=FINGERPRINT)
    told: list[int] = []

    again = repository(tmp_path, told=told).publish("spam", exporter(), fingerprint=FINGERPRINT)

    assert (1, 2, 1) == (first, other, again)
    assert [1] == told
    assert [1, 2] == Repository(tmp_path / "heads").versions("spam")


def test_a_worker_that_has_lost_its_lease_publishes_nothing(tmp_path: Path):
    told: list[int] = []
    with pytest.raises(LeaseLostError):
        repository(tmp_path, may=False, told=told).publish("spam", exporter(), fingerprint=FINGERPRINT)

    assert [] == told
    assert [] == list((tmp_path / "heads" / "spam").iterdir())


def test_the_worker_is_asked_with_patience_while_nobody_waits_for_the_repository_and_briefly_under_its_lock(tmp_path: Path):
    asked: list[float] = []
    others = Repository(tmp_path / "heads")

    def may_publish(seconds: float) -> bool:
        asked.append(seconds)
        if seconds > BRIEF_SECONDS:
            with others.locked():
                pass
        return True

    RunRepository(tmp_path / "heads", RUN, may_publish, lambda _: None).publish("spam", exporter(), fingerprint=FINGERPRINT)

    assert [PATIENT_SECONDS, BRIEF_SECONDS] == asked


def test_a_lease_lost_between_the_two_questions_publishes_nothing(tmp_path: Path):
    answers = iter([True, False])
    with pytest.raises(LeaseLostError):
        RunRepository(tmp_path / "heads", RUN, lambda _: next(answers), print).publish(
            "spam", exporter(), fingerprint=FINGERPRINT
        )

    assert [] == Repository(tmp_path / "heads").versions("spam")


def test_versions_that_others_made_or_broke_are_nobodys(tmp_path: Path):
    plain = Repository(tmp_path / "heads")
    version = plain.publish("spam", exporter(), fingerprint=FINGERPRINT)
    assert published_by(plain, "spam", RUN) is None
    path = plain.path("spam", version) / RUN_PATH
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\xff{")

    assert published_by(plain, "spam", RUN) is None
    with pytest.raises(ManifestError):
        verify(plain.path("spam", version))
