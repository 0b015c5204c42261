from dataclasses import replace

import numpy as np
import pytest

from clients.wire.catalogue import View
from head_service.errors import DataError
from head_service.training import network
from head_service.training.fit import Compared, FitOptions, candidates, fit, reading_for, simplest_of_the_best
from head_service.training.heads import TOKEN_TYPES, quality
from head_service.training.linear import C_GRID
from head_service.training.targets import single_label
from tests.head_service.training.toys import WIDTH, clusters


@pytest.fixture
def short_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compared here is separable, so a few epochs do."""
    short = {head_type: replace(recipe, epochs=3) for head_type, recipe in network.RECIPES.items()}
    monkeypatch.setattr(network, "RECIPES", short)
    monkeypatch.setattr(network, "MIN_STEPS", 20)
    monkeypatch.setattr("head_service.training.fit.MLP_SIZES", (8,))
    monkeypatch.setattr("head_service.training.fit.C_GRID", (1.0, 16.0))


def test_pooled_heads_read_their_view_and_token_heads_the_tokens() -> None:
    assert (View(),) == reading_for("linear", View(), (), (-1,)).views
    for head_type in TOKEN_TYPES:
        assert (View("tokens", normalize=False),) == reading_for(head_type, View(), (), (-1,)).views


def test_the_mix_reads_every_layer_there_is_the_views_own_first() -> None:
    assert (-1, -3, -2) == reading_for("mix", View(), (), (-3, -2, -1)).mix_layers
    assert (-1, -3, -2) == reading_for("auto", View(), (), (-3, -2, -1)).mix_layers
    assert () == reading_for("auto", View(), (), (-1,)).mix_layers
    assert () == reading_for("mlp", View(), (), (-3, -2, -1)).mix_layers


def test_layers_that_are_named_are_read_by_any_type() -> None:
    reading = reading_for("attention", View(), (-1, -2), (-3, -2, -1))

    assert [("tokens", -1), ("tokens", -2)] == [(view.pooling, view.layer) for view in reading.views]
    assert View("mean", -2) == reading_for("linear", View(), (-2,), (-2, -1)).view


def test_layers_the_trunk_does_not_compute_are_told_in_words() -> None:
    with pytest.raises(DataError, match="computes the layers -1, not -4; start it with --layers"):
        reading_for("mlp", View(), (-1, -4), (-1,))
    with pytest.raises(DataError, match="takes two at least"):
        reading_for("mix", View(), (), (-1,))


def compared(**reached: tuple[float, ...]) -> list[Compared]:
    return [Compared(name, folds) for name, folds in reached.items()]


def test_of_nearly_equal_heads_the_simplest_is_kept() -> None:
    assert 0 == simplest_of_the_best(compared(a=(0.80, 0.90, 0.85), b=(0.82, 0.89, 0.86)))
    assert 0 == simplest_of_the_best(compared(a=(0.5, 0.5, 0.5), b=(0.5, 0.5, 0.5)))


def test_a_head_that_is_better_in_every_fold_wins_however_far_the_folds_are_apart() -> None:
    assert 1 == simplest_of_the_best(compared(a=(0.60, 0.95, 0.78), b=(0.62, 0.97, 0.80), c=(0.62, 0.97, 0.80)))


def test_auto_tries_simple_heads_first_and_those_of_several_layers_where_there_are_any() -> None:
    alone, layered = ([one.name for one in candidates(FitOptions(), layers)] for layers in (1, 3))

    assert [f"linear C {c:g}" for c in C_GRID] == alone[: len(C_GRID)]
    assert "mix of 3 layers" in layered
    assert f"linear C {C_GRID[0]:g} on 3 layers" in layered
    assert alone == layered[: len(alone)]


def test_auto_tells_what_it_compared_and_keeps_the_simplest_that_will_do(short_recipes: None) -> None:
    embeddings, labels = clusters(("a", "b", "c"))
    said: list[str] = []

    fitted = fit(embeddings, single_label(labels), FitOptions("auto"), say=said.append)

    assert ["linear", "linear", "mlp"] == [line.split()[1] for line in said]
    assert all("±" in line for line in said)
    assert "linear" == fitted.head.head_type
    assert fitted.told.startswith("linear C 1, of linear C 1 1.0000 ±0.0000, ")
    assert 1.0 == quality(single_label(labels), fitted.head.logits(embeddings))


def test_auto_reads_several_layers_where_they_help(short_recipes: None) -> None:
    embeddings, labels = clusters(("a", "b", "c"))
    noise = np.random.default_rng(1).normal(0, 1, embeddings.shape).astype(np.float32)
    targets = single_label(labels)

    fitted = fit(np.hstack([noise, embeddings]), targets, FitOptions("auto"), 2)

    assert 2 * WIDTH == fitted.head.spec.width


def test_too_few_texts_to_compare_are_told_in_words() -> None:
    embeddings, labels = clusters(("a", "b"), num_each=3)

    with pytest.raises(DataError, match="6 texts are too few"):
        fit(embeddings, single_label(labels), FitOptions("auto"))
