"""Who goes first where all cores are busy: the event loop, not the forward passes; and who has the interpreter, for how long.

Whoever is refused should learn it at once, and a pass that waits a millisecond for that is not noticed. On Linux a priority is a
thread's own; elsewhere threads keep the one they have.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

STEPS: Final = 5
"""Of niceness, behind the rest of the process."""

SWITCH_SECONDS: Final = 0.0002
"""How long who has the interpreter may keep others waiting. A pass needs it for a moment when it begins and when it ends, and
its core has nothing else to do meanwhile; the event loop has it for milliseconds while it tells the callers of a batch."""

_THREADS: Final = Path("/proc/self/task")


def share_the_interpreter() -> None:
    """Have a thread that works in Python let another that waits have its turn after `SWITCH_SECONDS`, in place of 5 ms."""
    sys.setswitchinterval(SWITCH_SECONDS)


def give_way() -> None:
    """The calling thread lets the event loop go first."""
    _lower([threading.get_native_id()])


@contextlib.contextmanager
def new_threads_give_way() -> Iterator[None]:
    """Threads that are made inside, by an engine for itself, let the event loop go first."""
    before = _threads()
    try:
        yield
    finally:
        _lower(_threads() - before)


def _threads() -> frozenset[int]:
    with contextlib.suppress(OSError):
        return frozenset(int(path.name) for path in _THREADS.iterdir())
    return frozenset()


def _lower(threads: Iterable[int]) -> None:
    for thread in threads:
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + STEPS)
