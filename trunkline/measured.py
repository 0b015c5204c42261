"""What a head was measured at, in words."""

from collections.abc import Mapping
from typing import Final

_HEADLINES: Final = {"multi_label": ("macro_f1", "macro F1"), "regression": ("accuracy", "R²")}
_USUAL: Final = ("accuracy", "accuracy")


def headline(task: str, metrics: Mapping[str, object]) -> str:
    """Of *metrics*, a manifest's, the number that versions of a head of *task* are compared by, with its name; or ""."""
    name, words = _HEADLINES.get(task, _USUAL)
    value = metrics.get(name)
    return f"{words} {value:.4f}" if isinstance(value, int | float) else ""
