import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from clients import AsyncClient, NotFound
from perf import csv_to_live
from perf.csv_to_live import Wanted, first_rows, num_rows, take
from perf.heads_data import HeadData


def data_in(folder: Path, rows: int) -> HeadData:
    path = folder / "all.csv"
    path.write_text("text,label\n" + "".join(f"text {n},{n % 2}\n" for n in range(rows)))
    return HeadData("topic", "Topics", 0.9, path, path)


@dataclass
class Gateway:
    """Knows of no head until it is told of one."""

    is_told: bool = False
    has_answered: asyncio.Event = field(default_factory=asyncio.Event)

    async def classify(self, text: str, heads: list[str]) -> list[Any]:
        await asyncio.sleep(0)
        if not self.is_told:
            raise NotFound(f"there is no head {heads[0]}")
        self.has_answered.set()
        return [SimpleNamespace(heads={heads[0]: "an answer"})]


def test_of_a_file_only_the_rows_that_are_asked_for_are_learnt_from(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()

    cut = first_rows(data_in(tmp_path, 9), 4, tmp_path / "first")

    assert (4, 9) == (num_rows(cut.train_csv), num_rows(cut.test_csv))


async def test_the_first_answer_is_seen_while_the_command_still_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = Gateway()

    async def train(wanted: Wanted, environment: dict[str, str]) -> None:
        gateway.is_told = True
        await gateway.has_answered.wait()

    monkeypatch.setattr(csv_to_live, "train", train)
    answered, ended = await take(Wanted(data_in(tmp_path, 2), "topic", ()), cast("AsyncClient", gateway), {})

    assert 0 < answered
    assert 0 < ended
