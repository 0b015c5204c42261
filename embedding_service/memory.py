"""How the process holds memory."""

import ctypes
import os
from typing import Final

M_ARENA_MAX: Final = -8
"""Of glibc's malloc.h."""


def share_one_heap() -> bool:
    """Have threads made from now on take memory from one heap; whether they do. `MALLOC_ARENA_MAX`, where it is set, stays.

    glibc gives each thread a heap of its own. What a pass leaves is freed by another thread, bit by bit, and never in the order
    it was taken, so each of these heaps grows for many minutes. One heap has holes too, but what one thread frees another takes.
    """
    if "MALLOC_ARENA_MAX" in os.environ:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(M_ARENA_MAX, 1) == 1
