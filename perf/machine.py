"""What the machine and its processes do meanwhile: CPU, memory, files, and whether anybody else is at work."""

import gc
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

QUIET_SHARE: Final = 0.05
"""Of the machine's CPU time: more in the hands of others makes a comparison worthless."""

MAX_WAITS: Final = 60
_HEAD_START: Final = 5
"""Steps of niceness."""

_MANY_OBJECTS: Final = 100_000
"""More alive than before, until the garbage collector looks at them."""

_AT_REST: Final = frozenset({psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD})
_MOST_SECONDS_TO_STOP: Final = 1.0

_GUARD: Final = ("sh", "-c", 'read -r _ || kill -CONT "$@" 2>/dev/null', "sh")

_BUSY_FIELDS: Final = (0, 1, 2, 7)
"""user, nice, system and steal, of the cpu line of proc(5)'s stat. Interrupts have no owner, and are left out."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Seconds of CPU time since the machine started: of all processes, of ours, and that there was."""

    busy: float
    ours: float
    available: float


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a tree of processes holds."""

    rss_bytes: int
    num_fds: int
    num_threads: int


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, all threads; fields 14 and 15 of proc(5)'s stat."""
    return _ticks(pid, 2) / os.sysconf("SC_CLK_TCK")


def _ticks(pid: int, num_fields: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11 : 11 + num_fields]))


def tree_cpu_seconds(pid: int) -> float | None:
    """Of a process and all that descend from it, those that have ended too (fields 16 and 17); None when it has ended itself."""
    found = False
    total = 0.0
    for process in tree(pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            total += _ticks(process.pid, 4) / os.sysconf("SC_CLK_TCK")
            found = True
    return total if found else None


def tree(pid: int) -> list[psutil.Process]:
    """A process and all that descend from it; empty when it has ended."""
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    return []


@contextmanager
def punctual() -> Iterator[None]:
    """This thread goes before what it measures, where the system lets it: who sends late measures its own lateness.

    Processes started meanwhile would go first too. The garbage collector, which would stop it for a tenth of a second to look
    through all that was imported and kept, looks at little and seldom until then.
    """
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(_MANY_OBJECTS)
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), before - _HEAD_START)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), before)


@contextmanager
def paused(pids: Iterable[int]) -> Iterator[None]:
    """Nothing of these trees runs meanwhile: a server that idles may still poll, and take time from the one measured.

    They go on at the end, also when this process is killed: who is stopped would not notice, and stay for ever.
    """
    processes = [process for pid in pids for process in tree(pid)]
    with _woken_at_our_death(processes):
        try:
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.suspend()
            _wait_until_stopped(processes)
            yield
        finally:
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.resume()


def _wait_until_stopped(processes: Sequence[psutil.Process]) -> None:
    """A signal is heeded when its process is next scheduled, which on a busy machine is not at once."""
    deadline = time.monotonic() + _MOST_SECONDS_TO_STOP
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            while process.status() not in _AT_REST and time.monotonic() < deadline:
                time.sleep(0.001)


@contextmanager
def _woken_at_our_death(processes: Sequence[psutil.Process]) -> Iterator[None]:
    """A guard waits for a line from here; when the pipe ends without one, it lets *processes* go on."""
    if not processes:
        yield
        return
    pids = [str(process.pid) for process in processes]
    # In a session of its own: the Ctrl-C that ends us must not end it first.
    with subprocess.Popen([*_GUARD, *pids], stdin=subprocess.PIPE, start_new_session=True) as guard:
        try:
            yield
        finally:
            guard.communicate(b"\n")


def footprint(pid: int) -> Footprint:
    """Of a process and all that descend from it. Memory that they share counts in each."""
    totals = [0, 0, 0]
    for process in tree(pid):
        with suppress(psutil.NoSuchProcess):
            with process.oneshot():
                held = (process.memory_info().rss, process.num_fds(), process.num_threads())
            totals = [total + value for total, value in zip(totals, held, strict=True)]
    return Footprint(*totals)


def snapshot(pids: Iterable[int]) -> Snapshot:
    """Now; *pids* and their descendants are ours, and so is this process alone."""
    fields = [int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    tick = os.sysconf("SC_CLK_TCK")
    own = cpu_seconds(os.getpid()) + sum(tree_cpu_seconds(pid) or 0.0 for pid in pids)
    # The guests' time, from field 8 on, is in user time already.
    return Snapshot(sum(fields[place] for place in _BUSY_FIELDS) / tick, own, sum(fields[:8]) / tick)


def others_share(before: Snapshot, after: Snapshot) -> float:
    """Which share of the machine's CPU time others had between two snapshots, from 0 to 1."""
    available = max(after.available - before.available, 1e-9)
    return min(max((after.busy - before.busy) - (after.ours - before.ours), 0.0) / available, 1.0)


def wait_until_quiet(pids: Iterable[int], say: Callable[[str], None], max_waits: int = MAX_WAITS) -> int:
    """Wait until others had less than `QUIET_SHARE` for a second, or *max_waits* seconds long, which is said.

    Gives the seconds in which others were at work.
    """
    pids = list(pids)
    shares = (_share_of_a_second(pids) for _ in range(max_waits))
    return busy_seconds(shares, say)


def busy_seconds(shares: Iterator[float], say: Callable[[str], None]) -> int:
    """How many of *shares* come before the first below `QUIET_SHARE`; the very first of them is told, and when all are."""
    count = 0
    for count, share in enumerate(shares, 1):
        if share < QUIET_SHARE:
            return count - 1
        if count == 1:
            say(f"others use {share:.0%} of the machine; waiting until it is quiet")
    say("the machine did not become quiet; what follows is measured beside others")
    return count


def _share_of_a_second(pids: list[int]) -> float:
    before = snapshot(pids)
    time.sleep(1.0)
    return others_share(before, snapshot(pids))
