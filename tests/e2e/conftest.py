"""The real stack on the real encoder: all its processes, started once, with a small head of our own data and one of real data."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from trunkline import paths
from trunkline.demo_data import prepare_demo_data

START_SECONDS = 300


@dataclass
class RunningStack:
    """`trunkline up`, as a user runs it."""

    process: "subprocess.Popen[str]"
    env: dict[str, str]
    home: Path
    addresses: dict[str, str] = field(default_factory=dict)

    def trunkline(self, *arguments: str, timeout: float = 300) -> "subprocess.CompletedProcess[str]":
        """Run a command of the front door beside it."""
        command = [sys.executable, "-m", "trunkline.cli", *arguments]
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=timeout, check=False)


def start_stack(home: Path) -> RunningStack:
    """Start it on free ports and wait for its last line."""
    env = {**os.environ, "TRUNKLINE_HOME": str(home), "TRUNKLINE_CACHE_DIR": str(paths.cache_dir()), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "trunkline.cli", "up", "--any-port", "--control"]
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
    """A running stack with the heads `sentiment` (real tweets) and `topic` (Reuters R8)."""
    running = start_stack(tmp_path_factory.mktemp("home"))
    try:
        for head in prepare_demo_data(paths.cache_dir(), lambda _: None):
            if head.name != "newsgroup":
                trained = running.trunkline("train", str(head.train_csv), "--head", head.name, "--test", str(head.test_csv))
                assert trained.returncode == 0, trained.stdout + trained.stderr
        yield running
    finally:
        running.process.terminate()
        running.process.communicate(timeout=30)
