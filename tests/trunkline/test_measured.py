from typing import get_args

import msgspec
import pytest

from clients.wire.catalogue import Manifest, Metrics, Task, TrunkRef
from head_service.gate import metric_of
from trunkline.measured import headline

METRICS = Metrics(0.75, 0.5, 80, 20, "sha256:a")


@pytest.mark.parametrize(
    ("task", "said"), [("single_label", "accuracy 0.7500"), ("multi_label", "macro F1 0.5000"), ("regression", "R² 0.7500")]
)
def test_a_head_is_told_by_the_metric_of_its_task(task: str, said: str) -> None:
    assert said == headline(task, msgspec.structs.asdict(METRICS))


@pytest.mark.parametrize("task", get_args(Task))
def test_it_is_the_number_that_the_gate_compares(task: Task) -> None:
    manifest = Manifest(name="one", version=1, task=task, labels=("a", "b"), width=8, trunk=TrunkRef("tiny", "sha256:0"))

    assert headline(task, msgspec.structs.asdict(METRICS)).endswith(f"{getattr(METRICS, metric_of(manifest)):.4f}")


def test_what_was_not_measured_says_nothing() -> None:
    assert "" == headline("single_label", {})
    assert "" == headline("single_label", {"accuracy": None})
