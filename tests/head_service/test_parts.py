from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.wire.catalogue import Manifest, Task, TrunkRef
from head_service.parts import FloatArray, Part, UnlikeError, laid_out, part_of
from head_service.training.heads import scores_of

WIDTH = 6
TASKS: tuple[Task, ...] = ("single_label", "multi_label", "regression")


def manifest(name: str = "topic", num_labels: int = 3, **fields: Any) -> Manifest:
    labels = tuple(f"label {n}" for n in range(num_labels))
    return Manifest(name=name, version=2, labels=labels, width=WIDTH, trunk=TrunkRef("tiny", "sha256:1"), **fields)


def drawn(*shape: int, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def part(name: str, num_labels: int, task: Task = "single_label") -> Part:
    weights = {"weights": drawn(WIDTH, num_labels), "bias": drawn(num_labels)}
    return part_of(manifest(name, num_labels, task=task), weights, "sha256:2")


@given(
    seed=st.integers(0, 2**16),
    task=st.sampled_from(TASKS),
    num_labels=st.integers(1, 5),
    temperature=st.floats(0.2, 5.0),
    standardised=st.booleans(),
    num_mixed=st.sampled_from([1, 2, 3]),
)
def test_what_is_folded_together_gives_the_scores_of_the_head(
    seed: int, task: Task, num_labels: int, temperature: float, standardised: bool, num_mixed: int
) -> None:
    rows = drawn(7, WIDTH, seed=seed) / np.float32(WIDTH**0.5)
    weights = {"weights": drawn(WIDTH // num_mixed, num_labels, seed=seed + 1), "bias": drawn(num_labels, seed=seed + 2)}
    if standardised:
        weights |= {"shift": drawn(WIDTH, seed=seed + 3), "scale": np.abs(drawn(WIDTH, seed=seed + 4)) + np.float32(0.5)}
    read = (rows - weights["shift"]) * weights["scale"] if standardised else rows
    if num_mixed > 1:
        weights["mix"] = drawn(num_mixed, seed=seed + 5)
        shares = np.exp(weights["mix"]) / np.exp(weights["mix"]).sum()
        read = np.einsum("l,rlw->rw", shares, read.reshape(7, num_mixed, -1))
    expected = scores_of((read @ weights["weights"] + weights["bias"]).astype(np.float32), task, temperature)

    found = part_of(manifest("any", num_labels, task=task, temperature=temperature), weights, "sha256:2").scores(rows)

    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_sigmoids_that_are_scaled_to_sum_to_one_keep_their_temperature() -> None:
    rows, weights = drawn(5, WIDTH), {"weights": drawn(WIDTH, 3), "bias": drawn(3)}
    sigmoids = 1 / (1 + np.exp(-(rows @ weights["weights"] + weights["bias"])))
    raised = sigmoids ** (1 / 2.5)

    found = part_of(manifest(temperature=2.5), weights, "sha256:2", one_vs_rest=True).scores(rows)

    np.testing.assert_allclose(raised / raised.sum(axis=1, keepdims=True), found, atol=1e-6)


@pytest.mark.parametrize(
    ("weights", "fields"),
    [
        ({"weights": drawn(WIDTH, 3), "bias": drawn(3)}, {"head_type": "mlp"}),
        ({"weights": drawn(WIDTH, 3)}, {}),
        ({"weights": drawn(WIDTH, 3), "bias": drawn(3), "hidden_weights": drawn(2, 2)}, {}),
        ({"weights": drawn(WIDTH + 1, 3), "bias": drawn(3)}, {}),
        ({"weights": drawn(WIDTH, 3), "bias": drawn(1)}, {}),
        (
            {"weights": drawn(WIDTH, 3), "bias": drawn(3), "hidden_weights": drawn(WIDTH, 4), "hidden_bias": drawn(4)},
            {"head_type": "mlp"},
        ),
        ({"weights": drawn(WIDTH, 3), "bias": drawn(3)}, {"head_type": "attention"}),
    ],
)
def test_weights_that_are_not_of_their_type_are_refused(weights: dict[str, FloatArray], fields: dict[str, Any]) -> None:
    with pytest.raises(UnlikeError):
        part_of(manifest(**fields), weights, "sha256:2")


def test_parts_lie_side_by_side_those_of_a_kind_together() -> None:
    groups = laid_out([part("b", 3), part("yes-no", 2, "multi_label"), part("a", 3), part("c", 2)])

    assert [["yes-no"], ["c"], ["a", "b"]] == [[one.member.name for one in group] for group in groups]
    assert [0, 2, 4, 7] == [one.member.offset for group in groups for one in group]
    assert 3 == groups[-1][-1].member.count
