import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from head_service.training.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    expected_calibration_error,
    fit_sigmoid_temperature,
    fit_temperature,
    reliability_bins,
)
from head_service.training.heads import scores_of

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(0.0, 2.0, (20_000, 4)).astype(np.float32)
# What a perfectly calibrated head would meet: labels drawn by its own scores.
LABELS = (scores_of(LOGITS, "single_label").cumsum(axis=1) < RANDOM.random((20_000, 1))).sum(axis=1).clip(max=3)
CELLS = (RANDOM.random((20_000, 4)) < scores_of(LOGITS, "multi_label")).astype(np.int8)


def likelihood(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    return float(np.log(scores_of(logits, "single_label", temperature)[np.arange(len(labels)), labels]).mean())


@pytest.mark.parametrize("k", [0.2, 1.0, 5.0])
def test_logits_scaled_by_k_have_temperature_k(k: float) -> None:
    assert fit_temperature(k * LOGITS, LABELS) == pytest.approx(k, rel=0.03)
    assert fit_sigmoid_temperature(k * LOGITS, CELLS) == pytest.approx(k, rel=0.03)


@pytest.mark.parametrize("away", [0.7, 1.4])
def test_no_other_temperature_is_likelier(away: float) -> None:
    temperature = fit_temperature(3.0 * LOGITS, LABELS)

    assert likelihood(3.0 * LOGITS, LABELS, temperature) > likelihood(3.0 * LOGITS, LABELS, temperature * away)


def test_a_shift_of_a_row_changes_nothing() -> None:
    shifted = LOGITS[:2_000] + RANDOM.normal(0.0, 5.0, (2_000, 1)).astype(np.float32)

    assert fit_temperature(shifted, LABELS[:2_000]) == pytest.approx(fit_temperature(LOGITS[:2_000], LABELS[:2_000]), rel=1e-4)


def test_temperature_makes_overconfident_scores_calibrated() -> None:
    bold = 4.0 * LOGITS
    raw, mended = (scores_of(bold, "single_label", temperature) for temperature in (1.0, fit_temperature(bold, LABELS)))

    assert expected_calibration_error(raw, LABELS) > 0.1
    assert expected_calibration_error(mended, LABELS) < 0.015


def test_scores_that_come_true_have_little_calibration_error() -> None:
    assert expected_calibration_error(scores_of(LOGITS, "single_label"), LABELS) < 0.015
    assert expected_calibration_error(scores_of(LOGITS, "multi_label"), CELLS) < 0.015


def test_a_head_that_is_sure_and_wrong_has_all_the_error_there_is() -> None:
    assert 1.0 == expected_calibration_error(np.array([[1.0, 0.0]] * 3, np.float32), np.array([1, 1, 1]))
    assert 0.0 == expected_calibration_error(np.array([[1.0, 0.0]] * 3, np.float32), np.array([0, 0, 0]))


def test_few_texts_all_of_them_right_do_not_ask_for_certainty() -> None:
    logits = np.array([[0.1, 0.0], [0.0, 0.1], [0.2, 0.0]], np.float32)

    scores = scores_of(logits, "single_label", fit_temperature(logits, np.array([0, 1, 0])))

    assert 0.6 < scores.max(axis=1).mean() < 0.99


@pytest.mark.parametrize("logits", [np.zeros((0, 3)), np.zeros((5, 3)), np.ones((5, 1))])
def test_logits_that_say_nothing_are_left_as_they_are(logits: np.ndarray) -> None:
    assert 1.0 == fit_temperature(logits.astype(np.float32), np.zeros(len(logits), np.int64))


def test_cells_that_say_nothing_are_left_as_they_are() -> None:
    assert 1.0 == fit_sigmoid_temperature(np.zeros((5, 2), np.float32), np.zeros((5, 2), np.int8))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(value: float) -> None:
    logits = np.array([[0.0, value]], np.float32)

    with pytest.raises(ValueError, match="not finite"):
        fit_temperature(logits, np.array([0]))
    with pytest.raises(ValueError, match="not finite"):
        fit_sigmoid_temperature(logits, np.array([[0, 1]]))


@given(arrays.arrays(np.float32, (6, 3), elements=st.floats(-(2.0**100), 2.0**100, width=32)), st.integers(0, 3**6 - 1))
def test_any_finite_logits_give_a_temperature_within_bounds(logits: np.ndarray, code: int) -> None:
    labels = np.array([code // 3**place % 3 for place in range(6)])

    assert MIN_TEMPERATURE <= fit_temperature(logits, labels) <= MAX_TEMPERATURE
    assert MIN_TEMPERATURE <= fit_sigmoid_temperature(logits, np.eye(3, dtype=np.int8)[labels]) <= MAX_TEMPERATURE


def test_bins_hold_every_score_once_their_upper_edge_included() -> None:
    bins = reliability_bins(np.array([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0]], np.float32), np.array([0, 1, 0]), bins=4)

    assert [0, 1, 1, 1] == [each.count for each in bins]
    assert [0.0, 0.5, 0.75, 1.0] == [each.mean_confidence for each in bins]
    assert [0.0, 1.0, 0.0, 1.0] == [each.accuracy for each in bins]
    assert (0.25, 0.5) == (bins[1].lower, bins[1].upper)


def test_without_scores_there_is_no_error() -> None:
    assert 0.0 == expected_calibration_error(np.zeros((0, 2), np.float32), np.zeros(0, np.int64))
