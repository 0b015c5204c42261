import asyncio
import os
from dataclasses import astuple
from pathlib import Path

import pytest

from clients import InvalidRequest, NotFound
from head_service.control.data import TrainingData
from head_service.control.errors import StorageFull, TooLarge, WrongMediaType
from head_service.control.feedback import FeedbackRow, FeedbackStore
from head_service.control.labelled import Labelled, read_labelled
from head_service.control.uploads import Uploads, data_file
from head_service.control.words import DataSource, RunCancelledError, TrainingOrder


@pytest.fixture
def uploads(store, tmp_path: Path):
    return Uploads(store, tmp_path / "uploads", max_bytes=100, max_total_bytes=150)


@pytest.fixture
def feedback(store):
    return FeedbackStore(store, max_rows_per_day=1_000)


def receive(uploads: Uploads, *pieces: bytes, media_type: str = "text/csv", owner: str = "ann"):
    async def stream():
        for piece in pieces:
            yield piece

    return asyncio.run(uploads.receive(stream(), media_type, owner))


def files(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "uploads").iterdir())


def test_an_upload_is_kept_and_is_its_owners(uploads, tmp_path: Path):
    kept = receive(uploads, b"text,label\r\n", b"a,b\r\n", media_type="Text/CSV; charset=utf-8")

    assert b"text,label\r\na,b\r\n" == uploads.path(kept.id, "ann").read_bytes()
    assert 17 == kept.size_bytes
    assert uploads.path(kept.id) == uploads.path(kept.id, "ann")
    with pytest.raises(NotFound):
        uploads.path(kept.id, "bob")
    assert [f"{kept.id}.csv"] == files(tmp_path)


def test_what_is_too_long_empty_or_of_another_kind_leaves_nothing(uploads, tmp_path: Path):
    with pytest.raises(TooLarge):
        receive(uploads, b"x" * 60, b"y" * 60)
    with pytest.raises(InvalidRequest, match="no data"):
        receive(uploads)
    with pytest.raises(WrongMediaType):
        receive(uploads, b"x", media_type="application/x-python-pickle")
    assert [] == files(tmp_path)


def test_all_uploads_together_are_bounded_until_old_ones_are_swept(uploads, tmp_path: Path, clock):
    first = receive(uploads, b"x" * 100)
    with pytest.raises(TooLarge):
        receive(uploads, b"x" * 51)
    second = receive(uploads, b"x" * 50)
    with pytest.raises(StorageFull):
        receive(uploads, b"x")
    for name in ("left.part", "never-recorded.csv", "somebody-elses.txt"):
        (tmp_path / "uploads" / name).touch()
        os.utime(tmp_path / "uploads" / name, (0, 0))
    clock.now += 100
    uploads.sweep(50, {second.id})

    assert sorted([f"{second.id}.csv", "somebody-elses.txt"]) == files(tmp_path)
    with pytest.raises(NotFound):
        uploads.path(first.id)
    receive(uploads, b"x")


@pytest.mark.parametrize("first_size", [80, 60])
async def test_uploads_at_the_same_time_share_the_room(uploads, tmp_path: Path, first_size: int):
    has_begun, may_end = asyncio.Event(), asyncio.Event()

    async def slowly():
        yield b"x" * first_size
        has_begun.set()
        await may_end.wait()
        yield b"y" * 20

    async def at_once():
        yield b"z" * 80

    slow = asyncio.create_task(uploads.receive(slowly(), "text/csv", "ann"))
    await has_begun.wait()
    if first_size == 80:
        with pytest.raises(StorageFull):
            await uploads.receive(at_once(), "text/csv", "bob")
        may_end.set()
        kept = await slow
    else:
        # There was room for what had come of the other one, and none any more for the rest of it.
        kept = await uploads.receive(at_once(), "text/csv", "bob")
        may_end.set()
        with pytest.raises(StorageFull):
            await slow
    assert [f"{kept.id}.csv"] == files(tmp_path)


def test_a_disk_without_room_is_told_as_such(uploads, tmp_path: Path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("head_service.control.uploads._write_all", full)
    with pytest.raises(StorageFull):
        receive(uploads, b"x")
    assert [] == files(tmp_path)


@pytest.mark.parametrize(
    "path",
    [
        "../secret.csv",
        "/etc/passwd",
        "link.csv",
        "folder",
        "nothing.csv",
        "notes.txt",
        "a\x00.csv",
        "sub/../../secret.csv",
        "x" * 900,
    ],
)
def test_no_path_leads_out_of_the_data_directory(tmp_path: Path, path):
    root = tmp_path / "data"
    (root / "folder").mkdir(parents=True)
    (root / "notes.txt").touch()
    (tmp_path / "secret.csv").write_text("CANARY")
    (root / "link.csv").symlink_to(tmp_path / "secret.csv")

    with pytest.raises(InvalidRequest, match="no such") as caught:
        data_file(root, path)
    assert path not in caught.value.message


def test_a_path_below_the_data_directory_is_found_and_without_one_none_is(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.csv").touch()

    assert (tmp_path / "sub" / "a.csv").resolve() == data_file(tmp_path, "sub/a.csv")
    with pytest.raises(InvalidRequest, match="no data directory"):
        data_file(None, "a.csv")


def test_feedback_is_gathered_up_to_its_number_each_text_once(uploads, feedback, tmp_path: Path):
    (tmp_path / "a.csv").touch()
    data = TrainingData(uploads, feedback, tmp_path)
    given = [("one\u2028two", ("a", "b")), ("two", "a"), ("two", "b"), ("three", "b"), ("three", "b"), ("later", "a")]
    feedback.keep([FeedbackRow("spam", text, label, "ann") for text, label in given])
    plain = TrainingOrder(head="spam", data=DataSource(path="a.csv"))
    both = TrainingOrder(head="spam", data=DataSource(path="a.csv"), feedback_until=5)

    assert (tmp_path / "a.csv", None) == astuple(data.gather(plain, tmp_path, lambda: False))
    found = data.gather(both, tmp_path, lambda: False)

    assert tmp_path / "a.csv" == found.data
    assert {Labelled("one\u2028two", ("a", "b")), Labelled("three", "b")} == set(read_labelled(found.corrections))


def test_gathering_ends_between_two_texts_once_the_run_is_stopped(uploads, feedback, tmp_path: Path):
    feedback.keep([FeedbackRow("spam", f"text {n}", "a", "ann") for n in range(4)])
    asked = iter([False, False, True])

    with pytest.raises(RunCancelledError):
        TrainingData(uploads, feedback, None).gather(TrainingOrder(head="spam", feedback_until=9), tmp_path, lambda: next(asked))


def test_orders_without_rows_are_refused(uploads, feedback, tmp_path: Path):
    data = TrainingData(uploads, feedback, tmp_path)
    mine = receive(uploads, b"x")
    for order, error in (
        (TrainingOrder(head="spam"), InvalidRequest),
        (TrainingOrder(head="spam", data=DataSource()), InvalidRequest),
        (TrainingOrder(head="spam", data=DataSource(upload="a" * 32, path="a.csv")), InvalidRequest),
        (TrainingOrder(head="spam", data=DataSource(upload="a" * 32)), NotFound),
        (TrainingOrder(head="spam", data=DataSource(upload=mine.id)), NotFound),
    ):
        with pytest.raises(error):
            data.check(order, "bob")
    data.check(TrainingOrder(head="spam", data=DataSource(upload=mine.id)), "ann")
