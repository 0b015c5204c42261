"""Linear heads in one file, for processes that know nothing of repositories, and what they say of a vector."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from perf.topologies.plan import FloatArray, HeadWeights


def write_weights(heads: Sequence[HeadWeights], path: Path) -> None:
    """An .npz of `kernel_<name>`, `bias_<name>` and `labels_<name>`, in the order of *heads*."""
    arrays = {
        f"{part}_{head.name}": value
        for head in heads
        for part, value in (("kernel", head.kernel), ("bias", head.bias), ("labels", np.array(head.labels, dtype=np.str_)))
    }
    np.savez(path, allow_pickle=False, **arrays)


def read_weights(path: Path) -> tuple[HeadWeights, ...]:
    """What `write_weights` wrote.

    Raises:
        OSError, KeyError, ValueError: it is no such file.
    """
    with np.load(path, allow_pickle=False) as file:
        names = [key.removeprefix("kernel_") for key in file.files if key.startswith("kernel_")]
        return tuple(
            HeadWeights(name, tuple(file[f"labels_{name}"].tolist()), file[f"kernel_{name}"], file[f"bias_{name}"])
            for name in names
        )


def label_of(head: HeadWeights, vector: FloatArray) -> str:
    """The likeliest label of *vector*, float32 [width]."""
    return head.labels[int((vector @ head.kernel + head.bias).argmax())]
