import gc
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest

from perf.machine import (
    Snapshot,
    busy_seconds,
    cpu_seconds,
    footprint,
    others_share,
    paused,
    punctual,
    snapshot,
    tree,
    tree_cpu_seconds,
)


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        pytest.param(Snapshot(busy=11, ours=6, available=120), 0.25, id="what is busy and not ours is others'"),
        pytest.param(Snapshot(busy=6, ours=6.1, available=120), 0.0, id="ticks that are counted apart give nothing below none"),
        pytest.param(Snapshot(busy=6, ours=1, available=100), 0.0 + 1.0, id="never more than all"),
    ],
)
def test_the_share_of_others_is_what_is_busy_and_not_ours(after: Snapshot, expected: float) -> None:
    assert expected == pytest.approx(others_share(Snapshot(busy=1, ours=1, available=100), after))


def test_the_first_busy_second_is_told_and_waiting_ends_with_the_first_quiet_one() -> None:
    said: list[str] = []
    shares: Iterator[float] = iter([0.5, 0.4, 0.01, 0.9])

    assert 2 == busy_seconds(shares, said.append)
    assert ["others use 50% of the machine; waiting until it is quiet"] == said
    assert 0.9 == next(shares)


def test_a_machine_that_stays_busy_is_told() -> None:
    said: list[str] = []

    assert 2 == busy_seconds(iter([0.5, 0.5]), said.append)
    assert "did not become quiet" in said[-1]


def test_time_only_passes() -> None:
    before, after = snapshot([os.getpid()]), snapshot([os.getpid()])

    assert before.busy <= after.busy
    assert before.available <= after.available
    assert 0 <= others_share(before, after) <= 1


def test_a_tree_has_the_children_of_children() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        alone, all_of_it = footprint(os.getpid()), footprint(child.pid)
        assert 2 == len(tree(child.pid))
        assert (tree_cpu_seconds(child.pid) or 0) > 0
        child.communicate(b"\n")

    assert alone.rss_bytes > all_of_it.num_fds > 0
    assert all_of_it.num_threads >= 2


def test_a_process_that_has_ended_has_no_tree() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()

    assert [] == tree(child.pid)
    assert tree_cpu_seconds(child.pid) is None
    assert 0 == footprint(child.pid).rss_bytes


def test_a_paused_tree_does_nothing_and_goes_on_afterwards() -> None:
    code = "print(1, flush=True); input(); print(2, flush=True)"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        with paused([child.pid]):
            assert "stopped" == tree(child.pid)[0].status()
        rest, _ = child.communicate(b"\n")

    assert b"2\n" == rest


def test_what_was_paused_goes_on_when_the_one_who_paused_it_is_killed() -> None:
    code = "print(1, flush=True); input(); print(2, flush=True)"
    pausing = """
        import sys
        from perf.machine import paused
        with paused([int(sys.argv[1])]):
            print(1, flush=True)
            input()
    """
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        command = [sys.executable, "-c", textwrap.dedent(pausing), str(child.pid)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as harness:
            assert harness.stdout is not None
            harness.stdout.readline()
            assert "stopped" == tree(child.pid)[0].status()
            harness.kill()
        rest, _ = child.communicate(b"\n", timeout=20)

    assert b"2\n" == rest


def test_a_punctual_thread_is_what_it_was_afterwards() -> None:
    before, thresholds, num_frozen = os.getpriority(os.PRIO_PROCESS, 0), gc.get_threshold(), gc.get_freeze_count()
    with punctual():
        assert os.getpriority(os.PRIO_PROCESS, 0) <= before
        assert gc.get_threshold()[0] > thresholds[0]
        assert gc.get_freeze_count() > num_frozen
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
    assert gc.get_threshold() == thresholds
    assert 0 == gc.get_freeze_count()


def test_the_cpu_time_of_a_child_that_has_ended_stays_counted() -> None:
    work = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'sum(range(6_000_000))']); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", work], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        own, whole = cpu_seconds(parent.pid), tree_cpu_seconds(parent.pid)
        parent.communicate(b"\n")

    assert whole is not None
    assert whole >= own + 0.05
