import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from trunkline.processes import Child, StackError

READY = re.compile(r"^ready (\d+)$")


def child(tmp_path: Path, code: str) -> Child:
    return Child("fake", [sys.executable, "-uc", code], ready=READY, log=tmp_path / "fake.log", env=os.environ)


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_child_is_ready_when_it_says_so_and_ends_when_told(tmp_path: Path) -> None:
    process = child(tmp_path, "import time; print('loading'); print('ready 42'); time.sleep(60)")
    said: list[str] = []

    match = await process.start(30, said.append)
    await process.stop(10)

    assert "42" == match[1]
    assert ["loading"] == said
    assert not runs(process.pid)


async def test_a_child_that_ends_instead_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    process = child(tmp_path, "print('fake: port 1 is taken'); raise SystemExit(1)")

    with pytest.raises(StackError, match="fake could not start: port 1 is taken"):
        await process.start(30)


async def test_a_child_that_says_nothing_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    process = child(tmp_path, "import time; time.sleep(60)")

    with pytest.raises(StackError, match="not ready within"):
        await process.start(0.3)
    assert not runs(process.pid)


async def test_a_child_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready 1'); time.sleep(60)"
    process = child(tmp_path, code)
    await process.start(30)

    await process.stop(0.2)

    assert -9 == await process.ended()


async def test_what_a_child_says_later_goes_to_its_log_and_never_blocks_it(tmp_path: Path) -> None:
    process = child(tmp_path, "print('ready 1'); print('x' * 1_000_000); print('end')")
    await process.start(30)
    async with asyncio.timeout(10):
        assert 0 == await process.ended()
        while not (tmp_path / "fake.log").read_text().endswith("end\n"):
            await asyncio.sleep(0.01)


async def test_cancelling_a_start_leaves_nothing_running(tmp_path: Path) -> None:
    process = child(tmp_path, "import time; time.sleep(60)")
    starting = asyncio.create_task(process.start(30))
    async with asyncio.timeout(10):
        while process._process is None:
            await asyncio.sleep(0.01)
    starting.cancel()
    await asyncio.wait([starting])

    assert not runs(process.pid)


async def test_blank_lines_of_a_child_are_lines_and_not_its_end(tmp_path: Path) -> None:
    process = child(tmp_path, "import time; print('loading\\n\\n'); print('ready 42'); time.sleep(60)")
    match = await process.start(30)
    await process.stop(10)

    assert "42" == match[1]


async def test_last_words_are_those_before_blank_lines(tmp_path: Path) -> None:
    process = child(tmp_path, "print('fake: port 1 is taken\\n\\n'); raise SystemExit(1)")

    with pytest.raises(StackError, match="port 1 is taken"):
        await process.start(30)


async def test_a_child_is_read_on_where_its_log_takes_nothing(tmp_path: Path) -> None:
    code = f"""
import time, pathlib
print('ready 1')
while not pathlib.Path({str(tmp_path / "go")!r}).exists(): time.sleep(0.01)
print('x' * 1_000_000)
"""
    process = child(tmp_path, code)
    await process.start(30)
    (tmp_path / "fake.log").unlink()
    (tmp_path / "fake.log").mkdir()
    (tmp_path / "go").touch()

    async with asyncio.timeout(10):
        assert 0 == await process.ended()
