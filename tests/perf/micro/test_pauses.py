import itertools

from perf.micro import pauses
from perf.micro.pauses import cost_after, some_python, spin


def test_the_work_after_a_pause_is_told_from_the_same_work_again(monkeypatch) -> None:
    costs = iter([0.004, 0.001] * 5)
    now = 0.0

    def work() -> str:
        nonlocal now
        now += next(costs)
        return ""

    def pause() -> None:
        nonlocal now
        now += 10.0

    monkeypatch.setattr(pauses, "some_python", work)
    monkeypatch.setattr(pauses.time, "perf_counter", lambda: now)

    cost = cost_after(pause, 5)

    assert 4_000 == round(cost.first)
    assert 1_000 == round(cost.again)


def test_the_work_does_what_it_should() -> None:
    assert 20 == some_python().count("NUMBER")


def test_spinning_ends_when_its_time_is_over(monkeypatch) -> None:
    clock = itertools.count(0.0, 0.25)
    monkeypatch.setattr(pauses.time, "perf_counter", lambda: next(clock))

    spin(1.0)

    assert 1.25 == next(clock)
