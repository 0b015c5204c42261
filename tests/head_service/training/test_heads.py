import numpy as np
import pytest

from head_service.training.heads import loss_of, quality, scores_of
from head_service.training.targets import multi_label, regression, single_label

LOGITS = np.array([[2.0, -1.0], [0.5, 0.25]], np.float32)


def test_scores_of_one_label_sum_to_one_and_flatten_with_the_temperature() -> None:
    sharp, flat = scores_of(LOGITS, "single_label"), scores_of(LOGITS, "single_label", 4.0)

    np.testing.assert_allclose(1.0, sharp.sum(axis=1), rtol=1e-6)
    assert bool((flat.max(axis=1) < sharp.max(axis=1)).all())


def test_scores_of_several_labels_are_sigmoids() -> None:
    np.testing.assert_allclose(1 / (1 + np.exp(-LOGITS / 2)), scores_of(LOGITS, "multi_label", 2.0), rtol=1e-6)


def test_a_number_is_its_own_score_whatever_the_temperature() -> None:
    np.testing.assert_array_equal(LOGITS, scores_of(LOGITS, "regression", 3.0))


@pytest.mark.parametrize("task", ["single_label", "multi_label"])
def test_scores_of_huge_logits_are_finite(task: str) -> None:
    huge = np.array([[1e30, -1e30]], np.float32)

    np.testing.assert_allclose([[1.0, 0.0]], scores_of(huge, task))  # type: ignore[arg-type]


def test_quality_of_known_cases() -> None:
    assert 0.5 == quality(single_label(["a", "b"]), LOGITS)
    assert 0.0 == quality(single_label(["x", "y"], ("a", "b")), LOGITS)
    # Found 3 of which 2 are right, of 2 that there are.
    assert abs(0.8 - quality(multi_label([("a",), ("a",)], ("a", "b")), LOGITS)) < 1e-6
    assert 1.0 == quality(regression([1.0, 3.0]), np.array([[1.0], [3.0]], np.float32))
    assert abs(quality(regression([1.0, 3.0]), np.array([[2.0], [2.0]], np.float32))) < 1e-6


def test_loss_of_known_cases() -> None:
    expected = -np.log(scores_of(LOGITS, "single_label")[[0, 1], [0, 1]]).mean()
    assert abs(expected - loss_of(single_label(["a", "b"]), LOGITS)) < 1e-6
    assert 0.25 == loss_of(regression([1.0, 3.0]), np.array([[1.5], [2.5]], np.float32))
    assert abs(np.log(2) - loss_of(multi_label([("a",)], ("a",)), np.zeros((1, 1), np.float32))) < 1e-9
