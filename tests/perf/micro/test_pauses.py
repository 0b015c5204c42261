import time

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


def test_the_work_is_the_same_each_time() -> None:
    assert some_python() == some_python()
    assert 20 == some_python().count("NUMBER")


def test_spinning_takes_the_cores_time() -> None:
    before = time.thread_time()
    spin(0.02)

    assert time.thread_time() - before >= 0.01
