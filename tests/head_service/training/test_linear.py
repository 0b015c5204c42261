import numpy as np
from numpy.typing import NDArray

from head_service.training.linear import C_GRID, accuracy, choose_c, fit_linear, macro_f1

WIDTH = 8


def clusters(labels: tuple[str, ...], num_each: int = 20, noise: float = 0.05) -> tuple[NDArray[np.float32], list[str]]:
    random = np.random.default_rng(0)
    named = [label for label in labels for _ in range(num_each)]
    centres = np.eye(WIDTH, dtype=np.float32)[[labels.index(label) for label in named]]
    return centres + random.normal(0, noise, centres.shape).astype(np.float32), named


def test_separable_data_is_learnt() -> None:
    embeddings, labels = clusters(("sport", "money", "art"))

    assert labels == fit_linear(embeddings, labels).predict(embeddings)


def test_labels_are_sorted_whatever_their_order_in_the_data() -> None:
    embeddings, labels = clusters(("sport", "money", "art"))

    head = fit_linear(embeddings, labels)

    assert ("art", "money", "sport") == head.labels
    assert (WIDTH, 3) == head.weights.shape
    assert (3,) == head.bias.shape
    assert np.float32 == head.weights.dtype == head.bias.dtype


def test_two_labels_have_two_columns_and_scores_that_sum_to_one() -> None:
    embeddings, labels = clusters(("yes", "no"))

    head = fit_linear(embeddings, labels)
    scores = head.scores(embeddings)

    assert (WIDTH, 2) == head.weights.shape
    np.testing.assert_allclose(1.0, scores.sum(axis=1), atol=1e-6)
    assert labels == head.predict(embeddings)


def test_the_same_data_and_seed_give_the_same_weights() -> None:
    embeddings, labels = clusters(("a", "b", "c"), noise=0.6)

    first, second = (fit_linear(embeddings, labels, seed=3) for _ in range(2))

    np.testing.assert_array_equal(first.weights, second.weights)
    np.testing.assert_array_equal(first.bias, second.bias)
    assert first.c == second.c


def test_a_higher_temperature_flattens_scores_and_keeps_their_order() -> None:
    embeddings, labels = clusters(("a", "b", "c"))
    head = fit_linear(embeddings, labels)

    sharp, flat = head.scores(embeddings), head.scores(embeddings, temperature=4.0)

    np.testing.assert_array_equal(sharp.argmax(axis=1), flat.argmax(axis=1))
    assert bool((flat.max(axis=1) < sharp.max(axis=1)).all())


def test_scores_of_huge_logits_are_finite() -> None:
    embeddings, labels = clusters(("a", "b"))

    assert bool(np.isfinite(fit_linear(embeddings, labels).scores(embeddings * np.float32(1e6))).all())


def test_the_smallest_of_equally_good_c_is_chosen() -> None:
    embeddings, labels = clusters(("a", "b", "c"), noise=0.01)

    assert C_GRID[0] == choose_c(embeddings, labels)


def test_too_little_data_takes_the_middle_c() -> None:
    embeddings, labels = clusters(("a", "b"), num_each=2)

    assert C_GRID[len(C_GRID) // 2] == choose_c(embeddings, labels)
    assert labels == fit_linear(embeddings, labels).predict(embeddings)


def test_accuracy_and_macro_f1_of_known_cases() -> None:
    assert 0.75 == accuracy(["a", "b", "b", "a"], ["a", "b", "b", "b"])
    # F1 of a: 2/3; of b, which is never found: 0.
    assert abs(1 / 3 - macro_f1(["a", "a"], ["a", "b"])) < 1e-12
