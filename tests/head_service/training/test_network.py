from dataclasses import replace

import numpy as np
import pytest

from head_service.training.features import Features, TokenFeatures
from head_service.training.heads import TOKEN_TYPES, Fitted, HeadType, quality
from head_service.training.network import MIN_STEPS, RECIPES, NetworkHead, fit_network, fitting
from head_service.training.targets import Targets, multi_label, regression, single_label
from tests.head_service.training.toys import WIDTH, clusters, hidden_tokens

ALL: tuple[HeadType, ...] = ("linear", "mix", "mlp", "fasttext", "attention", "textcnn")
VECTORS, LABELS = clusters(("sport", "money", "art"), num_each=24)
TARGETS = single_label(LABELS)


def features_for(head_type: HeadType, vectors: np.ndarray = VECTORS) -> tuple[Features, int]:
    """What the type reads, and of how many layers it is: the mix has one of noise beside the good one."""
    if head_type == "mix":
        noise = np.random.default_rng(3).normal(0, 1, vectors.shape).astype(np.float32)
        return np.hstack([noise, vectors]), 2
    return (hidden_tokens(vectors), 1) if head_type in TOKEN_TYPES else (vectors, 1)


def learnt(head_type: HeadType, targets: Targets = TARGETS, vectors: np.ndarray = VECTORS, **options: object) -> Fitted:
    features, num_mixed = features_for(head_type, vectors)
    recipe = replace(RECIPES[head_type], hidden=min(RECIPES[head_type].hidden, 16), epochs=20, learning_rate=0.01, dropout=0.1)
    return fit_network(head_type, features, targets, num_mixed=num_mixed, recipe=recipe, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def fitted() -> dict[HeadType, Fitted]:
    return {head_type: learnt(head_type) for head_type in ALL}


@pytest.mark.parametrize("head_type", ALL)
def test_each_type_learns_a_separable_problem(head_type: HeadType, fitted: dict[HeadType, Fitted]) -> None:
    features, _ = features_for(head_type)

    assert quality(TARGETS, fitted[head_type].head.logits(features)) > 0.95
    assert quality(fitted[head_type].validation, fitted[head_type].validation_logits) > 0.85
    assert head_type == fitted[head_type].head.head_type


@pytest.mark.parametrize("head_type", ALL)
def test_the_same_data_and_seed_give_the_same_weights(head_type: HeadType, fitted: dict[HeadType, Fitted]) -> None:
    again = learnt(head_type).head.weights

    assert {name: array.tobytes() for name, array in fitted[head_type].head.weights.items()} == {
        name: array.tobytes() for name, array in again.items()
    }


def test_another_seed_draws_otherwise(fitted: dict[HeadType, Fitted]) -> None:
    other = learnt("linear", seed=1).head.weights["weights"]

    assert other.tobytes() != fitted["linear"].head.weights["weights"].tobytes()


@pytest.mark.parametrize("head_type", TOKEN_TYPES)
def test_padding_never_changes_the_answer(head_type: HeadType, fitted: dict[HeadType, Fitted]) -> None:
    head = fitted[head_type].head
    features, _ = features_for(head_type)
    assert isinstance(features, TokenFeatures)
    long = TokenFeatures.of([np.ones((57, WIDTH), np.float32)])
    with_long = TokenFeatures.of([features.rows[s : s + n] for s, n in zip(features.starts, features.lengths, strict=True)])
    joined = TokenFeatures(
        np.concatenate([with_long.rows, long.rows]),
        np.append(with_long.starts, len(with_long.rows)),
        np.append(with_long.lengths, 57),
    )
    alone = np.concatenate([head.logits(features.take(np.array([i]))) for i in range(12)])

    # The first twelve in one batch with a text of 57 tokens.
    together = head.logits(joined.take(np.append(np.arange(12), len(joined) - 1)))[:12]

    np.testing.assert_allclose(alone, together, atol=1e-5)


@pytest.mark.parametrize("head_type", TOKEN_TYPES)
def test_whatever_stands_where_there_is_no_token_is_ignored(head_type: HeadType, fitted: dict[HeadType, Fitted]) -> None:
    from head_service.training.forward import logits_of
    from head_service.training.quiet_tensorflow import tf

    head = fitted[head_type].head
    features, _ = features_for(head_type)
    assert isinstance(features, TokenFeatures)
    vectors, mask = features.padded(np.arange(6))
    weights = {name: tf.constant(array) for name, array in head.weights.items()}
    clean, dirty = (
        logits_of(head.spec, weights, (tf.constant(given), tf.constant(mask))).numpy()
        for given in (vectors, np.where(mask[:, :, None] > 0, vectors, np.float32(77.0)))
    )

    np.testing.assert_allclose(clean, dirty, atol=1e-5)


def test_the_mix_finds_the_layer_that_tells_something(fitted: dict[HeadType, Fitted]) -> None:
    noise, good = fitted["mix"].head.weights["mix"]

    assert good > noise


def test_several_labels_a_text_are_learnt() -> None:
    truth = VECTORS[:, :3] + np.roll(VECTORS[:, :3], 1, axis=1) > 0.5
    targets = multi_label([[name for name, there in zip("abc", row, strict=True) if there] for row in truth])

    head = learnt("mlp", targets).head

    assert quality(targets, head.logits(VECTORS)) > 0.95


def test_a_number_is_learnt_in_its_own_units() -> None:
    targets = regression(list(1_000.0 + 50.0 * VECTORS[:, 0] - 20.0 * VECTORS[:, 1]))

    fitted = learnt("mlp", targets)

    assert quality(targets, fitted.head.logits(VECTORS)) > 0.9
    assert quality(fitted.validation, fitted.validation_logits) > 0.8


def test_rare_labels_count_for_more_when_labels_are_balanced() -> None:
    random = np.random.default_rng(0)
    vectors = random.normal(0, 1, (100, WIDTH)).astype(np.float32)
    labels = ["rare" if n % 10 == 0 else "common" for n in range(100)]
    vectors[::10, 0] += 1.0

    plain, balanced = (learnt("linear", single_label(labels), vectors, balanced=even).head for even in (False, True))

    def found(head: NetworkHead) -> int:
        return int((head.logits(vectors).argmax(axis=1) == head.labels.index("rare")).sum())

    assert found(balanced) > found(plain)  # type: ignore[arg-type]


def test_with_little_data_nothing_is_held_back() -> None:
    vectors, labels = clusters(("a", "b"), num_each=3)

    fitted = learnt("mlp", single_label(labels), vectors)

    assert (0, 2) == fitted.validation_logits.shape
    assert 0 == len(fitted.validation)
    assert 1.0 == quality(single_label(labels), fitted.head.logits(vectors))


def test_a_recipe_is_stretched_over_little_data_only() -> None:
    recipe = RECIPES["mlp"]

    little, much = fitting(recipe, 100), fitting(recipe, 10_000)

    assert recipe == much
    assert little.epochs * -(-100 // little.batch) >= MIN_STEPS - little.epochs
