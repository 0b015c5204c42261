import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from clients.wire.catalogue import ValidationSummary
from head_service.training.metrics import MAX_MATRIX_LABELS, Confusion, Evaluation, evaluate, validation_summary

RANDOM = np.random.default_rng(0)
LABELS = ("a", "b", "c")


def one_hot(found: list[int], labels: int = 3) -> np.ndarray:
    return (0.8 * np.eye(labels)[found] + 0.2 / labels).astype(np.float32)


def test_one_label_a_text_is_measured_as_scikit_learn_does() -> None:
    truth, found = RANDOM.integers(3, size=200), RANDOM.integers(3, size=200)

    measured = evaluate("single_label", LABELS, one_hot(found), truth)

    assert measured.accuracy == pytest.approx(reference.accuracy_score(truth, found))
    assert measured.macro_f1 == pytest.approx(reference.f1_score(truth, found, average="macro"))
    assert measured.micro_f1 == pytest.approx(measured.accuracy)
    assert measured.confusion == tuple(map(tuple, reference.confusion_matrix(truth, found).tolist()))
    assert [each.recall for each in measured.per_label] == pytest.approx(reference.recall_score(truth, found, average=None))
    assert [each.support for each in measured.per_label] == np.bincount(truth).tolist()
    assert [each.found for each in measured.per_label] == np.bincount(found).tolist()


def test_a_label_that_is_not_there_counts_as_nothing_found() -> None:
    measured = evaluate("single_label", LABELS, one_hot([0, 0, 1]), np.array([0, 0, 1]))

    assert (0.0, 0.0, 0.0, 0, 0) == msgspec.structs.astuple(measured.per_label[2])[1:6]
    assert measured.macro_f1 == pytest.approx(2 / 3)


def test_confusions_are_told_the_largest_first() -> None:
    measured = evaluate("single_label", LABELS, one_hot([1, 1, 2, 0, 1]), np.array([0, 0, 0, 0, 1]))

    assert (Confusion("a", "b", 2), Confusion("a", "c", 1)) == measured.confusions


def test_a_matrix_that_cannot_be_read_is_left_out() -> None:
    for count in (MAX_MATRIX_LABELS, MAX_MATRIX_LABELS + 1):
        truth = np.arange(count)
        scores = np.roll(np.eye(count, dtype=np.float32), 1, axis=1)

        measured = evaluate("single_label", [f"label {n}" for n in range(count)], scores, truth)

        assert (count <= MAX_MATRIX_LABELS) == bool(measured.confusion)
        assert measured.confusions


def test_several_labels_are_measured_as_scikit_learn_does() -> None:
    truth = (RANDOM.random((200, 3)) < [0.5, 0.2, 0.1]).astype(np.int8)
    scores = np.clip(0.5 * truth + 0.5 * RANDOM.random((200, 3)), 0, 1).astype(np.float32)
    thresholds = (0.5, 0.6, 0.7)
    found = scores >= np.array(thresholds)

    measured = evaluate("multi_label", LABELS, scores, truth, thresholds=thresholds)

    assert measured.accuracy == pytest.approx(reference.accuracy_score(truth, found))
    assert measured.macro_f1 == pytest.approx(reference.f1_score(truth, found, average="macro"))
    assert measured.micro_f1 == pytest.approx(reference.f1_score(truth, found, average="micro"))
    assert [each.f1 for each in measured.per_label] == pytest.approx(reference.f1_score(truth, found, average=None))
    assert thresholds == tuple(each.threshold for each in measured.per_label)
    assert "macro_f1" == measured.headline.name
    assert () == measured.confusion


def test_texts_without_any_label_are_measured_too() -> None:
    measured = evaluate("multi_label", LABELS, np.zeros((4, 3), np.float32), np.zeros((4, 3), np.int8))

    assert (1.0, 0.0, 0.0) == (measured.accuracy, measured.macro_f1, measured.micro_f1)


def test_numbers_are_measured_as_scikit_learn_does() -> None:
    truth = RANDOM.normal(1_000.0, 2.0, 300).astype(np.float32)
    found = (truth + RANDOM.normal(0.0, 1.0, 300)).astype(np.float32)

    measured = evaluate("regression", ("value",), found[:, np.newaxis], truth)

    assert measured.r2 == measured.headline.value == pytest.approx(reference.r2_score(truth, found), rel=1e-5)
    assert measured.mae == pytest.approx(reference.mean_absolute_error(truth, found), rel=1e-5)
    assert measured.rmse == pytest.approx(reference.root_mean_squared_error(truth, found), rel=1e-5)
    assert measured.headline.low < measured.r2 < measured.headline.high


def test_spearman_looks_at_ranks_alone_and_shares_those_of_equals() -> None:
    truth = np.array([1.0, 2.0, 3.0, 4.0], np.float32)

    assert evaluate("regression", ("value",), np.exp(truth), truth).spearman == pytest.approx(1.0)
    assert evaluate("regression", ("value",), -truth, truth).spearman == pytest.approx(-1.0)
    # Ranks 1, 2.5, 2.5, 4 beside 1, 2, 3, 4.
    tied = evaluate("regression", ("value",), np.array([1.0, 2.0, 2.0, 4.0], np.float32), truth)
    assert tied.spearman == pytest.approx(4.5 / np.sqrt(4.5 * 5.0))


def test_equal_values_have_no_correlation_and_nothing_to_explain() -> None:
    measured = evaluate("regression", ("value",), np.array([1.0, 2.0], np.float32), np.array([3.1, 3.1], np.float32))

    assert (0.0, None) == (measured.r2, measured.spearman)


def test_the_interval_is_as_wide_as_chance_and_the_same_for_the_same_seed() -> None:
    truth = np.zeros(400, np.int64)
    scores = one_hot([int(n % 10 == 0) for n in range(400)])

    headline = evaluate("single_label", LABELS, scores, truth, seed=1).headline

    expected = 1.96 * np.sqrt(0.9 * 0.1 / 400)
    assert headline.value == pytest.approx(0.9)
    assert (headline.high - headline.low) / 2 == pytest.approx(expected, rel=0.15)
    assert headline == evaluate("single_label", LABELS, scores, truth, seed=1).headline
    assert headline != evaluate("single_label", LABELS, scores, truth, seed=2).headline


@settings(max_examples=25)  # three bootstraps each
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30))
def test_any_evaluation_comes_back_from_json_the_same(rows: list[tuple[int, int]]) -> None:
    found, truth = [row[0] for row in rows], np.array([row[1] for row in rows])
    evaluations = (
        evaluate("single_label", LABELS, one_hot(found), truth),
        evaluate("multi_label", LABELS, one_hot(found), np.eye(3, dtype=np.int8)[truth]),
        evaluate("regression", ("value",), np.array(found, np.float32), truth.astype(np.float32)),
    )

    for measured in evaluations:
        assert measured == msgspec.json.decode(msgspec.json.encode(measured), type=Evaluation)
        assert measured.headline.low <= measured.headline.high


@pytest.mark.parametrize(
    ("scores", "truth", "said"),
    [
        (np.zeros((0, 3)), np.zeros(0, np.int64), "at least one"),
        (np.zeros((2, 3)), np.zeros(3, np.int64), "both must be the same"),
        (np.full((2, 3), np.nan), np.zeros(2, np.int64), "not finite"),
        (np.zeros((2, 2)), np.zeros(2, np.int64), "are not those of 3 labels"),
        (np.zeros((2, 3)), np.zeros((2, 3), np.int8), "are not those of 3 labels"),
    ],
)
def test_what_does_not_go_together_is_refused(scores: np.ndarray, truth: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        evaluate("single_label", LABELS, scores.astype(np.float32), truth)


def test_the_summary_of_validation_tells_what_was_answered() -> None:
    summary = validation_summary("single_label", LABELS, one_hot([0, 0, 0, 1]))

    assert summary is not None
    assert {"a": 0.75, "b": 0.25, "c": 0.0} == summary.label_shares
    assert summary.mean_confidence == pytest.approx(0.8 + 0.2 / 3)
    assert 4 == summary.num_texts


def test_the_summary_of_several_labels_has_a_share_for_none() -> None:
    scores = np.array([[0.75, 0.75], [0.25, 0.75], [0.25, 0.25]], np.float32)

    expected = ValidationSummary({"a": 0.25, "b": 0.5, "": 0.25}, 0.75, 3)
    assert expected == validation_summary("multi_label", ("a", "b"), scores)


def test_a_regression_has_no_summary() -> None:
    assert validation_summary("regression", ("value",), np.ones(3, np.float32)) is None
