"""`python -m perf.heads_accuracy`: what each type of head makes of one frozen trunk, on four sets of data.

Embeds through an embedding service of its own and keeps every vector, so that a second run trains alone. C and everything else is
chosen on parts of the training data; the held-out texts are looked at once, for the number that is printed.
"""

import argparse
import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import numpy as np
from rich.console import Console

from clients import EmbeddingClient
from clients.wire.catalogue import View
from head_service.training.dataset import read_dataset
from head_service.training.embeddings import EmbeddingCache, embed_features
from head_service.training.features import take
from head_service.training.fit import HEAD_CHOICES, FitOptions, HeadChoice, fit, reading_for
from head_service.training.heads import quality
from head_service.training.targets import single_label
from perf.heads_data import HeadData, prepare_heads_data
from perf.settings import ENGINES, wide_console
from trunkline import paths
from trunkline.stack import Stack, StackSettings

LAYERS: Final = (-1, -2, -3, -4)


@dataclass(frozen=True, slots=True)
class Row:
    """What one type made of one set: *seconds* are those of the fit alone."""

    data: HeadData
    head_type: str
    accuracy: float
    validation: float
    seconds: float
    told: str


def measure(data: HeadData, head_type: HeadChoice, given: argparse.Namespace, embedder: EmbeddingClient, console: Console) -> Row:
    """Train on the one file, count on the other."""
    known, unseen = (read_dataset(path, for_training=path is data.train_csv) for path in (data.train_csv, data.test_csv))
    trunk = embedder.trunk()
    layers = tuple(given.mix) if given.all_mix or head_type in {"mix", "auto"} else ()
    view = View(pooling=given.pooling, normalize=not given.raw)
    reading = reading_for(head_type, view, layers, trunk.layers)
    cache = EmbeddingCache(given.cache_dir / "perf" / "heads-embeddings.sqlite")
    texts = known.texts + unseen.texts
    with console.status(f"{data.name}: embedding") as status:

        def tell(done: int, total: int) -> None:
            status.update(f"{data.name}: {done} of {total} texts embedded")

        features = embed_features(texts, reading.views, embedder, cache, tell)
    ends = np.arange(len(known.texts)), np.arange(len(known.texts), len(texts))
    started = time.perf_counter()
    num_layers = max(1, len(reading.mix_layers))
    options = FitOptions(head_type, seed=given.seed)
    fitted = fit(take(features, ends[0]), single_label(known.labels), options, num_layers)
    seconds = time.perf_counter() - started
    held = take(features, ends[1])
    if isinstance(held, np.ndarray):
        held = held[:, : fitted.head.spec.width]
    truth = single_label(unseen.labels, fitted.head.labels)
    accuracy = quality(truth, fitted.head.logits(held))
    validation = quality(fitted.validation, fitted.validation_logits)
    return Row(data, head_type, accuracy, validation, seconds, fitted.told)


async def main() -> None:
    """Print a line a set and type."""
    given = _arguments()
    console = wide_console()
    sets = {data.name: data for data in prepare_heads_data(given.cache_dir, console.print)}
    home = given.cache_dir / "perf" / "heads-stack"
    settings = StackSettings(home / "repository", given.cache_dir, home / "logs", engine=given.engine, layers=tuple(given.layers))
    stack = Stack(settings.on_any_ports(), console.print)
    try:
        address, _ = await stack.start_embedding()
        with EmbeddingClient(address, timeout=300.0) as embedder:
            for name in given.sets or sets:
                for head_type in given.types:
                    row = await asyncio.to_thread(measure, sets[name], cast("HeadChoice", head_type), given, embedder, console)
                    console.print(_line(row))
    finally:
        await stack.stop()


def _line(row: Row) -> str:
    verdict = "reached" if row.accuracy >= row.data.goal else "missed"
    return (
        f"{row.data.name:<7} {row.head_type:<10} {row.accuracy:.4f}  (goal {row.data.goal} {verdict}; "
        f"validation {row.validation:.4f}; {row.seconds:.1f} s; {row.told}; {row.data.title})"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m perf.heads_accuracy", description=__doc__)
    parser.add_argument("--sets", nargs="+", choices=["topic", "spam", "tweets", "movie"], help="all when absent")
    parser.add_argument("--types", nargs="+", choices=HEAD_CHOICES, default=[name for name in HEAD_CHOICES if name != "auto"])
    parser.add_argument("--engine", choices=ENGINES, default="auto")
    parser.add_argument("--layers", nargs="+", type=int, default=list(LAYERS), help="the service computes")
    parser.add_argument("--mix", nargs="+", type=int, default=list(LAYERS), help="the layers that mix and auto read")
    parser.add_argument("--all-mix", action="store_true", help="the other types read these layers, too, one behind the other")
    parser.add_argument(
        "--pooling", choices=["mean", "cls", "max", "mean_max"], default="mean", help="of heads that read no tokens"
    )
    parser.add_argument("--raw", action="store_true", help="pooled vectors are left as long as they are")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.cache_dir = Path(paths.cache_dir())
    return given


if __name__ == "__main__":
    asyncio.run(main())
