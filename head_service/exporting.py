"""Exporting a linear head in a process beside, `python -m head_service.exporting`, which nobody else starts.

TensorFlow takes seconds to load. Fitting a linear head does without it, so it is loaded on another core meanwhile, and only the
part that an export takes (`head_service.lean_tensorflow`). What that process does not do, for whatever reason, is done in this
one: it makes a run quicker and never makes one fail. Whoever imports this loads no TensorFlow.
"""

import contextlib
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from clients.wire.catalogue import Manifest, Task, decode_manifest, encode
from head_service.training.features import Features
from head_service.training.heads import Head
from head_service.training.linear_head import LinearHead

_log = logging.getLogger(__name__)

EXPORT_SECONDS: Final = 60.0
"""What takes longer is stuck: TensorFlow's import takes a tenth of it, the export a hundredth."""

TENSORFLOW_SETTINGS: Final = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "CUDA_VISIBLE_DEVICES": "-1",
    # Results that do not depend on the order of a fused computation; its absence is also quiet.
    "TF_ENABLE_ONEDNN_OPTS": "0",
}
"""Of the environment, where it does not say otherwise, before TensorFlow is loaded for an export."""

NUM_GOLDEN: Final = 5
WARMUP_ROWS: Final = (1, 8, 32)
"""Of each warm-up request. An export looks at so many features, at those of the golden examples, and at no others."""

_FLOATS: Final = np.dtype("<f4")

Export = Callable[[Head, Manifest, Features, list[str], Path, Sequence[Sequence[int]] | None], None]
"""See `head_service.export.export_head`."""


class Order(msgspec.Struct, frozen=True):
    """What a head is exported from, arrays as their little-endian float32 bytes. *manifest* is as a version has it."""

    directory: str
    manifest: bytes
    task: Task
    labels: tuple[str, ...]
    one_vs_rest: bool
    kernel: bytes
    bias: bytes
    features: bytes
    width: int
    texts: list[str]
    rows: list[list[int]]


def export_here(
    head: Head,
    manifest: Manifest,
    features: Features,
    texts: list[str],
    directory: Path,
    rows: Sequence[Sequence[int]] | None = None,
) -> None:
    """`export_head`, for which TensorFlow is loaded only now."""
    from head_service.export import export_head  # noqa: PLC0415

    export_head(head, manifest, features, texts, directory, rows)


@dataclass(frozen=True, slots=True)
class _Beside:
    """Has *process* export the first head it is given, if that is linear; an `Export`."""

    process: subprocess.Popen[bytes]

    def __call__(
        self,
        head: Head,
        manifest: Manifest,
        features: Features,
        texts: list[str],
        directory: Path,
        rows: Sequence[Sequence[int]] | None = None,
    ) -> None:
        if isinstance(head, LinearHead) and isinstance(features, np.ndarray):
            if self._does(order_of(head, manifest, features, texts, directory, rows)):
                return
            _log.info("head %s is exported here: the process beside did not (its status: %s)", manifest.name, self.process.poll())
            _empty(directory)
        export_here(head, manifest, features, texts, directory, rows)

    def _does(self, order: Order) -> bool:
        """Whether it did; False also when it has ended, or had an order before."""
        try:
            self.process.communicate(msgspec.msgpack.encode(order), timeout=EXPORT_SECONDS)
        except (OSError, ValueError, subprocess.TimeoutExpired):
            # Closes its stdin and waits: it writes nothing more from here on.
            with contextlib.suppress(OSError, ValueError), self.process:
                self.process.kill()
            return False
        return self.process.returncode == 0


@contextlib.contextmanager
def exporting_beside() -> Iterator[Export]:
    """Start loading TensorFlow in a process of its own; what exports there. The process is gone with the context."""
    try:
        process = subprocess.Popen(
            # -P: the user's folder may hold a csv.py or a numpy.py.
            [sys.executable, "-P", "-m", "head_service.exporting"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=TENSORFLOW_SETTINGS | os.environ,
        )
    except OSError:
        # No room for another process.
        yield export_here
        return
    try:
        yield _Beside(process)
    finally:
        process.kill()
        with contextlib.suppress(OSError, ValueError):
            process.communicate()


def order_of(
    head: LinearHead,
    manifest: Manifest,
    features: NDArray[np.float32],
    texts: list[str],
    directory: Path,
    rows: Sequence[Sequence[int]] | None,
) -> Order:
    """The order for what `export_head` is given; of texts and features only what it looks at."""
    of_texts = [list(some) for some in (rows or [[row] for row in range(len(features))])[:NUM_GOLDEN]]
    seen = features[: max(*WARMUP_ROWS, of_texts[-1][-1] + 1)]
    return Order(
        str(directory),
        encode(manifest),
        head.task,
        head.labels,
        head.one_vs_rest,
        head.kernel.astype(_FLOATS).tobytes(),
        head.bias.astype(_FLOATS).tobytes(),
        seen.astype(_FLOATS).tobytes(),
        features.shape[1],
        texts[:NUM_GOLDEN],
        of_texts,
    )


def carry_out(order: Order, export: Export = export_here) -> None:
    """Export what *order* is of."""
    kernel, bias, features = (np.frombuffer(raw, _FLOATS) for raw in (order.kernel, order.bias, order.features))
    labels = order.labels
    head = LinearHead(kernel.reshape(-1, len(labels)), bias, labels, order.task, order.one_vs_rest)
    manifest = decode_manifest(order.manifest)
    export(head, manifest, features.reshape(-1, order.width), order.texts, Path(order.directory), order.rows)


def _empty(directory: Path) -> None:
    """Remove what an export that did not end well left."""
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def main() -> int:
    """One order from stdin; exit status 0 when it is carried out, or none came."""
    from head_service import lean_tensorflow  # noqa: PLC0415 (this is what the process is for)

    lean_tensorflow.install()
    import head_service.export  # noqa: F401, PLC0415

    if given := sys.stdin.buffer.read():
        carry_out(msgspec.msgpack.decode(given, type=Order))
    # TensorFlow takes a second to end.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
