"""`python -m perf.micro.pass_cost`: what a forward pass takes beside its tokens, by which the queue cuts batches.

Batches of all sizes that a queue might make, of like and of unlike lengths, are run in random order, as many at once as the
engine takes. Their times are fitted by one of a pass, one of a token, one of a token of padding and one of a place in
attention's grid, none below 0. Other halves of the batches give other prices: how far these lie apart is told beside each.
"""

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Final

import numpy as np
from sklearn.linear_model import LinearRegression

from embedding_service.backend import Backend, Batch, EngineSpec, PassCost
from embedding_service.backend.load import load_backend
from embedding_service.models.prepare import prepare
from embedding_service.queue import QueueLimits
from perf.machine import wait_until_quiet
from perf.settings import add_common, wide_console, workloads_asked_for
from perf.systems import token_ids_of
from perf.trunks import long_trunk
from trunkline import paths

NUM_BATCHES: Final = 300
ROWS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
MOST_PLACES: Final = 2 * QueueLimits().max_batch_tokens
"""Of a batch, rows times the longest: the queue makes none that is larger by much."""

NUM_RESAMPLES: Final = 20

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Timed:
    """A batch's rows by their lengths, and the seconds its pass takes."""

    lengths: tuple[int, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Fitted:
    """Microseconds of a token, what else there is in tokens, and the root mean square of the fit's errors, as a share."""

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
        chosen = ordered[first : first + rows] if number % 2 else draw.sample(ordered, rows)
        batches.append(tuple(_within(chosen)))
    return batches


def _within(rows: Sequence[Ids]) -> Sequence[Ids]:
    """As many of *rows*, and one at least, as are no larger than `MOST_PLACES` together."""
    longest = 0
    for number, row in enumerate(rows):
        longest = max(longest, len(row))
        if number and longest * (number + 1) > MOST_PLACES:
            return rows[:number]
    return rows


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

    with ThreadPoolExecutor(backend.engine.concurrency) as pool:
        list(pool.map(work, range(backend.engine.concurrency)))
    return [Timed(tuple(map(len, rows)), statistics.median(times)) for rows, times in zip(batches, taken, strict=True) if times]


def fitted(measured: Sequence[Timed]) -> Fitted:
    """The costs under which *measured* is least surprising, a deviation counted as a share of the time.

    Raises:
        ValueError: tokens seem to cost nothing.
    """
    seconds = np.array([one.seconds for one in measured])
    features = np.array([_features(one.lengths) for one in measured]) / seconds[:, None]
    model = LinearRegression(fit_intercept=False, positive=True).fit(features, np.ones_like(seconds))
    a_pass, token, padding, cell = (float(value) for value in model.coef_)
    if not token:
        raise ValueError("the times do not grow with the tokens: take longer texts, or more of them")
    deviation = float(np.sqrt(np.mean((features @ model.coef_ - 1) ** 2)))
    return Fitted(token * 1e6, PassCost(a_pass / token, padding / token, cell / token), deviation)


def spreads(measured: Sequence[Timed], seed: int = 0) -> list[PassCost]:
    """The costs by halves of *measured*, drawn at random."""
    draw = random.Random(seed)  # noqa: S311 (a repeatable choice, no secret)
    return [fitted(draw.sample(measured, len(measured) // 2)).cost for _ in range(NUM_RESAMPLES)]


def _features(lengths: Sequence[int]) -> tuple[int, int, int, int]:
    wanted, area = sum(lengths), len(lengths) * max(lengths)
    return 1, wanted, area - wanted, area * max(lengths)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m perf.micro.pass_cost", description=__doc__)
    add_common(parser, seconds=40.0, workloads=("mix",))
    given, console = parser.parse_args(), wide_console()
    prepared = prepare(
        str(long_trunk(paths.cache_dir())), cache_dir=paths.cache_dir(), engine=given.engine, progress=console.print
    )
    with closing(load_backend(prepared)) as backend:
        for workload in workloads_asked_for(given):
            wait_until_quiet([], console.print, given.waits)
            measured = timed(backend, random_batches(token_ids_of(backend, workload.texts)), given.seconds)
            console.print(f"{workload.name}, {backend.trunk.width} wide, {said(backend.engine, measured)}")


def said(engine: EngineSpec, measured: Sequence[Timed]) -> str:
    """What was found, for people, beside what the queue counts."""
    found, halves, now = fitted(measured), spreads(measured), engine.pass_cost
    prices = [
        f"{name} {form.format(value)} ({form.format(min(others))} to {form.format(max(others))}; the queue counts {counted:g})"
        for name, form, value, others, counted in (
            ("a pass", "{:.0f}", found.cost.overhead, [half.overhead for half in halves], now.overhead),
            ("padding", "{:.2f}", found.cost.padding, [half.padding for half in halves], now.padding),
            ("a place of attention", "{:.5f}", found.cost.cell, [half.cell for half in halves], now.cell),
        )
    ]
    return f"{engine.label}: a token {found.token_us:.0f} us; in tokens: {', '.join(prices)}; fit within {found.deviation:.1%}"


if __name__ == "__main__":
    main()
