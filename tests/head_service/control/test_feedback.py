import asyncio
import csv
import io
import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients import InvalidRequest, NotFound, Overloaded, Unavailable
from clients.wire.catalogue import Manifest, TrunkRef
from head_service.control.errors import Conflict, StorageFull
from head_service.control.feedback import (
    FeedbackRow,
    FeedbackStore,
    FeedbackWriter,
    Kept,
    check_left,
    checked,
    majority,
)
from head_service.control.labelled import Labelled, render
from head_service.training.dataset import read_dataset


@pytest.fixture
def feedback(store):
    return FeedbackStore(store, max_rows_per_day=5)


def row(text: str, label: str, key: str | None = None, owner: str = "ann") -> FeedbackRow:
    return FeedbackRow("spam", text, label, owner, key)


@pytest.mark.parametrize(
    ("labels", "label"),
    [
        (["a"], "a"),
        (["a", "b"], None),
        (["a", "b", "b"], "b"),
        (["a", "a", "b", "b", "c"], None),
        ([("a", "b"), ("a",), ("a", "b")], ("a", "b")),
        ([(), ("a",)], None),
        (["a", ("a",)], ("a",)),
    ],
)
def test_the_majority_decides_and_a_tie_does_not(labels, label):
    assert label == majority(labels)


def test_a_text_in_two_spellings_is_one_text_and_ties_are_left_out_and_counted(feedback):
    feedback.keep([row("win  now", "spam"), row("win now ", "spam"), row("win now", "ham")])
    feedback.keep([row("hello", "ham"), row("hello", "spam")])

    found = feedback.counts("spam")

    assert (5, 2, {"spam": 1}, 2, 1) == (found.num_rows, found.num_texts, found.by_label, found.num_conflicts, found.num_ties)
    assert [Labelled("win  now", "spam")] == list(feedback.dataset("spam", found.until))


def test_several_labels_of_a_text_are_kept_and_given_back_as_they_were(feedback):
    feedback.keep([row("one", ("a", "b")), row("two", ()), row("three", ("a, b",))])

    found = {example.text: example.label for example in feedback.dataset("spam", 10**9)}

    assert {"one": ("a", "b"), "two": (), "three": ("a, b",)} == found
    assert {"a": 1, "b": 1, "a, b": 1} == feedback.counts("spam").by_label
    [first] = feedback.keep([row("four", ("a",), "k")])
    again, other = feedback.keep([row("four", ("a",), "k"), row("four", "a", "k")])
    assert Kept(first.id, is_new=False) == again
    assert isinstance(other, Conflict)


def test_rows_that_came_after_are_not_in_a_dataset_of_before(feedback):
    feedback.keep([row("one", "ham")])
    until = feedback.newest("spam")
    feedback.keep([row("one", "spam"), row("two", "spam")])

    assert [Labelled("one", "ham")] == list(feedback.dataset("spam", until))
    assert 2 == feedback.num_since("spam", until)


def test_a_dataset_is_read_by_the_page(feedback, monkeypatch):
    monkeypatch.setattr("head_service.control.feedback.PAGE_ROWS", 2)
    texts = [f"text {n % 3}" for n in range(5)]
    feedback.keep([row(text, "ham") for text in texts])

    assert {"text 0", "text 1", "text 2"} == {found.text for found in feedback.dataset("spam", 10**9)}
    assert 5 == feedback.counts("spam").num_rows


def test_a_key_keeps_once_and_is_refused_for_something_else(feedback):
    [first] = feedback.keep([row("a", "ham", "k")])
    again, other, others = feedback.keep([row("a", "ham", "k"), row("b", "ham", "k"), row("a", "ham", "k", owner="bob")])

    assert Kept(first.id, is_new=False) == again
    assert isinstance(other, Conflict)
    assert others.is_new
    assert 2 == feedback.counts("spam").num_rows


def test_a_days_rows_are_bounded_for_each_owner_until_midnight(feedback, clock):
    answers = feedback.keep([row(f"text {n}", "ham") for n in range(7)])

    assert [True] * 5 + [False] * 2 == [isinstance(answer, Kept) for answer in answers]
    assert isinstance(answers[5], Overloaded)
    assert 0 < answers[5].retry_after <= 86_400
    assert isinstance(feedback.keep([row("x", "ham", owner="bob")])[0], Kept)
    clock.now += answers[5].retry_after
    assert isinstance(feedback.keep([row("x", "ham")])[0], Kept)
    assert 7 == feedback.counts("spam").num_rows


@given(st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"])), st.text(min_size=1, alphabet="ab c"))))
def test_what_is_rendered_is_read_back(rows):
    examples = [Labelled(text, label) for text, label in rows]

    lines = "".join(render(examples, "csv"))
    read = [Labelled(*cells) for cells in list(csv.reader(io.StringIO(lines, newline="")))[1:]]
    parsed = [Labelled(**json.loads(line)) for line in render(examples, "jsonl")]

    assert examples == parsed
    assert examples == read


def test_training_reads_what_is_rendered(tmp_path: Path):
    examples = [Labelled(f'a "quoted", {n}\nline', "even" if n % 2 else "odd") for n in range(6)]
    for form in ("csv", "jsonl"):
        path = tmp_path / f"rows.{form}"
        path.write_text("".join(render(examples, form)), newline="")

        assert [example.text for example in examples] == read_dataset(path).texts

        several = [Labelled(f"text {n}", ("a", "b")[n % 3 :]) for n in range(6)]
        path.write_text("".join(render(several, form)), newline="")
        assert [example.label for example in several] == [each.labels for each in read_dataset(path, task="multi_label").examples]


LIVE = Manifest(name="spam", version=1, labels=("ham", "spam"), width=4, trunk=TrunkRef("t", "sha256:0"))
TAGS = Manifest(name="tags", version=1, task="multi_label", labels=("a", "b"), width=4, trunk=TrunkRef("t", "sha256:0"))
PRICE = Manifest(name="price", version=1, task="regression", labels=("value",), width=4, trunk=TrunkRef("t", "sha256:0"))


def test_a_label_must_be_one_of_the_heads_unless_new_ones_are_allowed():
    assert "ham" == checked("ham", LIVE, "spam", allow_new=False)
    assert "CANARY" == checked("CANARY", LIVE, "spam", allow_new=True)
    assert "-1.5e3" == checked("-1.5e3", PRICE, "price", allow_new=False)
    with pytest.raises(InvalidRequest, match="ham, spam") as caught:
        checked("CANARY", LIVE, "spam", allow_new=False)
    assert "CANARY" not in caught.value.message
    for label in ("cheap", "nan", "inf", "1_000", "1e39", "\u0661\u0662", ""):
        with pytest.raises(InvalidRequest, match="a number"):
            checked(label, PRICE, "price", allow_new=True)
    for label in (201 * "x", "\ud800"):
        with pytest.raises(InvalidRequest, match=r"^a label "):
            checked(label, LIVE, "spam", allow_new=True)
    with pytest.raises(NotFound):
        checked("ham", None, "spam", allow_new=True)


def test_a_new_label_has_the_levels_of_the_heads():
    levels = msgspec.structs.replace(LIVE, label_separator="/")

    assert "a/b" == checked("a/b", levels, "spam", allow_new=True)
    with pytest.raises(InvalidRequest, match="empty level"):
        checked("a/", levels, "spam", allow_new=True)


def test_a_text_that_the_heads_steps_leave_nothing_of_is_refused():
    check_left("<b>a</b>", ("html-strip/1",))
    check_left("a", ())
    with pytest.raises(InvalidRequest, match="nothing is left of the text after html-strip/1"):
        check_left("<br>", ("html-strip/1",))


def test_feedback_is_kept_where_a_step_of_its_head_is_not_installed():
    check_left("<br>", ("html-strip/1", "entrypoint:acme.footer/1"))


def test_a_head_that_answers_with_several_labels_takes_one_or_a_list_and_others_take_one():
    assert ("b",) == checked("b", TAGS, "tags", allow_new=False)
    assert ("a", "b") == checked(("a", "b"), TAGS, "tags", allow_new=False)
    assert () == checked((), TAGS, "tags", allow_new=False)
    with pytest.raises(InvalidRequest, match="they are: a, b"):
        checked(("a", "CANARY"), TAGS, "tags", allow_new=False)
    with pytest.raises(InvalidRequest, match="send label in place of labels"):
        checked(("ham",), LIVE, "spam", allow_new=True)


class Disk:
    """Keeps rows when it is let; *batches* is what it was given, in order."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        self.fault: Exception | None = None

    def keep(self, rows):
        asyncio.run_coroutine_threadsafe(self.gate.wait(), self.loop).result(10)
        self.batches.append([row.text for row in rows])
        if self.fault:
            raise self.fault
        return [Kept(row.text, is_new=True) for row in rows]


async def test_what_arrives_while_the_disk_is_busy_is_committed_together():
    disk = Disk()
    writer = FeedbackWriter(disk.keep, max_batch=3)
    writes = [asyncio.create_task(writer.write(row(str(n), "ham"))) for n in range(6)]
    await asyncio.sleep(0)
    disk.gate.set()
    kept = await asyncio.gather(*writes)
    await writer.close()

    assert [str(n) for n in range(6)] == [found.id for found in kept]
    assert [["0", "1", "2"], ["3", "4", "5"]] == disk.batches


async def test_nothing_is_acknowledged_when_the_commit_fails_and_the_next_one_may_go_well():
    disk = Disk()
    disk.gate.set()
    disk.fault = StorageFull("full")
    writer = FeedbackWriter(disk.keep)
    with pytest.raises(StorageFull):
        await writer.write(row("a", "ham"))
    disk.fault = None

    assert "b" == (await writer.write(row("b", "ham"))).id
    await writer.close()


async def test_a_full_line_refuses_and_a_departed_caller_harms_nobody():
    disk = Disk()
    writer = FeedbackWriter(disk.keep, max_pending=3, max_batch=1)
    writes = [asyncio.create_task(writer.write(row(str(n), "ham"))) for n in range(3)]
    while len(writer._pending) != 2:
        await asyncio.sleep(0)
    writes[1].cancel()
    writes.append(asyncio.create_task(writer.write(row("3", "ham"))))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await writer.write(row("x", "ham"))
    disk.gate.set()

    assert ["0", "2", "3"] == [found.id for found in await asyncio.gather(writes[0], *writes[2:])]
    await writer.close()
    with pytest.raises(Unavailable):
        await writer.write(row("late", "ham"))


async def test_closing_writes_what_waits():
    disk = Disk()
    writer = FeedbackWriter(disk.keep, max_batch=1)
    writes = [asyncio.create_task(writer.write(row(str(n), "ham"))) for n in range(4)]
    await asyncio.sleep(0)
    closing = asyncio.create_task(writer.close())
    await asyncio.sleep(0)
    disk.gate.set()
    await closing

    assert 4 == len(await asyncio.gather(*writes))
