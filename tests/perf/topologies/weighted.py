"""Heads to test with."""

from pathlib import Path

import numpy as np

from perf.topologies.plan import HeadSet, HeadWeights


def head(name: str, *labels: str, width: int = 2) -> HeadWeights:
    """Each label is said of vectors that are longest in its place."""
    return HeadWeights(name, labels, np.eye(width, len(labels), dtype=np.float32), np.zeros(len(labels), np.float32))


def head_set(*heads: HeadWeights, texts: tuple[str, ...] = (), truth: tuple[str, ...] = (), root: Path = Path()) -> HeadSet:
    """Of them, with files that need not be there."""
    return HeadSet(heads, root / "repository", root / "weights.npz", texts, truth)
