import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="heaps are glibc's")

THREADS_TAKE_MEMORY = """
import ctypes, threading
from embedding_service.memory import share_one_heap

def take():
    taken.append(bytes(100_000))
    here.wait()

print({call})
taken, here = [], threading.Barrier(3)
threads = [threading.Thread(target=take) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
ctypes.CDLL(None).malloc_stats()
"""


def heaps_of_three_threads(call: str, **environment: str) -> tuple[str, int]:
    """What *call* returned, and how many heaps there were in the end."""
    env = {key: value for key, value in os.environ.items() if key != "MALLOC_ARENA_MAX"} | environment
    code = THREADS_TAKE_MEMORY.format(call=call)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip(), sum(line.startswith("Arena ") for line in done.stderr.splitlines())


def test_threads_take_memory_from_one_heap() -> None:
    assert ("True", 1) == heaps_of_three_threads("share_one_heap()")


def test_otherwise_each_thread_has_its_own() -> None:
    assert ("None", 4) == heaps_of_three_threads("None")


def test_what_the_operator_says_of_heaps_stays() -> None:
    assert ("False", 2) == heaps_of_three_threads("share_one_heap()", MALLOC_ARENA_MAX="2")
