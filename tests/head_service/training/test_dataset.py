from pathlib import Path

import pytest

from head_service.errors import DataError
from head_service.training.dataset import MAX_COMPLAINTS, Dataset, Example, read_dataset, split

GOOD = "text,label\ngood one,a\ngood two,a\nbad one,b\nbad two,b\n"


def written(tmp_path: Path, content: str | bytes, name: str = "data.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def complaint(path: Path, **options: str) -> str:
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

    assert "data.csv is not UTF-8: line 6 has a byte that cannot be read" == complaint(path)


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
