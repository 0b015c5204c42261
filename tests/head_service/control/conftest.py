from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from head_service.control.store import Store


@dataclass
class Clock:
    """Seconds since 1970, by hand."""

    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    store = Store(f"sqlite:///{tmp_path / 'control.sqlite'}", clock=clock)
    store.start()
    yield store
    store.close()
