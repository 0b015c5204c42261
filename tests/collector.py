"""What is left behind without Python's garbage collector: a circle keeps what it holds, and shows here."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def no_collector() -> Iterator[None]:
    """What was left before is collected; from then on nothing is."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def num_alive(kind: type) -> int:
    """How many objects of *kind* somebody still holds, other tests among them."""
    return sum(isinstance(one, kind) for one in gc.get_objects())
