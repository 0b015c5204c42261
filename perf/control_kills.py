"""`python -m perf.control_kills`: the control plane under SIGKILL: is anything lost that was acknowledged, or there twice?

The API and a worker, both real processes, on a database and a repository of their own. Two callers give feedback and submit runs,
each thing with an idempotency key, and ask again until it is acknowledged. In each round the API, the worker or its training
process is killed at a random moment and started again. At the end everything that was acknowledged is looked for.
"""

import argparse
import csv
import io
import itertools
import json
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import psutil

from clients.wire.catalogue import Catalogue, CatalogueHead, Manifest, encode
from head_service.control.publishing import RUN_PATH
from head_service.errors import ManifestError
from head_service.manifest import verify
from head_service.repository import Repository
from perf.rehearsal import TRUNK

HEAD: Final = "kills"
VICTIMS: Final = ("api", "worker", "training")
LEASE_SECONDS: Final = 1.0
RUN_MILLISECONDS: Final = 150
ROW_PAUSE_SECONDS: Final = 0.01
RUN_PAUSE_SECONDS: Final = 2.0
AGAIN_SECONDS: Final = 0.05
END_SECONDS: Final = 120.0
_ROWS: Final = "text,label\n" + "".join(f"text {n},{'odd' if n % 2 else 'even'}\n" for n in range(8))


@dataclass(slots=True)
class Verdict:
    """What was acknowledged, and what is wrong with it; nothing where all is well."""

    num_rows: int = 0
    num_runs: int = 0
    num_versions: int = 0
    num_attempts: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        killed = ", ".join(f"{name} {count}" for name, count in sorted(self.kills.items()))
        kept = f"{self.num_rows} rows, {self.num_runs} runs in {self.num_attempts} attempts, {self.num_versions} versions"
        return f"killed: {killed}; acknowledged: {kept}; {'; '.join(self.faults) or '0 lost, 0 doubled, 0 half-visible'}"


class Service:
    """A process that is killed and started again; *address* is what its ready line says."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[str] | None = None
        self.address = ""

    @property
    def pid(self) -> int:
        """Of the process that runs now."""
        assert self._process is not None
        return self._process.pid

    def start(self, *, wait: bool = True) -> None:
        """Start it; *wait* until it says that it is ready."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        if wait:
            self.await_ready()

    def await_ready(self) -> None:
        """Wait until it says so."""
        assert self._process is not None
        assert self._process.stdout is not None
        words = self._process.stdout.readline().split()
        if not words:
            raise SystemExit(f"{self._command[3]} ended with status {self._process.wait(60)} before it was ready")
        self.address = words[-1]

    def kill(self) -> None:
        """SIGKILL."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM, and its exit status."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        status = self._process.wait(60)
        if self._process.stdout is not None:
            self._process.stdout.close()
        return status


class Caller(threading.Thread):
    """Sends one thing after the other, each until it is acknowledged; *acknowledged* maps keys to ids."""

    def __init__(self, address: Callable[[], str], path: str, body_of: Callable[[str], dict[str, Any]], pause: float) -> None:
        super().__init__(daemon=True)
        self._address = address
        self._path = path
        self._body_of = body_of
        self._pause = pause
        self._over = threading.Event()
        self.acknowledged: dict[str, str] = {}

    def run(self) -> None:
        """See `threading.Thread`."""
        for number in itertools.count():
            if self._over.wait(self._pause):
                return
            key = f"{self._path.strip('/').replace('/', '-')}-{number}"
            self.acknowledged[key] = self._insist(key)

    def finish(self) -> None:
        """Send nothing new; what is under way is seen through."""
        self._over.set()
        self.join(60)

    def _insist(self, key: str) -> str:
        while True:
            try:
                answer = httpx.post(
                    self._address() + self._path, json=self._body_of(key), headers={"idempotency-key": key}, timeout=5
                )
                if answer.is_success:
                    return str(answer.json()["id"])
            except httpx.HTTPError:
                pass
            time.sleep(AGAIN_SECONDS)


@dataclass(frozen=True, slots=True)
class Place:
    """The folders of one trial."""

    root: Path

    @property
    def heads(self) -> Path:
        """The repository."""
        return self.root / "heads"

    def command(self, name: str, *more: str) -> list[str]:
        """Of the API, or a worker."""
        shared = ["--home", str(self.root / "control"), "--repository", str(self.heads), "--data-dir", str(self.root / "data")]
        return [
            sys.executable,
            "-m",
            "head_service.control",
            name,
            *shared,
            "--max-attempts",
            "100",
            "--retry-seconds",
            "0.1",
            *more,
        ]

    def prepare(self) -> None:
        """Rows to train on, and a live head to give feedback for."""
        (self.root / "data").mkdir()
        (self.root / "data" / "rows.csv").write_text(_ROWS)
        self.heads.mkdir()
        live = Manifest(name=HEAD, version=1, labels=("even", "odd"), width=4, trunk=TRUNK)
        (self.heads / "catalogue.json").write_bytes(encode(Catalogue({HEAD: CatalogueHead(1, {1: live})})))


def kill_rounds(num_rounds: int, seed: int = 0, say: Callable[[str], None] = lambda _: None) -> Verdict:
    """Kill *num_rounds* times, then look for everything that was acknowledged."""
    chance = random.Random(seed)  # noqa: S311 (a repeatable trial, no secret)
    verdict = Verdict()
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        place.prepare()
        with _running(place) as (api, worker), _calling(api) as callers:
            for number in range(num_rounds):
                victim = VICTIMS[number % len(VICTIMS)]
                time.sleep(chance.uniform(0.0, 0.6))
                _kill(victim, api, worker, chance)
                verdict.kills[victim] += 1
                so_far = ", ".join(str(len(caller.acknowledged)) for caller in callers)
                say(f"round {number + 1}: {victim} killed; rows and runs acknowledged so far: {so_far}")
            for caller in callers:
                caller.finish()
            rows, runs = (caller.acknowledged for caller in callers)
            _judge_rows(api.address, rows, verdict)
            _judge_runs(api.address, runs, verdict, Repository(place.heads))
            _judge_ends(api, worker, verdict)
        _judge_database(place.root / "control" / "control.sqlite", verdict)
    return verdict


@contextmanager
def _running(place: Place) -> Iterator[tuple[Service, Service]]:
    worker_flags = ("--trainer", "perf.rehearsal:train", "--lease-seconds", str(LEASE_SECONDS), "--poll-seconds", "0.1")
    # Each API is to be found where the one before it was.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    rate = ("--feedback-per-second", "100000", "--max-feedback-per-day", "100000000")
    api = Service(place.command("serve", "--port", port, *rate))
    worker = Service(place.command("worker", *worker_flags))
    with ExitStack() as stack:
        for service in (api, worker):
            service.start(wait=False)
            stack.callback(service.kill)
        for service in (api, worker):
            service.await_ready()
        yield api, worker


@contextmanager
def _calling(api: Service) -> Iterator[tuple[Caller, Caller]]:
    rows = Caller(lambda: api.address, "/v1/feedback", lambda key: {"head": HEAD, "text": key, "label": "odd"}, ROW_PAUSE_SECONDS)
    order = {"head": HEAD, "data": {"path": "rows.csv"}, "seed": RUN_MILLISECONDS, "publish": "version"}
    runs = Caller(lambda: api.address, "/v1/runs", lambda _: order, RUN_PAUSE_SECONDS)
    for caller in (rows, runs):
        caller.start()
    try:
        yield rows, runs
    finally:
        for caller in (rows, runs):
            caller.finish()


def _kill(victim: str, api: Service, worker: Service, chance: random.Random) -> None:
    if victim == "training":
        for child in psutil.Process(worker.pid).children():
            child.kill()
        return
    service = api if victim == "api" else worker
    service.kill()
    # Now and then the next one is killed while it starts.
    if chance.random() < 0.2:
        service.start(wait=False)
        time.sleep(chance.uniform(0.0, 2.0))
        service.kill()
    service.start()


def _judge_rows(address: str, acknowledged: dict[str, str], verdict: Verdict) -> None:
    counts = httpx.get(f"{address}/v1/feedback/counts", params={"head": HEAD}).json()
    exported = httpx.get(f"{address}/v1/feedback/export", params={"head": HEAD}, timeout=30).text
    texts = {row["text"] for row in csv.DictReader(io.StringIO(exported, newline=""))}
    verdict.num_rows = len(acknowledged)
    if lost := acknowledged.keys() - texts:
        verdict.faults.append(f"{len(lost)} rows lost")
    if counts["rows"] != len(acknowledged):
        verdict.faults.append(f"{counts['rows']} rows kept of {len(acknowledged)} acknowledged")


def _judge_runs(address: str, acknowledged: dict[str, str], verdict: Verdict, repository: Repository) -> None:
    runs = {run["id"]: run for run in _ended_runs(address)}
    verdict.num_runs = len(acknowledged)
    verdict.num_attempts = sum(run["attempt"] for run in runs.values())
    if lost := set(acknowledged.values()) - runs.keys():
        verdict.faults.append(f"{len(lost)} runs lost")
    if len(runs) != len(acknowledged):
        verdict.faults.append(f"{len(runs)} runs kept of {len(acknowledged)} acknowledged")
    if others := Counter(run["state"] for run in runs.values() if run["state"] != "succeeded"):
        verdict.faults.append(f"runs that did not succeed: {dict(others)}")
    _judge_versions(repository, {run["id"]: run["result"].get("version") for run in runs.values()}, verdict)


def _judge_versions(repository: Repository, said: dict[str, int | None], verdict: Verdict) -> None:
    by_run: dict[str, list[int]] = {}
    for version in repository.versions(HEAD):
        path = repository.path(HEAD, version)
        try:
            verify(path)
        except ManifestError as error:
            verdict.faults.append(f"version {version} is half-visible: {error}")
            continue
        run = json.loads((path / RUN_PATH).read_bytes())["run"]
        by_run.setdefault(run, []).append(version)
    verdict.num_versions = sum(map(len, by_run.values()))
    if doubled := [run for run, versions in by_run.items() if len(versions) > 1]:
        verdict.faults.append(f"{len(doubled)} runs published twice")
    if wrong := [run for run, version in said.items() if by_run.get(run) != [version]]:
        verdict.faults.append(f"{len(wrong)} runs say another version than they published")


def _ended_runs(address: str) -> list[dict[str, Any]]:
    """All runs, once none is open any more."""
    give_up = time.monotonic() + END_SECONDS
    while time.monotonic() < give_up:
        runs = _all_runs(address)
        if all(run["finished_at"] for run in runs):
            return runs
        time.sleep(0.5)
    return _all_runs(address)


def _all_runs(address: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    before: int | None = 0
    while before is not None:
        page = httpx.get(f"{address}/v1/runs", params={"limit": 500, "before": before}, timeout=30).json()
        found += page["runs"]
        before = page["next_before"]
    return found


def _judge_ends(api: Service, worker: Service, verdict: Verdict) -> None:
    """Told to stop, both end well."""
    for name, service in (("api", api), ("worker", worker)):
        if status := service.stop():
            verdict.faults.append(f"the {name} ended with status {status} when told to stop")


def _judge_database(path: Path, verdict: Verdict) -> None:
    with closing(sqlite3.connect(path)) as database:
        [(found,)] = database.execute("pragma integrity_check").fetchall()
    if found != "ok":
        verdict.faults.append(f"the database is damaged: {found}")


def main() -> int:
    """Exit status: 1 when anything was lost, doubled or half-visible."""
    parser = argparse.ArgumentParser(prog="python -m perf.control_kills", description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    started = time.monotonic()
    verdict = kill_rounds(given.rounds, given.seed, print)
    print(f"{verdict}; {time.monotonic() - started:.0f} s")
    return 1 if verdict.faults else 0


if __name__ == "__main__":
    sys.exit(main())
