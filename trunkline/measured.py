"""What a head was measured at, in words."""

from collections.abc import Mapping
from typing import Final

from head_service.gate import METRICS

_WORDS: Final = {"multi_label": "macro F1", "regression": "R²"}


def headline(task: str, metrics: Mapping[str, object]) -> str:
    """Of *metrics*, a manifest's, the number that versions of a head of *task* are compared by, with its name; or ""."""
    name = METRICS.get(task, "accuracy")
    value = metrics.get(name)
    return f"{_WORDS.get(task, name)} {value:.4f}" if isinstance(value, int | float) else ""
