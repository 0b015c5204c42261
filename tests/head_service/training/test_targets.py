import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from head_service.errors import DataError
from head_service.training.targets import folds, label_weights, multi_label, part, regression, single_label

LABELS = st.lists(st.sampled_from("abcde"), min_size=1, max_size=60)


def test_one_label_a_text_is_a_row_with_a_single_one() -> None:
    targets = single_label(["b", "a", "b"])

    assert ("a", "b") == targets.labels
    assert [[0, 1], [1, 0], [0, 1]] == targets.matrix.tolist()
    assert [1, 0, 1] == targets.indices.tolist()


def test_a_label_the_head_does_not_know_is_a_row_of_zeros() -> None:
    assert [[0, 0], [1, 0]] == single_label(["z", "a"], ("a", "b")).matrix.tolist()


def test_several_labels_a_text_or_none_are_kept() -> None:
    targets = multi_label([("b", "a"), (), ("c",)])

    assert [[1, 1, 0], [0, 0, 0], [0, 0, 1]] == targets.matrix.tolist()


def test_a_number_that_is_not_finite_is_refused() -> None:
    assert [[1.5], [-2.0]] == regression([1.5, -2.0]).matrix.tolist()
    with pytest.raises(DataError):
        regression([1.0, float("nan")])


def test_all_labels_weigh_the_same_however_rare() -> None:
    targets = single_label(["a"] * 9 + ["b"])

    weights = label_weights(targets)

    np.testing.assert_allclose([5.0, 5.0], targets.matrix.sum(axis=0) * weights, rtol=1e-6)


@given(LABELS, st.integers(0, 5))
def test_a_part_held_out_leaves_something_of_every_label(labels: list[str], seed: int) -> None:
    learnt, held = part(single_label(labels), 0.15, seed)

    assert list(range(len(labels))) == sorted([*learnt, *held])
    assert set(labels) == {labels[row] for row in learnt}


def test_a_part_has_every_labels_share() -> None:
    labels = ["a"] * 200 + ["b"] * 100 + ["c"] * 40

    _, held = part(single_label(labels), 0.15, 0)

    assert {"a": 30, "b": 15, "c": 6} == {label: sum(labels[row] == label for row in held) for label in "abc"}


@given(LABELS, st.integers(0, 5))
def test_folds_hold_each_row_out_once_but_a_labels_only_one(labels: list[str], seed: int) -> None:
    parts = folds(single_label(labels), 3, seed)

    held = sorted(int(row) for _, rows in parts for row in rows)
    assert [row for row, label in enumerate(labels) if labels.count(label) > 1] == held
    for learnt, rows in parts:
        assert list(range(len(labels))) == sorted([*learnt, *rows])


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4)), min_size=1, max_size=30), st.integers(0, 5))
def test_windows_of_one_text_are_never_parted(texts: list[tuple[str, int]], seed: int) -> None:
    ends = np.cumsum([count for _, count in texts])
    windows = [range(end - count, end) for end, (_, count) in zip(ends, texts, strict=True)]
    whole = single_label([label for label, _ in texts])
    targets = whole.in_windows(windows)

    assert [list(rows) for rows in windows] == targets.windows
    parted = [part(targets, 0.3, seed), *folds(targets, 3, seed)]
    for rows_of, texts_of in zip(parted, [part(whole, 0.3, seed), *folds(whole, 3, seed)], strict=True):
        for rows, chosen in zip(rows_of, texts_of, strict=True):
            assert [row for text in chosen for row in windows[text]] == rows.tolist()


def test_numbers_are_parted_so_that_each_tenth_has_its_share() -> None:
    values = np.arange(100.0)

    _, held = part(regression(list(values)), 0.1, 0)

    assert list(range(10)) == sorted(int(values[row] // 10) for row in held)


def test_the_same_seed_parts_alike() -> None:
    targets = single_label(["a", "b"] * 30)

    np.testing.assert_array_equal(part(targets, 0.2, 7)[1], part(targets, 0.2, 7)[1])
    assert part(targets, 0.2, 7)[1].tolist() != part(targets, 0.2, 8)[1].tolist()
