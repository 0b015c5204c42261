import asyncio
import io
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from perf.__main__ import INTERRUPTED, main
from perf.asked import Asked, Save
from perf.reporting.files import HTML_NAME, JSON_NAME, save_results
from perf.results import Micro, Results, read
from tests.perf.samples import CLOSED, results_of, run_of

PARTS = (Micro(name="a part", microseconds=(3.0,)),)
LITTLE = results_of(runs=(run_of("plan-four", CLOSED),), bounds=(), waterfall=(), answers=(), footprints=())


TOLD_TO_END = """
import asyncio, os, sys
from perf.__main__ import main
from tests.perf.test_main import LITTLE

async def told(asked, *, say, progress, save):
    save(LITTLE)
    os.kill(os.getpid(), int(sys.argv[2]))
    await asyncio.sleep(60)
    return LITTLE

sys.exit(main(["quick", "--no-micro", "--out", sys.argv[1]], told))
"""


class Campaign:
    """Finds *found*, saves it, and ends as *end* says."""

    def __init__(self, found: Results | None = LITTLE, end: BaseException | None = None) -> None:
        self.found, self.end = found, end
        self.asked: list[Asked] = []
        self.is_stopped = False

    async def __call__(
        self, asked: Asked, *, say: Callable[[str], None], progress: Callable[[float, str], None], save: Save
    ) -> Results:
        self.asked.append(asked)
        try:
            say("starting [red]")
            progress(0.0, "answers")
            progress(0.5, "answers")
            progress(0.6, "closed loop")
            await asyncio.sleep(0)
            if self.found is not None:
                save(self.found)
            if self.end is not None:
                raise self.end
        finally:
            self.is_stopped = True
        assert self.found is not None
        return self.found


Ran = tuple[int, str]


@pytest.fixture
def ran(tmp_path: Path) -> Callable[..., Ran]:
    def run(*words: str, campaign: Callable[..., Awaitable[Results]] | None = None) -> Ran:
        out = io.StringIO()
        return main(words, campaign, Console(file=out, width=200), lambda _say, _advance: PARTS), out.getvalue()

    return run


def test_a_run_writes_what_it_found_and_shows_it(ran: Callable[..., Ran], tmp_path: Path) -> None:
    campaign = Campaign()
    status, said = ran("quick", "--out", str(tmp_path / "a"), "--heads", "8", "1", "--no-peers", "--no-micro", campaign=campaign)

    assert 0 == status
    assert LITTLE == read(tmp_path / "a" / JSON_NAME)
    assert (tmp_path / "a" / HTML_NAME).is_file()
    assert 1 == said.count("  answers\n")
    assert "starting [red]" in said
    assert "Not measured" in said
    [asked] = campaign.asked
    assert (True, (1, 8), False) == (asked.is_quick, asked.heads, asked.with_peers)


def test_our_own_parts_are_timed_unless_they_are_left_out(ran: Callable[..., Ran], tmp_path: Path) -> None:
    ran("quick", "--out", str(tmp_path / "with"), campaign=Campaign())
    ran("quick", "--no-micro", "--out", str(tmp_path / "without"), campaign=Campaign())

    assert PARTS == read(tmp_path / "with" / JSON_NAME).micro
    assert LITTLE.micro == read(tmp_path / "without" / JSON_NAME).micro != PARTS


def test_a_run_goes_where_git_does_not_look(ran: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran("all", campaign=Campaign())

    [found] = tmp_path.rglob(JSON_NAME)
    assert "/build/" in (Path(__file__).parents[2] / ".gitignore").read_text().split()
    assert "build" == found.relative_to(tmp_path).parts[0]


def test_who_interrupts_keeps_what_was_found(ran: Callable[..., Ran], tmp_path: Path) -> None:
    campaign = Campaign(end=KeyboardInterrupt())
    status, _ = ran("quick", "--out", str(tmp_path), campaign=campaign)

    assert 130 == status
    assert campaign.is_stopped
    assert INTERRUPTED in read(tmp_path / JSON_NAME).remarks
    assert INTERRUPTED in (tmp_path / HTML_NAME).read_text()


def test_who_interrupts_with_a_full_disk_sees_what_was_found(
    ran: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(results: Results, folder: Path) -> None:
        if INTERRUPTED in results.remarks:
            raise OSError(28, "No space left on device")
        save_results(results, folder)

    monkeypatch.setattr("perf.__main__.save_results", save)
    status, said = ran("quick", "--out", str(tmp_path), campaign=Campaign(end=KeyboardInterrupt()))

    assert 130 == status
    assert "No space left" in said
    assert INTERRUPTED in said


def test_a_run_in_which_nothing_could_be_started_is_a_failure(ran: Callable[..., Ran], tmp_path: Path) -> None:
    status, said = ran("quick", "--out", str(tmp_path), campaign=Campaign(msgspec.structs.replace(LITTLE, runs=())))

    assert 1 == status
    assert "no load was measured" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_who_is_told_to_end_keeps_what_was_found(tmp_path: Path, number: signal.Signals) -> None:
    # In a process of its own: the one that runs the tests is loaded with libraries that have ideas about signals.
    ended = subprocess.run(
        [sys.executable, "-c", TOLD_TO_END, str(tmp_path), str(number.value)], timeout=60, capture_output=True, check=False
    )

    assert 130 == ended.returncode, ended.stderr
    assert INTERRUPTED in read(tmp_path / JSON_NAME).remarks
    assert b"interrupted" in ended.stdout


def test_a_fault_of_our_own_shows_what_was_found_all_the_same(ran: Callable[..., Ran], tmp_path: Path) -> None:
    status, said = ran("quick", "--out", str(tmp_path), campaign=Campaign(end=RuntimeError("a fault of our own")))

    assert 1 == status
    assert "a fault of our own" in said
    assert (tmp_path / HTML_NAME).is_file()


def test_who_interrupts_before_anything_was_found_gets_no_page(ran: Callable[..., Ran], tmp_path: Path) -> None:
    status, said = ran("quick", "--out", str(tmp_path), campaign=Campaign(None, KeyboardInterrupt()))

    assert 130 == status
    assert "nothing was measured" in said
    assert not list(tmp_path.iterdir())


def test_a_campaign_that_fails_says_why_and_keeps_what_was_found(ran: Callable[..., Ran], tmp_path: Path) -> None:
    status, said = ran("quick", "--out", str(tmp_path), campaign=Campaign(end=ValueError("no such plan [x]")))

    assert 1 == status
    assert "no such plan [x]" in said
    assert LITTLE == read(tmp_path / JSON_NAME)


def test_two_files_are_compared_and_worse_may_be_a_failure(ran: Callable[..., Ran], tmp_path: Path) -> None:
    slow = msgspec.structs.replace(LITTLE, micro=(Micro(name="batch cut", microseconds=(40.0, 41.0)),))
    before, after = save_results(LITTLE, tmp_path / "a"), save_results(slow, tmp_path / "b")

    assert 0 == ran("compare", str(before), str(after))[0]
    assert 1 == ran("compare", str(before), str(after), "--fail-on-worse")[0]
    assert 0 == ran("compare", str(after), str(before), "--fail-on-worse")[0]


def test_a_page_is_drawn_again_beside_its_results(ran: Callable[..., Ran], tmp_path: Path) -> None:
    path = save_results(LITTLE, tmp_path)

    assert 0 == ran("report", str(path))[0]
    assert (tmp_path / HTML_NAME).is_file()
    assert 0 == ran("report", str(path), "--out", str(tmp_path / "other"))[0]
    assert (tmp_path / "other" / HTML_NAME).is_file()


def test_a_file_that_holds_no_results_is_said_in_a_sentence(ran: Callable[..., Ran], tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")

    for words in (("report", "a.json"), ("compare", "a.json", "b.json")):
        status, said = ran(words[0], *(str(tmp_path / name) for name in words[1:]))
        assert 1 == status
        assert "holds no results of this harness" in said


@pytest.mark.parametrize("words", [("--heads", "33"), ("--heads", "0"), ("--rounds", "0"), ("--seconds", "inf")])
def test_numbers_out_of_bounds_are_refused(ran: Callable[..., Ran], words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as refused:
        ran("quick", *words, campaign=Campaign())
    assert 2 == refused.value.code
