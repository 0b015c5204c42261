import stat
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import psutil
import pytest

from perf.peers import environment
from perf.peers.environment import Ended, python_of
from perf.systems import offline
from perf.topologies.plan import CannotStart, Given
from perf.topologies.plan_one_torch import ENVIRONMENT, PLAN
from perf.workloads import Workload
from tests.perf.topologies.weighted import head, head_set
from tests.tiny_trunk import make_tiny_trunk

SERVER = f"""#!{sys.executable}
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

num_heads = int(sys.argv[sys.argv.index("--num-heads") + 1])

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        text = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"]
        body = json.dumps({{"labels": {{f"head-{{number}}": text for number in range(num_heads)}}}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

server = HTTPServer(("127.0.0.1", 0), Handler)
print(f"INFO:     Uvicorn running on http://127.0.0.1:{{server.server_port}} (Press CTRL+C to quit)", flush=True)
server.serve_forever()
"""
"""Stands for the environment's Python running the real server: no torch is here."""


def given(tmp_path: Path) -> Given:
    trunk = make_tiny_trunk(tmp_path / "tiny")
    heads = head_set(head("head-0", "x"), head("head-1", "y"), root=tmp_path)
    return Given(trunk, heads, 2, tmp_path / "cache", tmp_path / "peers", tmp_path / "logs", say=lambda _: None)


def install(peers_dir: Path) -> None:
    """Make an environment whose Python is `SERVER`."""

    def run(command: Sequence[str]) -> Ended:
        if "venv" in command:
            python = Path(command[-1]) / "bin" / "python"
            python.parent.mkdir(parents=True)
            python.write_text(SERVER)
            python.chmod(python.stat().st_mode | stat.S_IXUSR)
        return Ended(0, "")

    python_of(ENVIRONMENT, peers_dir, lambda _: None, run)


async def test_the_server_is_asked_once_a_text_and_is_gone_afterwards(tmp_path: Path) -> None:
    it = given(tmp_path)
    install(it.peers_dir)
    async with PLAN.start(it) as running:
        labels = await running.classify(["a", "b"])
        [pid] = running.pids.values()
        assert running.target is not None
        target = running.target(Workload("short", ["a"], ["short"]))

    assert [{"head-0": "a", "head-1": "a"}, {"head-0": "b", "head-1": "b"}] == labels
    assert not psutil.pid_exists(pid)
    assert (b"/classify", [{"text": "a"}]) == (target.path, [msgspec.json.decode(body) for body in target.bodies])
    assert 0.99 == PLAN.least_agreement


async def test_an_environment_that_cannot_be_made_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "install_commands", lambda *_: [[sys.executable, "-c", "raise SystemExit('ERROR: no')"]])
    with pytest.raises(CannotStart, match=r"^sentence_transformers cannot be installed: no$"):
        async with PLAN.start(given(tmp_path)):
            pass


def test_the_server_asks_no_hub_and_its_threads_are_not_chosen_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    env = offline(given(tmp_path).peers_dir)

    assert "1" == env["HF_HUB_OFFLINE"]
    assert "OMP_NUM_THREADS" not in env
