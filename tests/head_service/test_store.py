"""A disk that takes no more, at each place where it may say so."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from head_service.errors import HeadServiceError, StorageError, StorageFullError
from head_service.lifecycle import Lifecycle
from tests.head_service.lifecycles import World


class Disk:
    """Counts syncs; the one numbered *fails_at* says *error*, and so do all after it."""

    def __init__(self, error: int) -> None:
        self.error = error
        self.fails_at = 0
        self.num_syncs = 0
        self._fsync = os.fsync

    def fsync(self, handle: int) -> None:
        self.num_syncs += 1
        if self.fails_at and self.num_syncs >= self.fails_at:
            raise OSError(self.error, os.strerror(self.error))
        self._fsync(handle)


CHANGES: dict[str, Callable[[World], Any]] = {
    "publish": lambda world: world.publish(),
    "promote": lambda world: world.lifecycle.promote("spam", 3),
    "roll back": lambda world: world.lifecycle.roll_back("spam"),
    "remove": lambda world: world.lifecycle.remove("spam", 3),
}


def failure(change: Callable[[], Any]) -> HeadServiceError | None:
    try:
        change()
    except HeadServiceError as error:
        return error
    return None


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize(("error", "told"), [(errno.ENOSPC, StorageFullError), (errno.EROFS, StorageError)])
def test_a_disk_that_takes_no_more_is_told_and_what_is_live_stays_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, error: int, told: type[Exception]
) -> None:
    disk = Disk(error)
    monkeypatch.setattr(os, "fsync", disk.fsync)
    for fails_at in range(1, 100):
        disk.fails_at = 0
        world = World(tmp_path / f"{fails_at}")
        for _ in range(3):
            world.publish()
        world.lifecycle.promote("spam", 1)
        world.lifecycle.promote("spam", 2)
        disk.num_syncs, disk.fails_at = 0, fails_at
        said = failure(lambda: CHANGES[what](world))  # noqa: B023 (called at once)
        if said is None:
            break
        assert isinstance(said, told)
        assert "\n" not in str(said)
        disk.fails_at = 0

        assert not [problem for problem in world.problems() if "labels" not in problem]
        assert set(world.repository.versions("spam")) <= {1, 2, 3, 4}
        for version in world.repository.versions("spam"):
            world.repository.verify("spam", version)
        Lifecycle(world.repository, clock=world.clock).settle()
        assert [] == world.problems()
    assert fails_at > 3


def test_a_foreign_file_among_the_versions_changes_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.publish()
    (tmp_path / "spam" / "notes.state.json").write_text("mine")
    (tmp_path / "spam" / "5").write_text("a file, not a version")
    (tmp_path / "README").write_text("mine")

    world.lifecycle.promote("spam", 1)

    assert ({1}, [1]) == (world.served()["spam"].versions, world.repository.versions("spam"))


def test_a_mark_that_cannot_be_read_keeps_its_version_out(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.publish()
    world.publish()
    world.lifecycle.promote("spam", 1)
    (tmp_path / "spam" / "2.state.json").write_text("{")

    with pytest.raises(HeadServiceError, match="its state file cannot be read"):
        world.lifecycle.promote("spam", 2)

    assert [] == world.problems()
