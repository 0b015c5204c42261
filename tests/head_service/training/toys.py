"""Toy problems that every type of head must learn."""

import numpy as np
from numpy.typing import NDArray

from head_service.training.features import TokenFeatures

WIDTH = 8


def clusters(labels: tuple[str, ...], num_each: int = 20, noise: float = 0.05) -> tuple[NDArray[np.float32], list[str]]:
    """A vector near its label's own unit vector, for *num_each* texts a label."""
    random = np.random.default_rng(0)
    named = [label for label in labels for _ in range(num_each)]
    centres = np.eye(WIDTH, dtype=np.float32)[[labels.index(label) for label in named]]
    return centres + random.normal(0, noise, centres.shape).astype(np.float32), named


def hidden_tokens(vectors: NDArray[np.float32], seed: int = 0) -> TokenFeatures:
    """Texts of 1 to 13 tokens, one of which is the text's vector, twice as long, and the others nothing much."""
    random = np.random.default_rng(seed)

    def noise() -> NDArray[np.float32]:
        return random.normal(0, 0.2, (int(random.integers(0, 7)), vectors.shape[1])).astype(np.float32)

    return TokenFeatures.of([np.concatenate([noise(), 2 * vector[None], noise()]) for vector in vectors])
