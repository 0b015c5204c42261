import asyncio
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from trunkline.processes import StackError
from trunkline.stack import Addresses, Stack, StackSettings, record
from trunkline.up import run_up


@dataclass(slots=True)
class Failing(Stack):
    """A stack whose ports are taken."""

    num_starts: int = 0

    async def start(self) -> Addresses:
        self.num_starts += 1
        raise StackError("port 8080 is taken")


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRUNKLINE_HOME", str(tmp_path))
    return tmp_path / "stack.json"


@pytest.fixture
def listening() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def up(tmp_path: Path) -> tuple[Failing, str]:
    stack = Failing(StackSettings(tmp_path, tmp_path, tmp_path))
    with pytest.raises(StackError) as caught:
        asyncio.run(run_up(stack, demo_heads=False, say=lambda _: None))
    return stack, str(caught.value)


def test_a_second_stack_is_refused_and_the_first_one_is_left_as_it_is(tmp_path: Path, where: Path, listening: str) -> None:
    record(where, Addresses(listening, "", "e:1", "http://127.0.0.1:1", "h:1"))
    before = where.read_text()

    stack, said = up(tmp_path)

    assert f"a local stack runs already, with its gateway at {listening}" in said
    assert (0, before) == (stack.num_starts, where.read_text())


def test_a_record_whose_stack_is_gone_is_in_nobodys_way(tmp_path: Path, where: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        gone = f"http://127.0.0.1:{listener.getsockname()[1]}"
    # The number of its process is another one's by now.
    where.write_text(json.dumps({"pid": os.getppid(), **asdict(Addresses(gone, "", "e:1", gone, "h:1"))}))

    stack, said = up(tmp_path)

    assert (1, "port 8080 is taken") == (stack.num_starts, said)


def test_the_record_of_another_process_is_not_removed_by_one_that_could_not_start(tmp_path: Path, where: Path) -> None:
    where.write_text(json.dumps({"pid": os.getppid(), **asdict(Addresses("", "", "e:1", "", "h:1"))}))

    up(tmp_path)

    assert where.exists()


def test_its_own_record_is_removed(tmp_path: Path, where: Path) -> None:
    record(where, Addresses("", "", "e:1", "", "h:1"))

    up(tmp_path)

    assert not where.exists()
