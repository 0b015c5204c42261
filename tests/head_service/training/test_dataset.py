import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clients.wire.catalogue import Task
from head_service.errors import DataError
from head_service.training.dataset import MAX_COMPLAINTS, Dataset, Example, check_levels, read_dataset, split
from head_service.training.rows import DataLimits

GOOD = "text,label\ngood one,a\ngood two,a\nbad one,b\nbad two,b\n"


def written(tmp_path: Path, content: str | bytes, name: str = "data.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def complaint(path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_dataset(path, **options)
    return str(caught.value)


def test_texts_labels_and_lines_are_read(tmp_path: Path) -> None:
    data = read_dataset(written(tmp_path, GOOD))

    assert ["good one", "good two", "bad one", "bad two"] == data.texts
    assert ["a", "a", "b", "b"] == data.labels
    assert [2, 3, 4, 5] == [example.line for example in data.examples]


def test_a_tab_separated_and_a_jsonl_file_say_the_same(tmp_path: Path) -> None:
    tsv = written(tmp_path, GOOD.replace(",", "\t"), "data.tsv")
    jsonl = written(
        tmp_path,
        '{"text": "x", "label": 1}\n{"text": "y", "label": 1}\n{"text": "z", "label": 2}\n{"text": "w", "label": 2}\n',
        "d.jsonl",
    )

    assert read_dataset(written(tmp_path, GOOD)).digest() == read_dataset(tsv).digest()
    assert ["1", "1", "2", "2"] == read_dataset(jsonl).labels
    assert [1, 2, 3, 4] == [example.line for example in read_dataset(jsonl).examples]


@pytest.mark.parametrize("start", ["", "\ufeff", "\r\n"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("separator", [";", "\t"])
def test_the_semicolons_and_tabs_of_spreadsheets_are_seen(tmp_path: Path, separator: str, end: str, start: str) -> None:
    lines = [line.replace(",", separator) for line in GOOD.splitlines()]
    lines[1] = f"good, one{separator}a"

    data = read_dataset(written(tmp_path, start + end.join([*lines, ""])))

    assert ["good, one", "good two", "bad one", "bad two"] == data.texts
    assert ["a", "a", "b", "b"] == data.labels


def test_a_semicolon_beside_commas_is_part_of_a_name(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD.replace("text,label", "text;prose,label"))

    assert 4 == len(read_dataset(path, text_column="text;prose").examples)


def test_lists_of_labels_are_told_which_task_takes_them(tmp_path: Path) -> None:
    rows = "".join(f'{{"text": "text {n}", "labels": ["a"]}}\n' for n in range(4))

    told = complaint(written(tmp_path, rows, "d.jsonl"), label_column="labels")

    assert "a label is a list, which the task multi_label takes, in lines 1, 2, 3, 4" in told


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    assert 4 == len(read_dataset(written(tmp_path, b"\xef\xbb\xbf" + GOOD.encode())).examples)


def test_usual_column_names_are_found_whatever_their_case(tmp_path: Path) -> None:
    assert read_dataset(written(tmp_path, GOOD.replace("text,label", "Review,TARGET"))).texts[0] == "good one"


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD.replace("text,label", "prose,kind"))

    assert ["a", "a", "b", "b"] == read_dataset(path, "prose", "kind").labels


def test_a_missing_column_names_those_there_are(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD.replace("text,label", "prose,kind"))

    assert "there is no column 'words'; the file has: prose, kind" == complaint(path, text_column="words")
    assert "--text-column; the file has: prose, kind" in complaint(path)
    assert "--label-column; the file has: prose, kind" in complaint(path, text_column="prose")


def test_one_class_is_not_enough(tmp_path: Path) -> None:
    assert "there is only one label" in complaint(written(tmp_path, "text,label\nx,a\ny,a\n"))


def test_empty_texts_and_labels_are_named_by_line(tmp_path: Path) -> None:
    told = complaint(written(tmp_path, GOOD + ",a\n  \t ,b\nsomething, \n"))

    assert "the text is empty in lines 6, 7" in told
    assert "the label is empty in line 8" in told


def test_a_text_of_nothing_but_dropped_characters_is_empty(tmp_path: Path) -> None:
    assert "the text is empty in line 6" in complaint(written(tmp_path, GOOD + "\u200b\u0007,a\n"))


def test_a_row_that_is_too_short_lacks_its_label(tmp_path: Path) -> None:
    assert "there is no label in line 6" in complaint(written(tmp_path, GOOD + "alone\n"))


def test_equal_texts_with_different_labels_are_named_by_both_lines(tmp_path: Path) -> None:
    told = complaint(written(tmp_path, GOOD + "good   one,b\n"))

    assert "one text has different labels in lines 2, 6" in told
    assert "good one" not in told


def test_a_label_with_a_single_example_is_named_with_its_line(tmp_path: Path) -> None:
    assert "the label 'c' has a single example (line 6)" in complaint(written(tmp_path, GOOD + "odd one out,c\n"))


def test_a_label_left_with_one_example_after_repetitions_is_a_single_example(tmp_path: Path) -> None:
    assert "the label 'c' has a single example (line 6)" in complaint(written(tmp_path, GOOD + "same,c\nsame,c\n"))


def test_all_problems_are_told_at_once_up_to_a_bound(tmp_path: Path) -> None:
    rows = "".join(f"text {n},a\ntext {n},b\n" for n in range(MAX_COMPLAINTS + 7))

    told = complaint(written(tmp_path, "text,label\n" + rows))

    assert MAX_COMPLAINTS == told.count("one text has different labels")
    assert "more" in told.splitlines()[-1]


def test_many_empty_rows_are_counted_after_ten(tmp_path: Path) -> None:
    assert "15, 16 and 5 more" not in complaint(written(tmp_path, GOOD + ",a\n" * 15))
    assert "14, 15 and 5 more" in complaint(written(tmp_path, GOOD + ",a\n" * 15))


def test_a_byte_that_is_not_utf_8_is_named_by_line(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD.encode() + b"caf\xe9,a\n")

    assert "data.csv is not UTF-8: line 6 has a byte that cannot be read; save it as UTF-8" == complaint(path)


def test_an_unknown_kind_of_file_is_told_with_the_known_ones(tmp_path: Path) -> None:
    assert "data.xlsx is of an unknown kind: training data is read from .csv, .tsv and .jsonl" == complaint(
        written(tmp_path, GOOD, "data.xlsx")
    )


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    assert "cannot be read: No such file or directory" in complaint(tmp_path / "none.csv")


@pytest.mark.parametrize("line", ["{broken", "[1, 2]", '"words"', ""])
def test_a_broken_jsonl_line_is_named(tmp_path: Path, line: str) -> None:
    path = written(tmp_path, f'{{"text": "x", "label": "a"}}\n{line}\n{{"text": "y", "label": "b"}}\n', "data.jsonl")

    assert "line 2 is not a JSON object" == complaint(path)


def test_a_jsonl_text_may_hold_a_line_separator_of_unicode(tmp_path: Path) -> None:
    rows = "".join(f'{{"text": "{n}\u2028more\x85", "label": "{n % 2}"}}\n' for n in range(4))

    assert [1, 2, 3, 4] == [example.line for example in read_dataset(written(tmp_path, rows, "data.jsonl")).examples]


def test_json_nested_too_deep_is_a_broken_line(tmp_path: Path) -> None:
    assert "line 1 is not a JSON object" == complaint(written(tmp_path, "[" * 100_000, "data.jsonl"))


@pytest.mark.parametrize(("name", "content"), [("e.csv", ""), ("e.csv", "text,label\n"), ("e.jsonl", "")])
def test_a_file_without_rows_is_told(tmp_path: Path, name: str, content: str) -> None:
    assert "there are no rows" == complaint(written(tmp_path, content, name))


def test_an_open_quote_is_told_with_the_line_of_its_row(tmp_path: Path) -> None:
    assert complaint(written(tmp_path, GOOD + '"never closed,a\nmore,b\n')).startswith("line 6 is not a row: ")


def test_cells_of_several_lines_keep_the_line_numbers_right(tmp_path: Path) -> None:
    data = read_dataset(written(tmp_path, 'text,label\n"one\ntwo\nthree",a\nfour,a\n"five\nsix",b\nseven,b\n'))

    assert [2, 5, 6, 8] == [example.line for example in data.examples]
    assert "one\ntwo\nthree" == data.texts[0]


def test_a_header_of_two_lines_keeps_the_line_numbers_right(tmp_path: Path) -> None:
    data = read_dataset(written(tmp_path, '"a\nnote",text,label\n1,x,a\n1,y,a\n1,z,b\n1,w,b\n'))

    assert [3, 4, 5, 6] == [example.line for example in data.examples]


def test_blank_lines_between_rows_keep_the_line_numbers_right(tmp_path: Path) -> None:
    data = read_dataset(written(tmp_path, "text,label\nx,a\n\n\ny,a\nz,b\nw,b\n"))

    assert [2, 5, 6, 7] == [example.line for example in data.examples]


def test_repeated_rows_are_dropped_and_counted(tmp_path: Path) -> None:
    data = read_dataset(written(tmp_path, GOOD + "good one,a\ngood  one,a\n"))

    assert 4 == len(data.examples)
    assert 2 == data.num_repeated


def test_held_out_rows_are_taken_as_they_are(tmp_path: Path) -> None:
    path = written(tmp_path, "text,label\nx,a\nx,b\nx,a\ny,c\n")

    assert ["a", "b", "a", "c"] == read_dataset(path, for_training=False).labels


def test_held_out_rows_are_not_empty(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the text is empty in line 3"):
        read_dataset(written(tmp_path, "text,label\nx,a\n,b\n"), for_training=False)


def test_the_split_keeps_each_labels_share_and_loses_nothing() -> None:
    data = Dataset(tuple(Example(f"text {n}", "rare" if n % 10 == 0 else "often", n + 2) for n in range(100)))

    train, held = split(data, share=0.2)

    assert 2 == held.labels.count("rare")
    assert 18 == held.labels.count("often")
    assert sorted(data.texts) == sorted(train.texts + held.texts)


def test_the_split_leaves_one_of_two_examples_on_each_side() -> None:
    data = Dataset((Example("x", "a", 2), Example("y", "a", 3), Example("z", "b", 4), Example("w", "b", 5)))

    for share in (0.01, 0.99):
        train, held = split(data, share=share)

        assert {"a", "b"} == set(train.labels) == set(held.labels)


def test_the_split_is_repeatable_and_depends_on_the_seed() -> None:
    data = Dataset(tuple(Example(f"text {n}", str(n % 3), n + 2) for n in range(60)))

    assert split(data, seed=1) == split(data, seed=1)
    assert split(data, seed=1) != split(data, seed=2)


def test_a_label_is_one_line_however_it_is_written(tmp_path: Path) -> None:
    path = written(tmp_path, 'text,label\nx,"a\nb"\ny,a  b\nz,c\nw,c\n')

    assert ["a b", "a b", "c", "c"] == read_dataset(path).labels


MULTI = "text,tags\none,a|b\ntwo, b | a |\nthree,\nfour,c\nfive,c|a\n"
NUMBERS = "text,stars\n" + "".join(f"text {n},{n}.5\n" for n in range(12))


def test_several_labels_are_read_sorted_and_once_each(tmp_path: Path) -> None:
    data = read_dataset(written(tmp_path, MULTI), task="multi_label")

    assert [("a", "b"), ("a", "b"), (), ("c",), ("a", "c")] == [example.labels for example in data.examples]
    assert ["a, b", "a, b", "", "c", "a, c"] == data.labels
    assert ("a", "b", "c") == data.label_names
    assert [[1, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1], [1, 0, 1]] == data.truth().tolist()


def test_lists_of_jsonl_and_another_separator_say_the_same(tmp_path: Path) -> None:
    rows = [("one", ["b", "a"]), ("two", ["a", "b", "a"]), ("three", []), ("four", ["c"]), ("five", ["a", "c"])]
    jsonl = written(tmp_path, "".join(json.dumps({"text": text, "labels": labels}) + "\n" for text, labels in rows), "d.jsonl")
    semicolons = written(tmp_path, MULTI.replace("|", ";"), "semicolons.csv")
    expected = read_dataset(written(tmp_path, MULTI), task="multi_label").digest()

    assert expected == read_dataset(jsonl, task="multi_label").digest()
    assert expected == read_dataset(semicolons, task="multi_label", label_separator=";").digest()


def test_no_cell_is_not_an_empty_list_of_labels(tmp_path: Path) -> None:
    told = complaint(written(tmp_path, MULTI + "six\n"), task="multi_label")
    jsonl = '{"text": "x", "labels": ["a"]}\n{"text": "y", "labels": null}\n{"text": "z"}\n{"text": "w", "labels": {"a": 1}}\n'
    told_of_jsonl = complaint(written(tmp_path, jsonl, "d.jsonl"), task="multi_label")

    assert "there are no labels (none at all is an empty cell, or [] in .jsonl) in line 7" in told
    assert "in .jsonl) in lines 2, 3" in told_of_jsonl
    assert "the labels are neither a string nor a list of strings in line 4" in told_of_jsonl


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("x,\ny,\n", "no text has a label"),
        ("x,a\ny,a\n", "there is only one label"),
        ("x,a|b\ny,a\nz,a\n", "the label 'b' has a single example (line 2)"),
        ("x,a|b\nx,b\ny,a\n", "one text has different labels in lines 2, 3"),
    ],
)
def test_labels_that_cannot_be_learned_are_told(tmp_path: Path, rows: str, expected: str) -> None:
    assert expected in complaint(written(tmp_path, "text,tags\n" + rows), task="multi_label")


def test_one_label_that_some_texts_lack_can_be_learned(tmp_path: Path) -> None:
    data = read_dataset(written(tmp_path, "text,tags\nx,a\ny,a\nz,\n"), task="multi_label")

    assert [[1], [1], [0]] == data.truth().tolist()


def test_an_empty_separator_is_refused(tmp_path: Path) -> None:
    assert "the separator of labels is empty" in complaint(written(tmp_path, MULTI), task="multi_label", label_separator="")


def test_a_label_of_levels_has_no_empty_one() -> None:
    check_levels(Dataset((Example("a", "sport/tennis", 2), Example("b", "news", 3))), "/")
    check_levels(Dataset((Example("a", "", 2), Example("b", "a/b, c", 3, ("a/b", "c"))), task="multi_label"), "/")
    # Without a separator there are no levels.
    check_levels(Dataset((Example("a", "/", 2),)), "")


@pytest.mark.parametrize("label", ["sport/", "/tennis", "sport//tennis", "sport/ /tennis", "/"])
def test_an_empty_level_is_told_by_its_line(label: str) -> None:
    for data in (
        Dataset((Example("a", "news", 2), Example("b", label, 3))),
        Dataset((Example("a", "news", 2, ("news",)), Example("b", label, 3, ("news", label))), task="multi_label"),
    ):
        with pytest.raises(DataError, match="a label has an empty level in line 3") as raised:
            check_levels(data, "/")
        assert label not in str(raised.value).partition("in line")[0]


def test_numbers_have_no_levels() -> None:
    with pytest.raises(DataError, match="numbers have no levels"):
        check_levels(Dataset((Example("a", "1.5", 2, value=1.5),), task="regression"), "/")


def test_numbers_are_read(tmp_path: Path) -> None:
    data = read_dataset(written(tmp_path, NUMBERS), task="regression")

    assert np.float32 == data.truth().dtype
    assert [n + 0.5 for n in range(12)] == data.truth().tolist()
    assert ("value",) == data.label_names
    assert "0.5" == data.labels[0]


@pytest.mark.parametrize("cell", ["nan", "inf", "1e39", "-1e400", "1_0", "0x10", "three", '"1,5"', "٣"])
def test_what_is_not_a_finite_number_is_told_by_its_line_alone(tmp_path: Path, cell: str) -> None:
    told = complaint(written(tmp_path, NUMBERS + f"odd,{cell}\n"), task="regression")

    assert "in line 14" in told
    assert cell.strip('"') not in told.replace("in line 14", "").replace("float32", "")


@pytest.mark.parametrize("value", ["NaN", "1e400", "true", "[1]", '"x"', "9" * 400])
def test_what_json_calls_a_number_must_be_finite_too(tmp_path: Path, value: str) -> None:
    rows = "".join(f'{{"text": "text {n}", "score": {n}}}\n' for n in range(12)) + f'{{"text": "odd", "score": {value}}}\n'

    assert "in line 13" in complaint(written(tmp_path, rows, "d.jsonl"), task="regression")


def test_numbers_that_teach_nothing_are_told(tmp_path: Path) -> None:
    few = written(tmp_path, "text,stars\nx,1\ny,2\n", "few.csv")
    equal = written(tmp_path, "text,stars\n" + "".join(f"text {n},1\n" for n in range(12)), "equal.csv")

    assert "there are only 2 numbers; a regression needs at least 10" in complaint(few, task="regression")
    assert "all numbers are equal" in complaint(equal, task="regression")


def test_more_cells_than_columns_are_told(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD + "one, two,a\nfine,a\nmore,b,,\n")

    for for_training in (True, False):
        assert "there are more cells than columns in lines 6, 8" in complaint(path, for_training=for_training)


def test_two_columns_of_one_name_are_told(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD.replace("text,label", "text,label,label").replace(",a", ",a,b").replace(",b\n", ",b,a\n"))

    assert "there are 2 columns of one name, and one of them is the label" in complaint(path)


def test_bounds_are_told_and_nothing_is_cut(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)

    assert "data.csv is larger than 20 bytes" in complaint(path, limits=DataLimits(max_bytes=20))
    assert "there are more than 3 rows" in complaint(path, limits=DataLimits(max_rows=3))
    assert "there are 2 labels, and 1 is the most" in complaint(path, limits=DataLimits(max_labels=1))
    assert 4 == len(read_dataset(path, limits=DataLimits(len(GOOD), 4, 2)).examples)


def test_a_label_that_is_a_text_is_told(tmp_path: Path) -> None:
    told = complaint(written(tmp_path, GOOD + f"swapped,{'long ' * 50}\n"))

    assert "a label is longer than 200 characters (is another column the label?) in line 6" in told


def test_half_a_character_is_no_label(tmp_path: Path) -> None:
    rows = '{"text": "x", "label": "\\ud800"}\n{"text": "y", "label": "b"}\n'

    assert "half of a surrogate pair, which is no character in line 1" in complaint(written(tmp_path, rows, "d.jsonl"))


def test_half_a_character_is_told_in_a_text_too(tmp_path: Path) -> None:
    rows = '{"text": "cut off \\ud83d", "label": "a"}\n{"text": "y", "label": "b"}\n'

    assert "the text holds half of a surrogate pair, which is no character in line 1" in complaint(
        written(tmp_path, rows, "d.jsonl")
    )


def test_a_header_of_nonsense_is_shown_short_and_clean(tmp_path: Path) -> None:
    told = complaint(written(tmp_path, ",".join(["x" * 500, "\x1b[31m", *map(str, range(100))]) + "\n1,2\n"))

    assert len(told) < 400
    assert "\x1b" not in told
    assert told.endswith("and 82 more")


def test_labels_a_head_does_not_know_are_told_with_their_lines() -> None:
    data = Dataset((Example("x", "a", 2), Example("y", "b", 3), Example("z", "b", 9)))

    assert [1, 0, 0] == data.truth(["b", "a"]).tolist()
    with pytest.raises(DataError, match="the label 'b' in lines 3, 9 is none the head knows"):
        data.truth(["a"])


def test_the_digest_tells_tasks_and_answers_apart() -> None:
    one = Dataset((Example("x", "a, b", 2, labels=("a, b",)),), task="multi_label")
    two = Dataset((Example("x", "a, b", 2, labels=("a", "b")),), task="multi_label")
    number = Dataset((Example("x", "1.0", 2, value=1.0),), task="regression")

    assert 3 == len({one.digest(), two.digest(), number.digest()})


label_sets = st.lists(st.sets(st.sampled_from("abcdef"), max_size=4), min_size=2, max_size=60)


@given(label_sets, st.floats(0.05, 0.5), st.integers(0, 5))
def test_the_split_of_several_labels_loses_nothing_and_leaves_each_label_to_learn(
    sets: list[set[str]], share: float, seed: int
) -> None:
    data = Dataset(
        tuple(Example(f"text {n}", "", n, labels=tuple(sorted(labels))) for n, labels in enumerate(sets)), task="multi_label"
    )

    train, held = split(data, share, seed)

    assert sorted(data.texts) == sorted(train.texts + held.texts)
    assert "multi_label" == train.task == held.task
    assert data.label_names == train.label_names
    assert (train, held) == split(data, share, seed)


def test_the_split_of_several_labels_keeps_each_labels_share() -> None:
    random = np.random.default_rng(0)
    odds = {"often": 0.5, "sometimes": 0.2, "rarely": 0.02}
    sets = [tuple(label for label, odd in odds.items() if random.random() < odd) for _ in range(2_000)]
    data = Dataset(tuple(Example(f"text {n}", "", n, labels=labels) for n, labels in enumerate(sets)), task="multi_label")

    _, held = split(data, 0.2)

    assert abs(len(held.examples) - 400) <= 8
    for label in odds:
        all_of_it = sum(label in labels for labels in sets)
        assert abs(sum(label in example.labels for example in held.examples) - 0.2 * all_of_it) <= 0.02 * all_of_it + 1


def test_the_split_of_numbers_holds_out_low_and_high_ones() -> None:
    values = np.random.default_rng(0).exponential(size=500)
    data = Dataset(tuple(Example(f"text {n}", "", n, value=float(value)) for n, value in enumerate(values)), task="regression")

    train, held = split(data, 0.2)

    assert (400, 100) == (len(train.examples), len(held.examples))
    for quantile in (0.1, 0.5, 0.9):
        assert abs(np.quantile(train.truth(), quantile) - np.quantile(held.truth(), quantile)) < 0.25
    assert (train, held) == split(data, 0.2)


def grown(task: Task, count: int) -> Dataset:
    """Rows of *task*: more of them begin with the same ones, but for those that come in between."""
    random = np.random.default_rng(0)
    rows = []
    for n in range(count):
        labels = tuple(sorted(label for label, odd in {"often": 0.5, "rarely": 0.1}.items() if random.random() < odd))
        rows.append(Example(f"text {n}", "abc"[n % 3], n, labels=labels, value=float(random.exponential())))
    return Dataset(tuple(sorted(rows, key=lambda row: row.line * 7 % 101)), task=task)


@pytest.mark.parametrize("task", get_args(Task))
def test_more_rows_and_another_order_move_hardly_any_text_to_the_other_part(task: Task) -> None:
    train, held = split(grown(task, 1_500))
    later_train, later_held = split(grown(task, 1_560))

    assert len(set(later_held.texts) & set(train.texts)) <= 0.03 * len(held.texts)
    assert len(set(later_train.texts) & set(held.texts)) <= 0.03 * len(held.texts)
    assert set(held.texts) == set(split(Dataset(grown(task, 1_500).examples[::-1], task=task))[1].texts)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(
        st.binary(max_size=200),
        st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")),
        st.lists(st.sampled_from(["text", "label", ",", "\n", '"', "a", "|", "1.5", "\t", "nan", "\x00"]), max_size=60).map(
            lambda parts: ("text,label\n" + "".join(parts)).encode()
        ),
        st.lists(
            st.dictionaries(
                st.sampled_from(["text", "label", "other"]),
                st.recursive(
                    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
                    max_leaves=4,
                ),
            ),
            max_size=12,
        ).map(lambda rows: "\n".join(map(json.dumps, rows)).encode()),
    ),
    kind=st.sampled_from(["csv", "tsv", "jsonl"]),
    task=st.sampled_from(["single_label", "multi_label", "regression"]),
    for_training=st.booleans(),
)
def test_nonsense_is_either_read_or_told(tmp_path: Path, content: bytes, kind: str, task: Task, for_training: bool) -> None:
    path = written(tmp_path, content, f"data.{kind}")

    try:
        data = read_dataset(path, "text", "label", task=task, for_training=for_training)
    except DataError:
        return
    assert np.isfinite(data.truth()).all()
    assert 64 == len(data.digest())
    assert all(label.encode().splitlines() == [label.encode()] for label in data.label_names)
