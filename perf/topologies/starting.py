"""What starting a deployment takes, whichever it is: its settings, its first answer, and failures told in one line."""

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator
from typing import Final

import httpx

from clients import TrunklineError
from embedding_service.models.errors import PreparationError
from head_service.errors import HeadServiceError
from perf.topologies.plan import CannotStart, Classify
from trunkline.processes import StackError

ANSWER_SECONDS: Final = 60.0
"""What one call may take: 32 whole models over a long text, beside many others."""

FIRST_ANSWER_SECONDS: Final = 120.0
_PAUSE_SECONDS: Final = 0.05

NO_CACHES: Final = {"TRUNKLINE_EMBEDDING_CACHE_BYTES": "0", "TRUNKLINE_GATEWAY_OUTPUT_CACHE_BYTES": "0"}
"""The texts come again and again: a cache would answer for what is measured."""


@contextlib.contextmanager
def without_caches() -> Iterator[None]:
    """Services started meanwhile keep no answers."""
    before = {name: os.environ.get(name) for name in NO_CACHES}
    os.environ.update(NO_CACHES)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


async def until_answered(classify: Classify, patience: float = FIRST_ANSWER_SECONDS) -> None:
    """Ask until there is an answer: a server that listens need not have loaded all it serves.

    Raises:
        CannotStart: there was none for *patience* seconds; what was said last.
    """
    give_up = time.monotonic() + patience
    while True:
        try:
            await classify(["Are you there?"])
        except (TrunklineError, httpx.HTTPError, OSError) as error:
            if time.monotonic() >= give_up:
                raise CannotStart(f"it runs, but gives no answer: {error or type(error).__name__}") from error
            await asyncio.sleep(_PAUSE_SECONDS)
        else:
            return


@contextlib.contextmanager
def told_in_one_line() -> Iterator[None]:
    """What can keep a deployment from starting is a `CannotStart`."""
    try:
        yield
    except (StackError, PreparationError, HeadServiceError, TrunklineError) as error:
        raise CannotStart(str(error)) from error
