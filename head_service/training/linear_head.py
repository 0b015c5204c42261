"""A linear head that has been fitted, by whatever: its arithmetic alone, without what fits it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clients.wire.catalogue import Task
from head_service.training.features import Features
from head_service.training.heads import HeadSpec, HeadType, scores_of

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class LinearHead:
    """logits = x @ kernel + bias: *kernel* float32 [width, labels], *bias* float32 [labels]. See `heads.Head`."""

    kernel: FloatArray
    bias: FloatArray
    labels: tuple[str, ...]
    task: Task = "single_label"
    one_vs_rest: bool = False

    @property
    def head_type(self) -> HeadType:
        """How it was made."""
        return "linear"

    @property
    def spec(self) -> HeadSpec:
        """How it computes."""
        return HeadSpec("linear", len(self.kernel), one_vs_rest=self.one_vs_rest)

    @property
    def weights(self) -> dict[str, FloatArray]:
        """By the names that `head_service.training.forward` knows."""
        return {"weights": self.kernel, "bias": self.bias}

    def logits(self, features: Features) -> FloatArray:
        """float32 [texts, labels] of pooled vectors."""
        assert isinstance(features, np.ndarray)
        found = features @ self.kernel + self.bias
        return np.asarray(-np.logaddexp(0.0, -found) if self.one_vs_rest else found, np.float32)

    def scores(self, embeddings: FloatArray, temperature: float = 1.0) -> FloatArray:
        """float32 [texts, labels]; of one label a text, rows summing to one."""
        return scores_of(self.logits(embeddings), self.task, temperature)

    def predict(self, embeddings: FloatArray) -> list[str]:
        """The likeliest label of each row."""
        return [self.labels[index] for index in self.logits(embeddings).argmax(axis=1)]
