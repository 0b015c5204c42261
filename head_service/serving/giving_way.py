"""Threads that give way to all others of this machine: for long steps that TensorFlow takes without the interpreter's lock.

What runs here must hardly need that lock. A thread that has it, and gives way, makes every other thread wait for it.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

NICENESS: Final = 10
"""A tenth of what others get when all cores are busy: enough for a load to come to an end."""

MAX_THREADS: Final = 8


def _give_way() -> None:
    # On Linux a thread has a priority of its own; elsewhere it would be the process's.
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


_threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="gives-way", initializer=_give_way)


def giving_way(function: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
    """What *function* returns, or raises, run in such a thread; the one that calls waits for it."""
    return _threads.submit(function, *args, **kwargs).result()
