"""`python -m head_service.serving` as a process: how it starts, how it ends, and what it says when it cannot."""

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import tensorflow as tf

from tests.head_service.serving.saved_models import WEIGHTS, WIDTH, Linear, save

COMMAND = (sys.executable, "-m", "head_service.serving")


class Slow(Linear):
    """A head that takes a second or so for a row of its own number of rounds."""

    def __call__(self, embedding: object) -> dict[str, object]:
        def again(done: object, total: object) -> tuple[object, object]:
            return done + 1, total + tf.reduce_sum(tf.random.stateless_uniform([1000], [1, 2]))  # type: ignore[operator]

        rounds = tf.cast(tf.reduce_max(embedding), tf.int32)
        _, total = tf.while_loop(lambda done, _: done < rounds, again, (0, 0.0))
        outputs: dict[str, object] = super().__call__(embedding)
        return {**outputs, "total": tf.fill([tf.shape(embedding)[0]], total)}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    save(Slow(WEIGHTS), root / "1")
    return root


@pytest.fixture(scope="module")
def processes(base: Path) -> "Iterator[list[tuple[subprocess.Popen[str], str]]]":
    """One for each test that ends one; they load TensorFlow side by side."""
    ports = ["--port=0", "--rest_api_port=0", "--drain_grace_seconds=30"]
    command = [*COMMAND, *ports, "--model_name=m", f"--model_base_path={base}"]
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
            for _ in range(2)
        ]
        for running in started:
            stack.callback(running.kill)
        yield [(running, _url(running)) for running in started]


def _url(running: "subprocess.Popen[str]") -> str:
    assert running.stdout is not None
    return "http://" + running.stdout.readline().split("rest=")[1].strip()


@pytest.fixture
def process(processes: "list[tuple[subprocess.Popen[str], str]]") -> "tuple[subprocess.Popen[str], str]":
    return processes.pop()


def ended(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False)


def slow_call(url: str, rounds: int, into: list[int]) -> threading.Thread:
    def call() -> None:
        rows = np.full((1, WIDTH), rounds).tolist()
        try:
            into.append(httpx.post(f"{url}/v1/models/m:predict", json={"instances": rows}, timeout=60).status_code)
        except httpx.HTTPError:
            into.append(0)

    thread = threading.Thread(target=call)
    thread.start()
    return thread


def until_busy(pid: int) -> None:
    """Until the process has computed for a while: the calls sent are under way."""
    process = psutil.Process(pid)
    begin, deadline = process.cpu_times().user, time.monotonic() + 30
    while process.cpu_times().user < begin + 0.1:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_sigterm_lets_calls_finish_and_ends_well(process: "tuple[subprocess.Popen[str], str]") -> None:
    running, url = process
    statuses: list[int] = []
    calls = [slow_call(url, 300_000, statuses) for _ in range(2)]
    until_busy(running.pid)
    running.send_signal(signal.SIGTERM)
    for call in calls:
        call.join()
    assert running.wait(20) == 0
    assert statuses == [200, 200]
    assert running.stderr is not None
    assert "heads: draining" in running.stderr.read()


def test_a_second_signal_ends_it_at_once(process: "tuple[subprocess.Popen[str], str]") -> None:
    running, url = process
    statuses: list[int] = []
    call = slow_call(url, 2_000_000_000, statuses)
    assert running.stderr is not None
    until_busy(running.pid)
    running.send_signal(signal.SIGTERM)
    while "draining" not in running.stderr.readline():
        pass
    running.send_signal(signal.SIGTERM)
    assert running.wait(20) == -signal.SIGTERM
    call.join()
    assert statuses == [0]


def test_a_taken_port_and_a_broken_configuration_are_told_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "broken").write_text("model_config_list { config { name: 3 } }")
    broken = ended(f"--model_config_file={tmp_path / 'broken'}")
    assert broken.returncode == 1
    assert broken.stderr.startswith("heads: --model_config_file is not a ModelServerConfig: ")
    assert broken.stderr.count("\n") == 1

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for flags, named in (([f"--rest_api_port={port}", "--port=0"], "--rest_api_port"), ([f"--port={port}"], "--port")):
            said = ended(f"--model_base_path={tmp_path}", "--rest_api_port=0", *flags)
            assert said.returncode == 1
            assert said.stderr.startswith(f"heads: port {port} is taken; stop what listens there")
            assert named in said.stderr
            assert said.stderr.count("\n") == 1


def test_an_unknown_flag_is_refused() -> None:
    said = ended("--modle_name=x")
    assert (said.returncode, said.stdout) == (2, "")
    assert "--modle_name" in said.stderr
