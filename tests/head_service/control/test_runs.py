from concurrent.futures import ThreadPoolExecutor

import pytest

from clients import NotFound
from head_service.control.errors import Conflict
from head_service.control.runs import MAX_LINES, Runs
from head_service.control.words import DataSource, Outcome, RunResult, TrainingOrder

ORDER = TrainingOrder(head="spam", data=DataSource(path="spam.csv"))
OTHER = TrainingOrder(head="topic", data=DataSource(path="topic.csv"))


@pytest.fixture
def runs(store):
    return Runs(store, max_attempts=2, retry_seconds=5)


def test_a_submitted_run_is_queued_and_found(runs):
    run, is_new = runs.submit(ORDER, "ann")

    assert is_new
    assert ("queued", ORDER, 0) == (run.state, run.order, run.attempt)
    assert run == runs.get(run.id) == runs.page()[0]


def test_an_idempotency_key_submits_once_for_each_owner(runs):
    first, _ = runs.submit(ORDER, "ann", "k")
    again, is_new = runs.submit(ORDER, "ann", "k")
    others, others_is_new = runs.submit(ORDER, "bob", "k")

    assert (first, False) == (again, is_new)
    assert others_is_new
    assert others.id != first.id
    with pytest.raises(Conflict):
        runs.submit(OTHER, "ann", "k")


def test_one_key_from_many_threads_at_once_is_one_run(runs):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: runs.submit(ORDER, "ann", "k"), range(16)))

    assert 1 == len({run.id for run, _ in found})
    assert 1 == sum(is_new for _, is_new in found)


def test_somebody_elses_run_is_as_if_there_were_none(runs):
    run, _ = runs.submit(ORDER, "ann")

    for ask in (runs.get, runs.lines, runs.cancel):
        with pytest.raises(NotFound):
            ask(run.id, "bob")
    assert [] == runs.page(owner="bob")


def test_pages_go_back_in_time_and_can_be_narrowed(runs):
    ids = [runs.submit(order, "ann")[0].id for order in (ORDER, OTHER, ORDER)]

    newest = runs.page(limit=2)
    assert [ids[2], ids[1]] == [run.id for run in newest]
    assert [ids[0]] == [run.id for run in runs.page(before=newest[-1].seq)]
    assert [ids[1]] == [run.id for run in runs.page(head="topic")]
    assert [] == runs.page(state="running")


def test_the_oldest_is_claimed_first_and_by_one_worker_only(runs):
    first, _ = runs.submit(ORDER, "ann")
    second, _ = runs.submit(ORDER, "ann")
    with ThreadPoolExecutor(8) as pool:
        leases = [lease for lease in pool.map(lambda n: runs.claim(f"w{n}", 30), range(8)) if lease]

    assert {first.id, second.id} == {lease.run.id for lease in leases}
    assert 2 == len(leases)


def test_a_lease_is_renewed_with_progress_and_tells_that_cancelling_is_asked(runs):
    run, _ = runs.submit(ORDER, "ann")
    lease = runs.claim("w", 30)

    assert runs.renew(lease, 30, ("embedding", 3, 10)) is False
    found = runs.get(run.id)
    assert ("embedding", 3, 10) == (found.step, found.done, found.total)
    runs.cancel(run.id)
    assert runs.renew(lease, 30) is True


def test_a_run_whose_worker_died_is_queued_again_and_the_dead_one_has_no_say_any_more(runs, clock):
    runs.submit(ORDER, "ann")
    dead = runs.claim("dead", 30)
    clock.now += 31

    [found] = runs.recover()
    assert ("queued", 1) == (found.state, found.attempt)
    assert runs.claim("eager", 30) is None
    clock.now += 5
    alive = runs.claim("alive", 30)

    assert alive.attempt == 2
    assert runs.renew(dead, 30) is None
    assert runs.finish(dead, Outcome(kind="succeeded", result=RunResult(version=7))) is None
    assert runs.give_back(dead) is None
    assert "succeeded" == runs.finish(alive, Outcome(kind="succeeded", result=RunResult(version=1))).state
    assert runs.get(alive.run.id).result.version == 1


def test_a_lease_that_holds_is_left_alone(runs, clock):
    runs.submit(ORDER, "ann")
    lease = runs.claim("w", 30)
    clock.now += 29
    runs.renew(lease, 30)
    clock.now += 29

    assert [] == runs.recover()


def test_after_its_last_attempt_it_has_failed_and_says_why(runs, clock):
    runs.submit(ORDER, "ann")
    for _ in range(2):
        assert runs.claim("w", 30)
        clock.now += 100
        [found] = runs.recover()
        clock.now += 100

    assert "failed" == found.state
    assert "attempt 2 of 2" in found.message
    assert runs.claim("w", 30) is None


def test_giving_back_costs_no_attempt_and_is_for_at_once(runs):
    runs.submit(ORDER, "ann")
    for _ in range(5):
        lease = runs.claim("w", 30)
        assert lease.attempt == 1
        assert "queued" == runs.give_back(lease).state


def test_a_cancelled_queued_run_never_starts(runs):
    run, _ = runs.submit(ORDER, "ann")

    assert "cancelled" == runs.cancel(run.id).state
    assert runs.claim("w", 30) is None
    assert "cancelled" == runs.cancel(run.id).state


def test_lines_are_numbered_bounded_and_read_from_an_offset(runs):
    run, _ = runs.submit(ORDER, "ann")
    lease = runs.claim("w", 30)
    runs.say(lease, ["one", "two"])
    runs.say(lease, [f"line {n}" for n in range(MAX_LINES)])
    runs.say(lease, ["too late"])

    assert ["two", "line 0"] == [line.line for line in runs.lines(run.id, offset=1, limit=2)]
    last = runs.lines(run.id, offset=MAX_LINES - 1)
    assert ["further lines are left out"] == [line.line for line in last]


def test_statistics_count_by_state_and_age(runs, clock):
    runs.submit(ORDER, "ann")
    runs.submit(ORDER, "ann")
    lease = runs.claim("w", 30)
    clock.now += 12
    runs.finish(lease, Outcome(kind="refused"))

    found = runs.statistics()

    assert (1, 1, 0) == (found.by_state["queued"], found.by_state["refused"], found.by_state["failed"])
    assert 12 == found.oldest_queued_seconds
    assert {"refused": (1, 12.0)} == found.finished


def test_uploads_that_are_needed_are_those_of_open_runs_and_of_each_heads_last_success(runs):
    def submit(upload: str):
        return runs.submit(TrainingOrder(head="spam", data=DataSource(upload=upload * 32)), "ann")[0]

    for upload, kind in (("a", "succeeded"), ("b", "succeeded"), ("c", "failed")):
        submit(upload)
        runs.finish(runs.claim("w", 30), Outcome(kind=kind))
    submit("d")

    assert {"b" * 32, "d" * 32} == runs.uploads_in_use()
