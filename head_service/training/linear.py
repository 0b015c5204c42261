"""Multinomial logistic regression on frozen embeddings: the baseline, and hard to beat for its price."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import train_test_split

FloatArray = NDArray[np.float32]

C_GRID: Final = (1.0, 4.0, 16.0, 64.0, 256.0)
"""Inverse regularisation for unit-length embeddings, whose numbers are small."""

MAX_ITERATIONS: Final = 500
VALIDATION_SHARE: Final = 0.15


@dataclass(frozen=True, slots=True)
class LinearHead:
    """scores = softmax(x @ weights + bias): *weights* float32 [width, labels], *bias* float32 [labels]."""

    weights: FloatArray
    bias: FloatArray
    labels: tuple[str, ...]
    c: float

    def scores(self, embeddings: FloatArray, temperature: float = 1.0) -> FloatArray:
        """float32 [texts, labels], rows summing to one."""
        logits = (embeddings @ self.weights + self.bias) / np.float32(temperature)
        raised = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores: FloatArray = raised / raised.sum(axis=1, keepdims=True)
        return scores

    def predict(self, embeddings: FloatArray) -> list[str]:
        """The likeliest label of each row."""
        return [self.labels[index] for index in self.scores(embeddings).argmax(axis=1)]


def fit_linear(embeddings: FloatArray, labels: Sequence[str], *, seed: int = 0) -> LinearHead:
    """Choose C on a stratified validation part, then fit on everything. Same data, same seed: same weights."""
    return _fit(embeddings, labels, choose_c(embeddings, labels, seed=seed))


def choose_c(embeddings: FloatArray, labels: Sequence[str], *, seed: int = 0) -> float:
    """The C of `C_GRID` with the best validation accuracy, the smallest of equals; the middle one where data is too little."""
    names, counts = np.unique(labels, return_counts=True)
    if counts.min() < 2 or len(labels) * VALIDATION_SHARE < len(names):
        return C_GRID[len(C_GRID) // 2]
    parts = train_test_split(embeddings, list(labels), test_size=VALIDATION_SHARE, stratify=labels, random_state=seed)
    train, held, train_labels, held_labels = parts
    scores = {c: accuracy(_fit(train, train_labels, c).predict(held), held_labels) for c in C_GRID}
    return max(C_GRID, key=lambda c: (scores[c], -c))


def accuracy(found: Sequence[str], truth: Sequence[str]) -> float:
    """The share of equal places."""
    return sum(a == b for a, b in zip(found, truth, strict=True)) / len(truth)


def macro_f1(found: Sequence[str], truth: Sequence[str]) -> float:
    """The mean of the labels' F1."""
    return float(f1_score(list(truth), list(found), average="macro", zero_division=0.0))


def _fit(embeddings: FloatArray, labels: Sequence[str], c: float) -> LinearHead:
    model = LogisticRegression(C=c, max_iter=MAX_ITERATIONS, tol=1e-4)
    model.fit(embeddings.astype(np.float64), list(labels))
    weights, bias = model.coef_.T, model.intercept_
    if weights.shape[1] == 1:
        # scikit-learn keeps one column for two classes; softmax over (0, z) is its sigmoid of z.
        weights, bias = np.hstack([np.zeros_like(weights), weights]), np.array([0.0, bias[0]])
    return LinearHead(weights.astype(np.float32), bias.astype(np.float32), tuple(map(str, model.classes_)), c)
