from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from head_service.control.corrections import corrected, learnable, with_corrections
from head_service.control.labelled import Given, Labelled, render
from head_service.control.words import TrainingOrder
from head_service.errors import DataError
from head_service.training.dataset import rare_labels, read_dataset

DATA = "text,label\none,a\ntwo,b\nthree,a\nfour,b\n"


@pytest.fixture
def merge(tmp_path: Path):
    """The file of rows that *data* and what people said of it make together."""

    def merged(
        order: TrainingOrder, data: str | None, said: list[tuple[str, Given]], tell: Callable[[str], None] = print
    ) -> Path:
        file, corrections = tmp_path / "a.csv", tmp_path / "given.jsonl"
        file.write_text(data or "")
        corrections.write_text("".join(render([Labelled(*row) for row in said], "jsonl")))
        columns = (order.text_column, order.label_column)
        return with_corrections(order, file if data else None, columns, corrections, tmp_path, tell)

    return merged


def test_the_rows_are_those_of_the_data_as_corrected_and_the_others(merge):
    order = TrainingOrder(head="spam", text_column="body", label_column="kind")

    read = read_dataset(merge(order, DATA.replace("text,label", "body,kind"), [("one", "b"), ("five", "a")]), "text", "label")

    assert {"one": "b", "two": "b", "three": "a", "four": "b", "five": "a"} == dict(zip(read.texts, read.labels, strict=True))


def test_feedback_is_right_where_both_speak_of_a_text():
    base = [Labelled("one", "a"), Labelled("two", "a")]

    assert [Labelled("one", "a"), Labelled("two", "b"), Labelled("three", "b")] == corrected(
        base, [Labelled(" two ", "b"), Labelled("three", "b")]
    )


def test_corrections_that_nothing_can_be_learnt_from_are_left_out_and_counted(merge):
    told: list[str] = []
    said = [("five", "a"), ("<br>", "a"), ("six", "mistyped"), ("seven", 201 * "x"), ("one", "also rare")]

    rows = merge(TrainingOrder(head="spam", preprocess=("html-strip/1",)), DATA, said, told.append)

    assert ["one", "two", "three", "four", "five"] == read_dataset(rows, "text", "label").texts
    assert ["4 corrections left out, since nothing can be learnt from them"] == told


def test_a_step_that_is_not_here_fails_the_run_by_its_name(merge):
    with pytest.raises(DataError, match=r"acme\.footer"):
        merge(TrainingOrder(head="spam", preprocess=("entrypoint:acme.footer/1",)), DATA, [("five", "a")])


def test_nothing_at_all_is_refused(merge):
    with pytest.raises(DataError, match="no feedback"):
        merge(TrainingOrder(head="spam"), None, [("five", 201 * "x")])


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
def test_no_correction_makes_the_data_unusable(merge, left_out, order):
    read = read_dataset(merge(TrainingOrder(head="spam", **order), DATA, [*left_out, ("seven", "b")]), "text", "label")

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
    assert [row for row in corrections if row in kept] == kept
    if not rare_labels(row.label for row in corrected(base, corrections)):
        assert corrections == kept


def test_data_whose_own_labels_are_rare_is_left_to_who_reads_it():
    base = [Labelled("one", "a"), Labelled("two", "b"), Labelled("three", "b")]

    assert [] == learnable(base, [Labelled("three", "c")])


def test_many_labels_get_back_the_one_example_each_that_corrections_took():
    labels = [f"label {n}" for n in range(10_000)]
    base = [Labelled(f"{label} {n}", label) for label in labels for n in range(2)]

    kept = learnable(base, [Labelled(f"{label} 0", labels[0]) for label in labels])

    assert [Labelled(f"{labels[0]} 0", labels[0])] == kept


def test_a_label_may_lose_examples_to_corrections_down_to_the_least_there_must_be(merge):
    data = "text,label\n" + "".join(f"text {n},{'b' if n % 2 else 'a'}\n" for n in range(12))

    rows = merge(TrainingOrder(head="spam"), data, [(f"text {n}", "b") for n in (0, 2, 4, 6, 8)])

    assert 2 == read_dataset(rows, "text", "label").labels.count("a")


def test_numbers_that_no_head_can_learn_are_left_out(merge):
    said = [(f"text {number}", str(number)) for number in range(12)]

    rows = merge(TrainingOrder(head="price", task="regression"), None, [*said, ("x", "1_000"), ("y", "1e39")])

    assert [text for text, _ in said] == read_dataset(rows, "text", "label", task="regression").texts


def test_rows_with_several_labels_are_merged_with_feedback_of_one_or_several(merge):
    said = [("one", ("a",)), ("three", ("a", "b")), ("four", "b"), ("five", ())]

    rows = merge(TrainingOrder(head="tags", task="multi_label"), "text,tags\none,a|b\ntwo,b\nthree,\nfour,a\n", said)

    found = {example.text: example.labels for example in read_dataset(rows, "text", "label", task="multi_label").examples}
    assert {"one": ("a",), "two": ("b",), "three": ("a", "b"), "four": ("b",), "five": ()} == found


def test_numbers_are_merged_with_feedback(merge):
    data = "text,value\n" + "".join(f"text {n},{n}.5\n" for n in range(12))

    rows = merge(TrainingOrder(head="price", task="regression"), data, [("text 3", "7")])

    found = [example.value for example in read_dataset(rows, "text", "label", task="regression").examples]
    assert [7.0 if n == 3 else n + 0.5 for n in range(12)] == found
