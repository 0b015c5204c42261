import itertools
import random

import pytest

from embedding_service.backend import BackendError, Batch, PassCost
from embedding_service.backend.fake import FakeBackend
from perf.micro.pass_cost import NUM_BATCHES, Timed, fitted, random_batches, said, timed

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


def test_no_batch_is_larger_than_a_queue_would_make_it() -> None:
    long = [(1,) * 500] * 40 + [(1,) * 3_000]

    batches = random_batches(long)

    assert {1, 2} == {len(rows) for rows in batches}
    assert 3_000 in {len(rows[0]) for rows in batches}, "a single row may be of any length"


def test_times_that_do_not_grow_with_the_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="do not grow"):
        fitted([Timed((length,), 1e-3) for length in range(1, 50)])


def test_what_is_said_has_the_prices_found_and_those_counted_now() -> None:
    measured = [
        Timed(lengths, seconds_of(lengths, padding=0.5, cell=0.001))
        for lengths in (tuple(map(len, rows)) for rows in random_batches(TEXTS))
    ]

    told = said(FakeBackend(pass_cost=PassCost(33.0)).engine, measured)

    assert "fake: a token 100 us; in tokens: a pass 30 (30 to 30; the queue counts 33), padding 0.50" in told


def test_each_batch_is_timed_by_what_it_takes() -> None:
    backend = FakeBackend(seconds_per_token=0.001, concurrency=2)

    found = timed(backend, [((1, 2, 3),), ((4, 5), (6,))], 1.0)

    assert [(3,), (2, 1)] == [one.lengths for one in found]
    assert all(one.seconds >= 0.003 for one in found)


def test_a_pass_that_fails_is_not_left_out_in_silence() -> None:
    calls = itertools.count()

    def fail(_: Batch) -> None:
        if next(calls) > 5:
            raise BackendError("broken")

    with pytest.raises(BackendError, match="broken"):
        timed(FakeBackend(fault=fail), [((1, 2, 3),)], 30.0)
