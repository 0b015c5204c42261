import itertools
import random
import threading

import pytest

from embedding_service.backend import Batch
from embedding_service.backend.fake import FakeBackend
from perf.micro.pass_cost import NUM_BATCHES, Timed, fitted, random_batches, timed

TEXTS = [(1,) * length for length in (3, 5, 8, 13, 21, 34, 55, 89, 144, 233) * 8]


def seconds_of(lengths: tuple[int, ...], *, padding: float, cell: float) -> float:
    wanted, area = sum(lengths), len(lengths) * max(lengths)
    return 1e-4 * (30 + wanted + padding * (area - wanted) + cell * area * max(lengths))


@pytest.mark.parametrize(("padding", "cell"), [(1.0, 0.0), (0.0, 0.001), (0.25, 0.002), (0.0, 0.0)])
def test_the_costs_that_made_the_times_are_found(padding: float, cell: float) -> None:
    measured = [
        Timed(lengths, seconds_of(lengths, padding=padding, cell=cell))
        for lengths in (tuple(map(len, rows)) for rows in random_batches(TEXTS))
    ]

    found = fitted(measured)

    assert 100 == pytest.approx(found.token_us, rel=1e-3)
    assert (30, padding, cell) == pytest.approx((found.cost.overhead, found.cost.padding, found.cost.cell), rel=1e-3, abs=1e-6)
    assert found.deviation < 1e-3


def test_times_that_vary_say_how_well_they_fit() -> None:
    draw = random.Random(1)
    measured = [Timed((length,) * 4, 1e-3 * length * draw.uniform(0.8, 1.2)) for length in range(10, 200)]

    assert 0.05 < fitted(measured).deviation < 0.2


def test_batches_are_of_like_and_of_unlike_lengths() -> None:
    batches = random_batches(TEXTS)
    spans = [max(map(len, rows)) / min(map(len, rows)) for rows in batches if len(rows) > 3]

    assert NUM_BATCHES == len(batches)
    assert min(spans) == 1
    assert max(spans) > 5
    assert batches == random_batches(TEXTS)


def test_few_texts_make_small_batches() -> None:
    assert {1, 2} == {len(rows) for rows in random_batches(TEXTS[:2])}


def test_passes_run_side_by_side_and_each_batch_is_timed() -> None:
    together = threading.Barrier(2, timeout=30)
    backend = FakeBackend(seconds_per_token=0.001, concurrency=2)
    batches = [((1, 2, 3),), ((4, 5), (6,))]
    calls = itertools.count()

    def meet(_: Batch) -> None:
        # The first of both threads, after each batch was run once.
        if len(batches) <= next(calls) < len(batches) + 2:
            together.wait()

    backend.fault = meet
    found = timed(backend, batches, 0.1)

    assert [(3,), (2, 1)] == [one.lengths for one in found]
    assert all(one.seconds >= 0.003 for one in found)
