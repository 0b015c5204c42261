import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from head_service.training.thresholds import above_thresholds, best_thresholds


def column(*scores: float) -> np.ndarray:
    return np.array(scores, np.float32)[:, np.newaxis]


def truth(*values: int) -> np.ndarray:
    return np.array(values, np.int8)[:, np.newaxis]


def test_the_threshold_is_in_the_middle_of_the_gap() -> None:
    assert best_thresholds(column(0.125, 0.25, 0.75, 0.875), truth(0, 0, 1, 1)) == (0.5,)


def test_a_label_never_seen_has_a_half() -> None:
    assert best_thresholds(column(0.9, 0.1), truth(0, 0)) == (0.5,)


def test_a_label_every_text_has_is_always_answered() -> None:
    [threshold] = best_thresholds(column(0.5, 0.25), truth(1, 1))

    assert 0.125 == threshold


def test_of_gaps_that_do_equally_well_the_widest_is_taken() -> None:
    # One hit of two with one answer, two hits of two with four: both have F1 2/3.
    [threshold] = best_thresholds(column(0.9, 0.5, 0.4, 0.3), truth(1, 0, 0, 1))
    [other] = best_thresholds(column(0.95, 0.9, 0.85, 0.8), truth(1, 0, 0, 1))

    assert threshold == pytest.approx(0.7)
    assert other == pytest.approx(0.4)


def test_scores_that_are_equal_are_never_parted() -> None:
    [threshold] = best_thresholds(column(0.7, 0.7, 0.3), truth(1, 0, 0))

    assert threshold == pytest.approx(0.5)


@given(st.lists(st.tuples(st.floats(0, 1, width=32), st.integers(0, 1)), min_size=1, max_size=25))
def test_no_threshold_has_a_better_f1(rows: list[tuple[float, int]]) -> None:
    scores, labels = column(*(score for score, _ in rows)), truth(*(label for _, label in rows))

    def f1(threshold: float) -> float:
        return float(f1_score(labels[:, 0], above_thresholds(scores, (threshold,))[:, 0], zero_division=0.0))

    [found] = best_thresholds(scores, labels)

    assert 0.0 <= found <= 1.0
    if labels.any():
        assert f1(found) >= max(f1(float(score)) for score, _ in rows) - 1e-12


def test_without_thresholds_a_half_counts_for_each_label() -> None:
    assert [[1, 0]] == above_thresholds(np.array([[0.5, 0.49]], np.float32), ()).tolist()
