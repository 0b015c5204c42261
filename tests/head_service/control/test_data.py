import asyncio
import os
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from clients import InvalidRequest, NotFound
from head_service.control.data import TrainingData, corrected, learnable
from head_service.control.errors import StorageFull, TooLarge, WrongMediaType
from head_service.control.feedback import FeedbackRow, FeedbackStore, Labelled
from head_service.control.uploads import Uploads, data_file
from head_service.control.words import DataSource, TrainingOrder
from head_service.errors import DataError
from head_service.training.dataset import rare_labels, read_dataset


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


def test_feedback_is_right_where_both_speak_of_a_text():
    base = [Labelled("one", "a"), Labelled("two", "a")]

    assert [Labelled("one", "a"), Labelled("two", "b"), Labelled("three", "b")] == corrected(
        base, [Labelled(" two ", "b"), Labelled("three", "b")]
    )


def test_corrections_that_nothing_can_be_learnt_from_are_left_out_and_counted(feedback, uploads, tmp_path: Path):
    said: list[str] = []
    (tmp_path / "a.csv").write_text("text,label\none,a\ntwo,b\nthree,a\nfour,b\n")
    kept = [("five", "a"), ("<br>", "a"), ("six", "mistyped"), ("seven", 201 * "x"), ("one", "also rare")]
    feedback.keep([FeedbackRow("spam", text, label, "ann") for text, label in kept])
    order = TrainingOrder(
        head="spam", data=DataSource(path="a.csv"), feedback_until=len(kept), preprocess=("html-strip/1",), task="single_label"
    )

    path, text, label = TrainingData(uploads, feedback, tmp_path).gather(order, tmp_path, said.append)

    assert ["one", "two", "three", "four", "five"] == read_dataset(path, text, label).texts
    assert ["4 corrections left out, since nothing can be learnt from them"] == said


def test_a_step_that_is_not_here_fails_the_run_by_its_name(feedback, uploads, tmp_path: Path):
    feedback.keep([FeedbackRow("spam", f"text {n}", "ab"[n % 2], "ann") for n in range(4)])
    order = TrainingOrder(head="spam", feedback_until=99, preprocess=("entrypoint:acme.footer/1",))

    with pytest.raises(DataError, match=r"acme\.footer"):
        TrainingData(uploads, feedback, tmp_path).gather(order, tmp_path, print)


@pytest.mark.parametrize(
    ("left_out", "order"),
    [
        ([("one", "b")], {}),
        ([("one", "mistyped")], {}),
        ([("one", "mistyped"), ("three", "mistyped too")], {}),
        ([("five", ("a", "b"))], {}),
        ([("five", "a/"), ("six", "a/")], {"level_separator": "/"}),
    ],
    ids=["the data's label is left with one", "mistyped", "twice", "of a task before", "an empty level"],
)
def test_no_correction_makes_the_data_unusable(feedback, uploads, tmp_path: Path, left_out, order):
    (tmp_path / "a.csv").write_text("text,label\none,a\ntwo,b\nthree,a\nfour,b\n")
    feedback.keep([FeedbackRow("spam", text, label, "ann") for text, label in [*left_out, ("seven", "b")]])
    asked = TrainingOrder(head="spam", data=DataSource(path="a.csv"), feedback_until=99, **order)

    path, text, label = TrainingData(uploads, feedback, tmp_path).gather(asked, tmp_path, print)

    read = read_dataset(path, text, label)
    assert {"one": "a", "two": "b", "three": "a", "four": "b", "seven": "b"} == dict(zip(read.texts, read.labels, strict=True))


LABELS = st.sets(st.sampled_from("abcd")).map(lambda labels: tuple(sorted(labels)))
ROWS = st.dictionaries(st.integers(0, 9).map(str), LABELS).map(lambda rows: [Labelled(*row) for row in rows.items()])


@given(ROWS, ROWS)
def test_whatever_is_corrected_every_label_can_be_learnt_if_each_of_the_data_can(base, corrections):
    rare = rare_labels(row.label for row in base)
    base = [row for row in base if not set(row.label) & set(rare)]
    assume(not rare_labels(row.label for row in base))

    kept = learnable(base, corrections)

    assert [] == rare_labels(row.label for row in corrected(base, kept))
    assert set(kept) <= set(corrections)
    if not rare_labels(row.label for row in corrected(base, corrections)):
        assert corrections == kept


def test_a_label_may_lose_examples_to_corrections_down_to_the_least_there_must_be(feedback, uploads, tmp_path: Path):
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"text {n},{'b' if n % 2 else 'a'}\n" for n in range(12)))
    feedback.keep([FeedbackRow("spam", f"text {n}", "b", "ann") for n in (0, 2, 4, 6, 8)])
    order = TrainingOrder(head="spam", data=DataSource(path="a.csv"), feedback_until=99)

    path, text, label = TrainingData(uploads, feedback, tmp_path).gather(order, tmp_path, print)

    assert 2 == read_dataset(path, text, label).labels.count("a")


def test_numbers_that_no_head_can_learn_are_left_out(feedback, uploads, tmp_path: Path):
    rows = [(f"text {number}", str(number)) for number in range(12)]
    feedback.keep([FeedbackRow("price", text, label, "ann") for text, label in [*rows, ("x", "1_000"), ("y", "1e39")]])
    order = TrainingOrder(head="price", feedback_until=99, task="regression")

    path, text, label = TrainingData(uploads, feedback, tmp_path).gather(order, tmp_path, print)

    assert {text for text, _ in rows} == set(read_dataset(path, text, label, task="regression").texts)


def test_rows_of_an_order_are_gathered(uploads, feedback, tmp_path: Path):
    (tmp_path / "a.csv").write_text("body,kind\none,a\ntwo,b\nthree,a\nfour,b\n")
    data = TrainingData(uploads, feedback, tmp_path)
    order = TrainingOrder(head="spam", data=DataSource(path="a.csv"), text_column="body", label_column="kind")
    feedback.keep([FeedbackRow("spam", "one", "b", "ann"), FeedbackRow("spam", "five", "a", "ann")])
    both = TrainingOrder(head="spam", data=DataSource(path="a.csv"), text_column="body", label_column="kind", feedback_until=2)

    assert (tmp_path / "a.csv", "body", "kind") == data.gather(order, tmp_path, print)
    path, text, label = data.gather(both, tmp_path, print)
    read = read_dataset(path, text, label)
    assert {"one": "b", "two": "b", "three": "a", "four": "b", "five": "a"} == dict(zip(read.texts, read.labels, strict=True))


def test_rows_with_several_labels_are_gathered_with_feedback_of_one_or_several(uploads, feedback, tmp_path: Path):
    (tmp_path / "a.csv").write_text("text,tags\none,a|b\ntwo,b\nthree,\nfour,a\n")
    rows = [("one", ("a",)), ("three", ("a", "b")), ("four", "b"), ("five", ())]
    feedback.keep([FeedbackRow("tags", text, label, "ann") for text, label in rows])
    order = TrainingOrder(head="tags", data=DataSource(path="a.csv"), feedback_until=4, task="multi_label")

    path, text, label = TrainingData(uploads, feedback, tmp_path).gather(order, tmp_path, print)

    found = {example.text: example.labels for example in read_dataset(path, text, label, task="multi_label").examples}
    assert {"one": ("a",), "two": ("b",), "three": ("a", "b"), "four": ("b",), "five": ()} == found


def test_numbers_are_gathered_with_feedback(uploads, feedback, tmp_path: Path):
    (tmp_path / "a.csv").write_text("text,value\n" + "".join(f"text {n},{n}.5\n" for n in range(12)))
    feedback.keep([FeedbackRow("price", "text 3", "7", "ann")])
    order = TrainingOrder(head="price", data=DataSource(path="a.csv"), feedback_until=1, task="regression")

    path, text, label = TrainingData(uploads, feedback, tmp_path).gather(order, tmp_path, print)

    found = [example.value for example in read_dataset(path, text, label, task="regression").examples]
    assert [7.0 if n == 3 else n + 0.5 for n in range(12)] == found


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
    with pytest.raises(DataError, match="no feedback"):
        data.gather(TrainingOrder(head="spam", feedback_until=9), tmp_path, print)
