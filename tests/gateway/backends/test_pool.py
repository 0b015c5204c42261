import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from clients import (
    Cancelled,
    Deadline,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    InvalidResponse,
    NotFound,
    Overloaded,
    ServerFault,
    TrunklineError,
    Unauthenticated,
    Unavailable,
)
from gateway.backends.budget import Budget
from gateway.backends.pool import Habits, Pool, first_good, for_backend, verdict
from gateway.backends.replicas import Outcome, Policy
from tests.gateway.backends.fakes import Facts, FakeReplica, until

QUICK = Policy(suspect_seconds=0.02, base_ejection_seconds=0.05)
SLOW = Policy(suspect_seconds=60.0)


@asynccontextmanager
async def pool_of(
    *replicas: FakeReplica, policy: Policy = SLOW, budget: Budget | None = None, facts: Facts | None = None, **habits: Any
) -> AsyncIterator[tuple[Pool, Callable[[int], Awaitable[Any]]]]:
    """The pool, and the attempt that calls a replica."""

    async def probe(number: int, timeout: float) -> None:
        await replicas[number].probe(timeout)

    made = Pool(replicas, Habits("fake", probe, probe_seconds=0.02, **habits), policy=policy, budget=budget, facts=facts)
    made.start()
    try:
        yield made, lambda number: replicas[number].call()
    finally:
        await made.close()


def soon() -> Deadline:
    return Deadline.after(5)


async def test_a_single_replica_is_simply_asked() -> None:
    replica = FakeReplica()
    async with pool_of(replica) as (pool, attempt):
        assert "answer" == await pool.run(attempt, 1, soon())
        replica.answer = Unavailable("down")
        with pytest.raises(Unavailable, match="down"):
            await pool.run(attempt, 1, soon())

    assert 2 == replica.calls


@pytest.mark.parametrize("count", [1, 2])
async def test_past_the_deadline_no_call_is_made(count: int) -> None:
    replicas = [FakeReplica() for _ in range(count)]
    async with pool_of(*replicas) as (pool, attempt):
        with pytest.raises(DeadlineExceeded):
            await pool.run(attempt, 1, Deadline.after(-1))

    assert 0 == sum(replica.calls for replica in replicas)


async def test_a_call_whose_replica_is_lost_is_tried_once_elsewhere() -> None:
    replicas = FakeReplica(Unavailable("down")), FakeReplica()
    facts = Facts()
    async with pool_of(*replicas, facts=facts) as (pool, attempt):
        answers = [await pool.run(attempt, 1, soon()) for _ in range(8)]

    assert ["answer"] * 8 == answers
    assert 3 == replicas[0].calls
    assert ["retried", "retried", "ejected 0 failures", "retried"] == facts.seen


async def test_there_is_no_third_attempt() -> None:
    replicas = [FakeReplica(Unavailable("down")) for _ in range(3)]
    async with pool_of(*replicas) as (pool, attempt):
        with pytest.raises(Unavailable):
            await pool.run(attempt, 1, soon())

    assert 2 == sum(replica.calls for replica in replicas)


async def test_in_a_total_outage_calls_are_hardly_tried_twice() -> None:
    replicas = [FakeReplica(Unavailable("down")) for _ in range(2)]
    async with pool_of(*replicas) as (pool, attempt):
        for _ in range(200):
            with pytest.raises(Unavailable):
                await pool.run(attempt, 1, soon())

    assert sum(replica.calls for replica in replicas) <= 210


@pytest.mark.parametrize(
    "error", [Overloaded("full"), InvalidRequest("no"), DeadlineExceeded("late"), FailedPrecondition("other")]
)
async def test_what_another_replica_would_not_do_better_is_not_tried_there(error: TrunklineError) -> None:
    replicas = FakeReplica(error), FakeReplica(error)
    async with pool_of(*replicas) as (pool, attempt):
        with pytest.raises(type(error)):
            await pool.run(attempt, 1, soon())

    assert 1 == replicas[0].calls + replicas[1].calls


async def test_a_service_may_name_errors_that_another_replica_may_not_have() -> None:
    replicas = FakeReplica(NotFound("not loaded yet")), FakeReplica()
    async with pool_of(*replicas, elsewhere=(NotFound,)) as (pool, attempt):
        assert ["answer"] * 8 == [await pool.run(attempt, 1, soon()) for _ in range(8)]
        assert "serving" == pool.snapshot[0][0]


async def test_calls_under_way_at_a_frozen_replica_are_moved_and_it_is_asked_again_when_it_wakes() -> None:
    replicas, facts = (FakeReplica(), FakeReplica()), Facts()
    async with pool_of(*replicas, policy=QUICK, facts=facts) as (pool, attempt):
        replicas[0].freeze()
        answers = await asyncio.gather(*(pool.run(attempt, 1, soon()) for _ in range(6)))
        assert ["answer"] * 6 == answers
        assert replicas[0].calls == replicas[0].cancelled > 0
        assert [("ejected", 0), ("serving", 0)] == pool.snapshot

        calls = replicas[0].calls
        assert "answer" == await pool.run(attempt, 1, soon())
        assert calls == replicas[0].calls

        replicas[0].thaw()
        await until(lambda: pool.is_usable(0))
        for _ in range(2):
            await pool.run(attempt, 1, soon())
        assert calls + 1 == replicas[0].calls
    assert ["ejected 0 silent", *["retried"] * calls, "readmitted 0"] == facts.seen


async def test_a_slow_replica_that_shows_life_keeps_its_calls() -> None:
    replicas, facts = (FakeReplica(), FakeReplica()), Facts()
    async with pool_of(*replicas, policy=QUICK, facts=facts) as (pool, attempt):
        replicas[0].gate.clear()
        calls = [asyncio.create_task(pool.run(attempt, 1, soon())) for _ in range(2)]
        await until(lambda: replicas[0].probes > 2)
        replicas[0].gate.set()
        await asyncio.gather(*calls)

    assert [] == facts.seen
    assert 0 == replicas[0].cancelled


async def test_moved_calls_go_in_waves_as_the_budget_permits() -> None:
    replicas = FakeReplica(), FakeReplica()
    budget = Budget(share=0.0, floor=2)
    async with pool_of(*replicas, policy=QUICK, budget=budget) as (pool, attempt):
        for replica in replicas:
            replica.gate.clear()
        replicas[0].pulse.clear()
        calls = [asyncio.create_task(pool.run(attempt, 1, soon())) for _ in range(10)]
        await until(lambda: replicas[0].cancelled == 5 and replicas[1].calls == 7)
        await asyncio.sleep(0)
        assert 7 == replicas[1].calls
        assert "3 waiting" in repr(budget)
        replicas[1].gate.set()
        assert ["answer"] * 10 == await asyncio.gather(*calls)

    assert "<Budget [0 calls, 0 extra, 0 waiting]>" == repr(budget)


async def test_without_a_permit_before_the_deadline_the_first_error_stands() -> None:
    replicas, budget, facts = (FakeReplica(Unavailable("down")), FakeReplica()), Budget(share=0.0, floor=1), Facts()
    budget.take()
    async with pool_of(*replicas, budget=budget, facts=facts) as (pool, attempt):
        calls = [pool.run(attempt, 1, Deadline.after(0.02)) for _ in range(2)]
        errors = [error for error in await asyncio.gather(*calls, return_exceptions=True) if error != "answer"]

    assert ["down"] == list(map(str, errors))

    assert ["retry refused"] == facts.seen


async def test_a_caller_who_leaves_says_nothing_about_the_replica() -> None:
    replicas, facts = (FakeReplica(), FakeReplica()), Facts()
    async with pool_of(*replicas, facts=facts) as (pool, attempt):
        for replica in replicas:
            replica.gate.clear()
        calls = [asyncio.create_task(pool.run(attempt, 1, soon())) for _ in range(20)]
        await until(lambda: replicas[0].calls + replicas[1].calls == 20)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert [("serving", 0)] * 2 == pool.snapshot

    assert [] == facts.seen
    assert 20 == replicas[0].cancelled + replicas[1].cancelled


async def test_one_that_drains_gets_no_more_calls_until_it_serves_again() -> None:
    replicas = FakeReplica(), FakeReplica()
    async with pool_of(*replicas) as (pool, attempt):
        replicas[0].say(True)
        replicas[0].say(False)
        await until(lambda: not pool.is_usable(0))
        for _ in range(4):
            await pool.run(attempt, 1, soon())
        assert (0, 4) == (replicas[0].calls, replicas[1].calls)
        replicas[0].say(True)
        await until(lambda: pool.is_usable(0))
        for _ in range(4):
            await pool.run(attempt, 1, soon())

    assert (2, 6) == (replicas[0].calls, replicas[1].calls)


async def test_an_ended_connection_is_as_good_as_a_refusal_and_is_watched_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.backends.pool.WATCH_AGAIN_SECONDS", 0.001)
    replicas, greeted = (FakeReplica(), FakeReplica()), []

    async def greet(number: int) -> None:
        greeted.append(number)

    async with pool_of(*replicas, greet=greet) as (pool, _):
        replicas[1].say(Unavailable("gone"))
        await until(lambda: not pool.is_usable(1))
        replicas[1].say(True)
        await until(lambda: pool.is_usable(1) and greeted == [1])


async def test_one_that_refuses_to_tell_its_health_is_asked_all_the_same() -> None:
    replicas = FakeReplica(), FakeReplica()
    async with pool_of(*replicas) as (pool, _):
        replicas[0].say(False)
        await until(lambda: not pool.is_usable(0))
        replicas[0].say(Unauthenticated("no key"))
        await until(lambda: pool.is_usable(0))


async def test_a_call_that_takes_long_is_hedged_and_the_first_answer_wins() -> None:
    replicas, facts = (FakeReplica("slow"), FakeReplica("slow")), Facts()
    async with pool_of(*replicas, facts=facts, hedge_seconds=0.01) as (pool, attempt):
        for replica in replicas:
            replica.gate.clear()
        call = asyncio.create_task(pool.run(attempt, 1, soon()))
        await until(lambda: replicas[0].calls and replicas[1].calls)
        replicas[1].answer = "quick"
        replicas[1].gate.set()
        assert "quick" == await call
        assert 1 == replicas[0].cancelled
        assert [("serving", 0)] * 2 == pool.snapshot

    assert ["hedged"] == facts.seen


async def test_a_hedge_that_fails_does_not_fail_the_call() -> None:
    replicas = [FakeReplica(), FakeReplica()]
    async with pool_of(*replicas, hedge_seconds=0.01) as (pool, attempt):
        for replica in replicas:
            replica.gate.clear()
        call = asyncio.create_task(pool.run(attempt, 1, soon()))
        await until(lambda: replicas[0].calls + replicas[1].calls == 1)
        first, second = sorted(replicas, key=lambda replica: -replica.calls)
        second.answer = Unavailable("down")
        second.gate.set()
        await until(lambda: second.calls == 1)
        first.gate.set()
        assert "answer" == await call


async def test_a_hedge_that_fails_in_the_moment_of_the_answer_does_not_fail_the_call() -> None:
    async def fails() -> str:
        raise Unavailable("down")

    async def answers() -> str:
        return "answer"

    for order in ((fails, answers), (answers, fails)):
        for _ in range(8):  # a set has no order
            assert "answer" == await first_good({asyncio.create_task(one()) for one in order})


async def test_hedges_share_the_budget() -> None:
    replicas, budget = (FakeReplica(), FakeReplica()), Budget(share=0.0, floor=1)
    async with pool_of(*replicas, budget=budget, hedge_seconds=0.005) as (pool, attempt):
        for replica in replicas:
            replica.gate.clear()
        calls = [asyncio.create_task(pool.run(attempt, 1, soon())) for _ in range(4)]
        await until(lambda: replicas[0].calls + replicas[1].calls == 5)
        for replica in replicas:
            replica.gate.set()
        assert ["answer"] * 4 == await asyncio.gather(*calls)

    assert 5 == replicas[0].calls + replicas[1].calls
    assert "<Budget [0 calls, 0 extra, 0 waiting]>" == repr(budget)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (Unavailable("x"), Outcome.FAILED),
        (Cancelled("x"), Outcome.FAILED),
        (DeadlineExceeded("x"), Outcome.TIMED_OUT),
        (Overloaded("x"), Outcome.ANSWERED),
        (InvalidRequest("x"), Outcome.ANSWERED),
        (ServerFault("x"), Outcome.ANSWERED),
        (InvalidResponse("x"), Outcome.FAILED),
    ],
)
def test_what_an_error_says_of_the_replica(error: TrunklineError, outcome: Outcome) -> None:
    assert outcome is verdict(error, (InvalidResponse,))


@pytest.mark.parametrize(("seconds", "kept"), [(10.0, 0.005), (0.02, 0.001)])
def test_a_backend_is_given_a_little_less_time(seconds: float, kept: float) -> None:
    deadline = Deadline.after(seconds)

    assert kept == pytest.approx(deadline.at - for_backend(deadline).at, rel=0.2)
