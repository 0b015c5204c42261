"""The real stack on the real encoder: all its processes, started once, with a small head of our own data and one of real data."""

import csv
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import psutil
import pytest

from trunkline import paths
from trunkline.demo_data import prepare_demo_data

NUM_TWEETS = 500


@dataclass
class RunningStack:
    """`trunkline up`, as a user runs it."""

    process: "subprocess.Popen[str]"
    env: dict[str, str]
    home: Path
    addresses: dict[str, str] = field(default_factory=dict)
    idle_gateway: int = 0
    """Resident bytes of the gateway before it has seen a request."""

    def pid_of(self, module: str) -> int:
        """The process of *module* among the stack's children."""
        for child in psutil.Process(self.process.pid).children():
            if module in child.cmdline():
                return child.pid
        raise AssertionError(f"{module} does not run")

    def trunkline(self, *arguments: str, timeout: float = 300) -> "subprocess.CompletedProcess[str]":
        """Run a command of the front door beside it."""
        command = [sys.executable, "-m", "trunkline", *arguments]
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=timeout, check=False)


def start_stack(home: Path) -> RunningStack:
    """Start it on free ports and wait for its last line."""
    env = {**os.environ, "TRUNKLINE_HOME": str(home), "TRUNKLINE_CACHE_DIR": str(paths.cache_dir()), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "trunkline", "up", "--any-port", "--control"]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    stack = RunningStack(process, env, home)
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if match := re.match(r"(\S+) (http://\S+|\d[\d.]+:\d+)$", line.strip()):
            stack.addresses[match[1]] = match[2]
        if line.startswith("ready "):
            return stack
    pytest.fail("the stack did not start:\n" + "".join(said))


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """A running stack with the heads `topic` (Reuters R8) and `sentiment` (some real tweets)."""
    running = start_stack(tmp_path_factory.mktemp("home"))
    demo = {head.name: head for head in prepare_demo_data(paths.cache_dir(), lambda _: None)}
    tweets = some_rows(demo["sentiment"].train_csv, tmp_path_factory.mktemp("data") / "tweets.csv")
    try:
        # Both at once: two commands that publish and promote beside one another.
        with ThreadPoolExecutor(2) as pool:
            topic = ("train", str(demo["topic"].train_csv), "--head", "topic", "--test", str(demo["topic"].test_csv))
            sentiment = ("train", str(tweets), "--head", "sentiment")
            for trained in pool.map(lambda words: running.trunkline(*words), (topic, sentiment)):
                assert trained.returncode == 0, trained.stdout + trained.stderr
        running.idle_gateway = psutil.Process(running.pid_of("gateway")).memory_info().rss
        yield running
    finally:
        if running.process.poll() is None:
            running.process.terminate()
            running.process.communicate(timeout=30)


def some_rows(file: Path, into: Path) -> Path:
    """The first of *file*, which are enough for a head that nobody measures."""
    with file.open(newline="") as rows, into.open("w", newline="") as some:
        csv.writer(some).writerows(islice(csv.reader(rows), NUM_TWEETS))
    return into


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What ends the stack that all share comes last."""
    items.sort(key=lambda item: item.name == "test_ctrl_c_drains_and_leaves_nothing_running")
