"""The seam between training, measuring and exporting: what a fitted head is, whatever is inside it. No TensorFlow here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from clients.wire.catalogue import Task
from head_service.training.features import Features
from head_service.training.targets import Targets

FloatArray = NDArray[np.float32]

HeadType = Literal["linear", "mix", "mlp", "fasttext", "attention", "textcnn"]
"""From the simplest on."""

POOLED_TYPES: Final[tuple[HeadType, ...]] = ("linear", "mix", "mlp")
TOKEN_TYPES: Final[tuple[HeadType, ...]] = ("fasttext", "attention", "textcnn")


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """How a head computes, beside its weights; see `head_service.training.forward`.

    *width* is that of what goes in. *num_mixed* layers lie in it one behind the other. *one_vs_rest*: the outputs are independent
    classifiers' whose sigmoids are scaled to sum to one, as scikit-learn's SGDClassifier has it, instead of a softmax.
    """

    head_type: HeadType
    width: int
    num_mixed: int = 1
    one_vs_rest: bool = False

    @property
    def reads_tokens(self) -> bool:
        """Whether a vector a token goes in, with a mask."""
        return self.head_type in TOKEN_TYPES


class Head(Protocol):
    """A head that has been fitted."""

    @property
    def head_type(self) -> HeadType:
        """How it was made."""
        ...

    @property
    def task(self) -> Task:
        """What it answers."""
        ...

    @property
    def labels(self) -> tuple[str, ...]:
        """In the order of the logits."""
        ...

    @property
    def spec(self) -> HeadSpec:
        """How it computes."""
        ...

    @property
    def weights(self) -> Mapping[str, FloatArray]:
        """By the names that `head_service.training.forward` knows."""
        ...

    def logits(self, features: Features) -> FloatArray:
        """float32 [texts, labels], before any temperature; of a regression the values."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A head and what it was chosen by: logits of texts it had not seen, float32 [texts, labels], and their targets.

    Both are empty where there was too little data to hold any back. The head itself may have learnt from those texts afterwards.
    *told* says in a few words what was chosen.
    """

    head: Head
    validation_logits: FloatArray
    validation: Targets
    told: str = ""


def scores_of(logits: FloatArray, task: Task, temperature: float = 1.0) -> FloatArray:
    """float32 [texts, labels]: softmax, sigmoid, or of a regression the values themselves."""
    if task == "regression":
        return logits
    scaled = logits / np.float32(temperature)
    if task == "multi_label":
        # Half the hyperbolic tangent: it overflows nowhere.
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * scaled)), np.float32)
    raised = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True), np.float32)


def quality(targets: Targets, logits: FloatArray) -> float:
    """One number to choose by, the higher the better: accuracy; of several labels micro F1 at one half; of a regression R²."""
    if not len(targets):
        return 0.0
    if targets.task == "regression":
        spread = float(((targets.matrix - targets.matrix.mean()) ** 2).sum())
        return 1.0 - float(((targets.matrix - logits) ** 2).sum()) / max(spread, 1e-12)
    if targets.task == "multi_label":
        found = logits > 0
        right = float((found * targets.matrix).sum())
        return 2.0 * right / max(1.0, float(found.sum()) + float(targets.matrix.sum()))
    return float(targets.matrix[np.arange(len(targets)), logits.argmax(axis=1)].mean())


def loss_of(targets: Targets, logits: FloatArray) -> float:
    """The mean loss a head is fitted to lower: cross-entropy, or of a regression the squared error."""
    wide: NDArray[Any] = logits.astype(np.float64)
    if targets.task == "regression":
        return float(((wide - targets.matrix) ** 2).mean())
    if targets.task == "multi_label":
        return float((np.logaddexp(0.0, wide) - wide * targets.matrix).mean())
    high = wide.max(axis=1, keepdims=True)
    normal = high[:, 0] + np.log(np.exp(wide - high).sum(axis=1))
    return float((normal * targets.matrix.sum(axis=1) - (wide * targets.matrix).sum(axis=1)).mean())
