from collections.abc import Mapping, Sequence

import numpy as np

from clients import Deadline, Prediction
from clients.wire.catalogue import Manifest, TrunkRef
from perf.topologies.plan import FloatArray
from perf.topologies.plan_three import Caller, labels_of

TRUNK = TrunkRef("it", "sha256:0")
TONE = Manifest(name="tone", version=3, labels=("good", "bad"), width=2, trunk=TRUNK)
TOPIC = Manifest(name="topic", version=1, labels=("x", "y", "z"), width=2, trunk=TRUNK, input="vector", output="logits")
VECTORS = {"a": [1.0, 0.0], "b": [0.0, 1.0]}


class Trunk:
    async def embed(self, inputs: Sequence[str], _: Deadline) -> list[tuple[FloatArray, ...]]:
        return [(np.array(VECTORS[text], np.float32),) for text in inputs]


class Heads:
    """Scores are the vectors themselves, the last label's a half."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def predict(
        self, head: str, inputs: Mapping[str, FloatArray], *, output_filter: Sequence[str], timeout: float
    ) -> Prediction:
        self.asked.append(head)
        [vectors], [output] = inputs.values(), output_filter
        half: FloatArray = np.full((len(vectors), 1), 0.5, np.float32)
        return Prediction({output: np.concatenate([vectors, half], axis=1) if head == "topic" else vectors}, 1)


async def test_the_caller_embeds_once_asks_each_head_once_and_has_labels() -> None:
    heads = Heads()
    found = await Caller(Trunk(), heads, (TONE, TOPIC)).classify(["b", "a"])

    assert [{"tone": "bad", "topic": "y"}, {"tone": "good", "topic": "x"}] == found
    assert ["tone", "topic"] == heads.asked


def test_the_likeliest_label_of_each_head_is_taken() -> None:
    scores = [np.array([[0.2, 0.8]], np.float32), np.array([[0.1, 0.2, 0.7]], np.float32)]

    assert [{"tone": "bad", "topic": "z"}] == labels_of((TONE, TOPIC), scores, 1)
