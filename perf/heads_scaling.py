"""`python -m perf.heads_scaling`: what 1, 8, 32 and 100 heads of one view cost a text, with bundles and without, side by side.

The heads are linear, of two to five labels, with drawn weights: what they say is of no interest here, and what they cost does not
depend on it. Everything else is as it is served: encoder, head server, gateway, each in a process of its own.
"""

import argparse
import asyncio
import contextlib
import os
import re
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console

from clients.wire.catalogue import Manifest, TrunkRef, View
from clients.wire.text import TextEncoder
from embedding_service.backend import TrunkSpec
from embedding_service.backend.load import load_backend
from embedding_service.models.prepare import prepare
from head_service.bundling import bundle_once
from head_service.catalogue import ensure_layout
from head_service.lifecycle import Lifecycle, already_available
from head_service.repository import Repository
from perf.load import LoadResult, Target, classify_bodies, closed_loop, target_of
from perf.workloads import short_texts, texts_of
from trunkline import paths
from trunkline.demo_data import prepare_demo_data
from trunkline.processes import Child
from trunkline.stack import Stack, StackSettings

NUM_HEADS: Final = (1, 8, 32, 100)
IN_FLIGHT: Final = 64
LABEL_COUNTS: Final = (2, 3, 4, 5)
DEMO_HEAD: Final = "sentiment"
SETTLE_SECONDS: Final = 1.5
"""More than a gateway takes to notice a bundle."""


@dataclass(frozen=True, slots=True)
class Case:
    """So many heads of a text, through a gateway that uses bundles, or one that does not."""

    num_heads: int
    bundles: bool

    def __str__(self) -> str:
        return f"{self.num_heads:>3} heads, {'bundle' if self.bundles else 'single'}"


def head_names(count: int) -> list[str]:
    """Of the first *count* heads."""
    return [f"head-{number:03}" for number in range(count)]


def cpu_ms(result: LoadResult) -> float:
    """Per text, of all processes but the one that makes the load."""
    return sum(ms for name, ms in result.cpu_ms_per_text.items() if name != "load")


def cases(*, singles: bool) -> list[Case]:
    """Those to be compared, the cheapest first; of single heads not those that take all day."""
    return [Case(count, True) for count in NUM_HEADS] + ([Case(count, False) for count in NUM_HEADS[1:3]] if singles else [])


def ratios(rounds: Sequence[dict[Case, LoadResult]], case: Case) -> tuple[list[float], list[float]]:
    """CPU per text, and wall time per text, of *case* in parts of one head's, round by round."""
    one = Case(1, True)
    cpu = [cpu_ms(found[case]) / cpu_ms(found[one]) for found in rounds]
    return cpu, [found[one].throughput / found[case].throughput for found in rounds]


async def measure(targets: dict[Case, Target], pids: dict[str, int], args: argparse.Namespace, console: Console) -> None:
    """Measure all in turns and print each, then the ratios with their spread."""
    for target in targets.values():
        await closed_loop(target, in_flight=IN_FLIGHT, seconds=args.warm_up)
    rounds: list[dict[Case, LoadResult]] = []
    for _ in range(args.rounds):
        found = {}
        for case, target in targets.items():
            found[case] = await closed_loop(target, in_flight=IN_FLIGHT, seconds=args.seconds, pids=pids)
            console.print(f"{case}  {cpu_ms(found[case]):.2f} CPU ms/text  {found[case].summary()}")
        rounds.append(found)
    for case in targets:
        cpu, wall = ratios(rounds, case)
        console.print(f"{case}: cost / one head's: CPU {spread(cpu)}, wall {spread(wall)}")


def spread(values: Sequence[float]) -> str:
    """The median, and from where to where."""
    return f"{statistics.median(values):.3f} (from {min(values):.3f} to {max(values):.3f})"


def publish_heads(root: Path, trunk: TrunkSpec, count: int) -> None:
    """*count* linear heads in the repository at *root*, live as soon as a head server has loaded them."""
    ensure_layout(root)
    repository = Repository(root)
    lifecycle = Lifecycle(repository, already_available)
    random = np.random.default_rng(0)
    for number, name in enumerate(head_names(count)):
        lifecycle.promote(name, publish_head(repository, trunk, name, LABEL_COUNTS[number % len(LABEL_COUNTS)], random))


def publish_head(repository: Repository, trunk: TrunkSpec, name: str, num_labels: int, random: np.random.Generator) -> int:
    """Another version of *name*, linear, with drawn weights; its number."""
    from head_service.export import export_head  # noqa: PLC0415 (TensorFlow: seconds)
    from head_service.training.linear_head import LinearHead  # noqa: PLC0415

    width = trunk.width
    rows = random.normal(size=(8, width)).astype(np.float32) / np.float32(width**0.5)
    labels = tuple(f"label-{place}" for place in range(num_labels))
    head = LinearHead(random.normal(size=(width, num_labels)).astype(np.float32), np.zeros(num_labels, np.float32), labels)

    def export(directory: Path, version: int) -> None:
        ref = TrunkRef(trunk.name, trunk.fingerprint)
        described = Manifest(name=name, version=version, labels=head.labels, width=width, trunk=ref, view=View())
        export_head(head, described, rows, ["drawn"] * len(rows), directory)

    return repository.publish(name, export, fingerprint=trunk.fingerprint)


@contextlib.asynccontextmanager
async def second_gateway(stack: Stack) -> AsyncIterator[tuple[str, int]]:
    """A gateway beside the stack's that uses no bundles: its URL and process."""
    command = [*stack.children["gateway"].command, "--no-bundles"]
    command[command.index("--port") + 1] = "0"
    log = stack.settings.log_dir / "gateway-single.log"
    child = Child("gateway", command, ready=re.compile(r"^gateway (http://\S+)$"), log=log, env=os.environ)
    try:
        match = await child.start(60.0)
        yield match[1], child.pid
    finally:
        await child.stop(5.0)


async def run(args: argparse.Namespace, console: Console) -> None:
    """Prepare, measure, stop."""
    backend = load_backend(prepare(None, cache_dir=paths.cache_dir(), engine=args.engine))
    trunk = backend.trunk
    backend.close()
    encoder = TextEncoder(trunk.tokenizer_json, max_tokens=trunk.max_tokens)
    files = [head.train_csv for head in prepare_demo_data(paths.cache_dir(), print) if head.name == DEMO_HEAD]
    texts = short_texts(texts_of(files[0]), encoder)
    # The texts come again and again: a cache would answer for the engine.
    os.environ["TRUNKLINE_EMBEDDING_CACHE_BYTES"] = "0"
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "repository"
        await asyncio.to_thread(publish_heads, root, trunk, max(NUM_HEADS))
        settings = StackSettings(root, paths.cache_dir(), Path(scratch) / "logs", engine=args.engine).on_any_ports()
        stack = Stack(settings, console.print)
        try:
            addresses = await stack.start()
            await asyncio.to_thread(bundle_once, root, addresses.heads_grpc, console.print)
            async with second_gateway(stack) as (url, pid):
                await asyncio.sleep(SETTLE_SECONDS)
                targets = {
                    case: target_of(
                        addresses.gateway if case.bundles else url, classify_bodies(texts, head_names(case.num_heads))
                    )
                    for case in cases(singles=not args.no_singles)
                }
                pids = {name: child.pid for name, child in stack.children.items()} | {"gateway-single": pid}
                await measure(targets, pids, args, console)
        finally:
            await stack.stop()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser("python -m perf.heads_scaling", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of one case in one round")
    parser.add_argument("--warm-up", type=float, default=1.5, help="seconds of each case that do not count")
    parser.add_argument("--no-singles", action="store_true", help="leave out the gateway without bundles")
    parser.add_argument("--engine", default="auto")
    asyncio.run(run(parser.parse_args(), Console(highlight=False, soft_wrap=True)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
