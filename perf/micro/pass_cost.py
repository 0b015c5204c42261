"""`python -m perf.micro.pass_cost`: what a forward pass takes beside its tokens, by which the queue cuts batches.

Batches of all sizes, of like and of unlike lengths, are run in random order, as many at once as the engine takes. Their times are
fitted by one of a pass, one of a token, one of a token of padding and one of a place in attention's grid, none below 0.
"""

import argparse
import random
import statistics
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Final

import numpy as np
from sklearn.linear_model import LinearRegression

from embedding_service.backend import Backend, Batch, PassCost
from embedding_service.backend.load import load_backend
from embedding_service.models.prepare import prepare
from perf.settings import add_common, wide_console, workloads_asked_for
from perf.systems import token_ids_of
from perf.trunks import long_trunk
from trunkline import paths

NUM_BATCHES: Final = 300
ROWS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Timed:
    """A batch's rows by their lengths, and the seconds its pass takes."""

    lengths: tuple[int, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Fitted:
    """Microseconds of a token, what else there is in tokens, and the standard deviation of the fit's errors, as a share."""

    token_us: float
    cost: PassCost
    deviation: float


def random_batches(token_ids: Sequence[Ids], seed: int = 0) -> list[tuple[Ids, ...]]:
    """Half of them of neighbours by length, half of any texts."""
    draw = random.Random(seed)  # noqa: S311 (a repeatable choice, no secret)
    ordered = sorted(token_ids, key=len)
    batches = []
    for number in range(NUM_BATCHES):
        rows = min(draw.choice(ROWS), len(ordered))
        first = draw.randrange(len(ordered) - rows + 1)
        batches.append(tuple(ordered[first : first + rows] if number % 2 else draw.sample(ordered, rows)))
    return batches


def timed(backend: Backend, batches: Sequence[tuple[Ids, ...]], seconds: float) -> list[Timed]:
    """Run *batches* for *seconds*, on as many threads as the engine takes; each one's median."""
    views = (backend.trunk.default_view,)
    passes = [Batch(rows, (views,) * len(rows)) for rows in batches]
    taken: list[list[float]] = [[] for _ in passes]
    for one in passes:
        # Kernels are made for shapes that are new.
        backend.embed(one)
    end = time.perf_counter() + seconds

    def work(seed: int) -> None:
        draw = random.Random(seed)  # noqa: S311 (a repeatable order, no secret)
        while time.perf_counter() < end:
            number = draw.randrange(len(passes))
            began = time.perf_counter()
            backend.embed(passes[number])
            taken[number].append(time.perf_counter() - began)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(backend.engine.concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [Timed(tuple(map(len, rows)), statistics.median(times)) for rows, times in zip(batches, taken, strict=True) if times]


def fitted(measured: Sequence[Timed]) -> Fitted:
    """The costs under which *measured* is least surprising, a deviation counted as a share of the time."""
    seconds = np.array([one.seconds for one in measured])
    features = np.array([_features(one.lengths) for one in measured]) / seconds[:, None]
    model = LinearRegression(fit_intercept=False, positive=True).fit(features, np.ones_like(seconds))
    a_pass, token, padding, cell = (float(value) for value in model.coef_)
    deviation = float(np.std(features @ model.coef_))
    return Fitted(token * 1e6, PassCost(a_pass / token, padding / token, cell / token), deviation)


def _features(lengths: Sequence[int]) -> tuple[int, int, int, int]:
    wanted, area = sum(lengths), len(lengths) * max(lengths)
    return 1, wanted, area - wanted, area * max(lengths)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m perf.micro.pass_cost", description=__doc__)
    add_common(parser, seconds=40.0, workloads=("mix",))
    given, console = parser.parse_args(), wide_console()
    trunk = long_trunk(paths.cache_dir())
    for workload in workloads_asked_for(given):
        prepared = prepare(str(trunk), cache_dir=paths.cache_dir(), engine=given.engine, progress=console.print)
        with closing(load_backend(prepared)) as backend:
            found = fitted(timed(backend, random_batches(token_ids_of(backend, workload.texts)), given.seconds))
            cost, now = found.cost, backend.engine.pass_cost
            console.print(
                f"{workload.name}, {backend.engine.label}, {backend.trunk.width} wide: a token {found.token_us:.0f} us;"
                f" in tokens: a pass {cost.overhead:.0f}, padding {cost.padding:.2f}, a place of attention {cost.cell:.5f}"
                f" (fit: {found.deviation:.1%}); the queue counts {now.overhead:.0f}, {now.padding:.2f}, {now.cell:.5f}"
            )


if __name__ == "__main__":
    main()
