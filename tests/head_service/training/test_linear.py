import numpy as np
import pytest

from head_service.training.heads import quality
from head_service.training.linear import C_GRID, fit_linear, solve
from head_service.training.linear_head import LinearHead
from head_service.training.targets import multi_label, regression, single_label
from tests.head_service.training.toys import WIDTH, clusters


def fit(embeddings: np.ndarray, labels: list[str], **options: object) -> LinearHead:
    head = fit_linear(embeddings, single_label(labels), **options).head  # type: ignore[arg-type]
    assert isinstance(head, LinearHead)
    return head


def test_separable_data_is_learnt() -> None:
    embeddings, labels = clusters(("sport", "money", "art"))

    assert labels == fit(embeddings, labels).predict(embeddings)


def test_labels_are_sorted_whatever_their_order_in_the_data() -> None:
    embeddings, labels = clusters(("sport", "money", "art"))

    head = fit(embeddings, labels)

    assert ("art", "money", "sport") == head.labels
    assert (WIDTH, 3) == head.kernel.shape
    assert (3,) == head.bias.shape
    assert np.float32 == head.kernel.dtype == head.bias.dtype


def test_two_labels_have_two_columns_and_scores_that_sum_to_one() -> None:
    embeddings, labels = clusters(("yes", "no"))

    head = fit(embeddings, labels)
    scores = head.scores(embeddings)

    assert (WIDTH, 2) == head.kernel.shape
    np.testing.assert_allclose(1.0, scores.sum(axis=1), atol=1e-6)
    assert labels == head.predict(embeddings)


def test_the_same_data_and_seed_give_the_same_weights() -> None:
    embeddings, labels = clusters(("a", "b", "c"), noise=0.6)

    first, second = (fit(embeddings, labels, seed=3) for _ in range(2))

    np.testing.assert_array_equal(first.kernel, second.kernel)
    np.testing.assert_array_equal(first.bias, second.bias)


def test_a_higher_temperature_flattens_scores_and_keeps_their_order() -> None:
    embeddings, labels = clusters(("a", "b", "c"))
    head = fit(embeddings, labels)

    sharp, flat = head.scores(embeddings), head.scores(embeddings, temperature=4.0)

    np.testing.assert_array_equal(sharp.argmax(axis=1), flat.argmax(axis=1))
    assert bool((flat.max(axis=1) < sharp.max(axis=1)).all())


def test_scores_of_huge_logits_are_finite() -> None:
    embeddings, labels = clusters(("a", "b"))

    assert bool(np.isfinite(fit(embeddings, labels).scores(embeddings * np.float32(1e6))).all())


def test_the_smallest_of_equally_good_c_is_chosen() -> None:
    embeddings, labels = clusters(("a", "b", "c"), noise=0.01)

    assert f"C {C_GRID[0]:g}" == fit_linear(embeddings, single_label(labels)).told


def test_too_little_data_takes_the_middle_c_and_holds_nothing_back() -> None:
    embeddings, labels = clusters(("a", "b"), num_each=2)

    fitted = fit_linear(embeddings, single_label(labels))

    assert f"C {C_GRID[len(C_GRID) // 2]:g}" == fitted.told
    assert (0, 2) == fitted.validation_logits.shape
    assert 1.0 == quality(single_label(labels), fitted.head.logits(embeddings))


def test_validation_logits_are_of_heads_that_had_not_seen_the_text() -> None:
    # Labels that mean nothing: whoever has seen a text knows its label, whoever has not can only guess.
    embeddings = np.random.default_rng(0).normal(0, 1, (40, 60)).astype(np.float32)
    targets = single_label(["a", "b"] * 20)

    fitted = fit_linear(embeddings, targets, c=256.0)

    assert 40 == len(fitted.validation)
    assert quality(targets, fitted.head.logits(embeddings)) == 1.0
    assert quality(fitted.validation, fitted.validation_logits) < 0.8


def test_c_means_the_same_whatever_the_units_of_the_view() -> None:
    embeddings, labels = clusters(("a", "b", "c"), noise=0.4)
    targets = single_label(labels)

    plain = solve(embeddings, targets, 4.0).logits(embeddings)
    grown = solve(embeddings * 100 + 7, targets, 4.0).logits(embeddings * 100 + 7)

    np.testing.assert_allclose(plain, grown, atol=2e-2)


def test_a_label_that_does_not_occur_is_never_found() -> None:
    embeddings, labels = clusters(("a", "b"))

    head = solve(embeddings, single_label(labels, ("a", "b", "z")), 16.0)

    assert float(head.scores(embeddings)[:, 2].max()) < 1e-6
    assert labels == head.predict(embeddings)


def test_several_labels_a_text_are_one_decision_each() -> None:
    embeddings, _ = clusters(("a", "b", "c"))
    embeddings = embeddings + np.roll(embeddings, 1, axis=1)
    truth = [[name for name, value in zip("abcd", row, strict=False) if value > 0.5] for row in embeddings]
    targets = multi_label(truth)

    fitted = fit_linear(embeddings, targets)

    assert quality(targets, fitted.head.logits(embeddings)) > 0.98
    assert quality(fitted.validation, fitted.validation_logits) > 0.95


def test_a_number_is_learnt() -> None:
    embeddings, _ = clusters(("a", "b", "c"), noise=0.3)
    targets = regression([float(row[0] * 40 - row[1] * 7 + 300) for row in embeddings])

    fitted = fit_linear(embeddings, targets)

    assert quality(targets, fitted.head.logits(embeddings)) > 0.99
    assert quality(fitted.validation, fitted.validation_logits) > 0.95


def test_rare_labels_count_for_more_when_labels_are_balanced() -> None:
    random = np.random.default_rng(0)
    embeddings = random.normal(0, 1, (300, WIDTH)).astype(np.float32)
    labels = ["rare" if n % 10 == 0 else "common" for n in range(300)]
    embeddings[::10, 0] += 1.0

    plain, balanced = (fit(embeddings, labels, balanced=even).predict(embeddings).count("rare") for even in (False, True))

    assert balanced > plain


@pytest.mark.parametrize("one_vs_rest", [False, True])
def test_scores_sum_to_one_either_way(one_vs_rest: bool) -> None:
    embeddings, _ = clusters(("a", "b", "c"))
    random = np.random.default_rng(0).normal(0, 1, (WIDTH, 3)).astype(np.float32)

    scores = LinearHead(random, np.zeros(3, np.float32), ("a", "b", "c"), one_vs_rest=one_vs_rest).scores(embeddings)

    np.testing.assert_allclose(1.0, scores.sum(axis=1), rtol=1e-5)
