"""The same store in PostgreSQL: what differs there is how locks are taken, who migrates, and whose clock counts."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from head_service.control.errors import ControlError
from head_service.control.feedback import FeedbackRow, FeedbackStore, Kept
from head_service.control.runs import Runs
from head_service.control.schema import Base
from head_service.control.store import Store
from head_service.control.words import DataSource, Outcome, TrainingOrder

pytest.importorskip("psycopg")
BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
INITDB = shutil.which("initdb") or (str(BINARIES[-1]) if BINARIES else None)
SERVER_USER = "postgres" if os.geteuid() == 0 else None
"""The server does not run as root."""

ORDER = TrainingOrder(head="spam", data=DataSource(path="spam.csv"))


def user_exists() -> bool:
    return SERVER_USER is None or any(entry.pw_name == SERVER_USER for entry in pwd.getpwall())


pytestmark = pytest.mark.skipif(INITDB is None or not user_exists(), reason="PostgreSQL's server is not installed")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    assert INITDB is not None
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    if SERVER_USER:
        shutil.chown(folder, SERVER_USER)

    def run(program: str, *arguments: str) -> None:
        command = [str(Path(INITDB).parent / program), "-D", str(folder / "data"), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, user=SERVER_USER, cwd=folder, timeout=60)

    try:
        run("initdb", "-A", "trust", "-U", "postgres", "-N")
        run("pg_ctl", "-w", "-l", str(folder / "log"), "-o", f"-k {folder} -c listen_addresses='' -F", "start")
        yield f"postgresql://postgres@/postgres?host={folder}"
        run("pg_ctl", "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def store(server: str) -> Iterator[Store]:
    found = Store(server)
    found.migrate()
    yield found
    Base.metadata.drop_all(found._engine)
    with found._engine.begin() as connection:
        connection.exec_driver_sql("drop table alembic_version")
    found.close()


def test_a_server_is_migrated_by_command_only(server):
    store = Store(server)
    with pytest.raises(ControlError, match="is not migrated"):
        store.start()
    store.migrate()
    store.start()
    with store._engine.connect() as connection:
        assert [] == compare_metadata(MigrationContext.configure(connection), Base.metadata)
    Base.metadata.drop_all(store._engine)
    with store._engine.begin() as connection:
        connection.exec_driver_sql("drop table alembic_version")
    store.close()


def test_each_run_is_claimed_by_one_worker_and_seen_through(store):
    runs = Runs(store)
    ids = {runs.submit(ORDER, "ann")[0].id for _ in range(6)}
    with ThreadPoolExecutor(8) as pool:
        leases = [lease for lease in pool.map(lambda n: runs.claim(f"w{n}", 30), range(8)) if lease]

    # A worker passes over what another one is about to take, so it may find none though there is one.
    while lease := runs.claim("last", 30):
        leases.append(lease)
    assert ids == {lease.run.id for lease in leases}
    assert len(ids) == len(leases)
    assert runs.renew(leases[0], 30, ("embedding", 1, 2)) is False
    runs.say(leases[0], ["fitting"])
    assert ["fitting"] == [line.line for line in runs.lines(leases[0].run.id)]
    assert "succeeded" == runs.finish(leases[0], Outcome(kind="succeeded")).state
    assert 1 == runs.statistics().by_state["succeeded"]


def test_a_lease_runs_out_by_the_servers_clock(store):
    runs = Runs(store, retry_seconds=0)
    runs.submit(ORDER, "ann")
    dead = runs.claim("dead", -1)

    assert ["queued"] == [run.state for run in runs.recover()]
    alive = runs.claim("alive", 30)
    assert alive is not None
    assert runs.finish(dead, Outcome(kind="succeeded")) is None


def test_one_key_at_once_is_one_run_and_one_row(store):
    runs, feedback = Runs(store), FeedbackStore(store, max_rows_per_day=100)
    row = FeedbackRow("spam", "win", "spam", "ann", "k")
    with ThreadPoolExecutor(8) as pool:
        submitted = list(pool.map(lambda _: runs.submit(ORDER, "ann", "k"), range(16)))
        kept = [answer for [answer] in pool.map(lambda _: feedback.keep([row]), range(16))]

    assert 1 == len({run.id for run, _ in submitted}) == sum(is_new for _, is_new in submitted)
    assert all(isinstance(answer, Kept) for answer in kept)
    assert 1 == sum(answer.is_new for answer in kept)
    found = feedback.counts("spam")
    assert (1, 1, {"spam": 1}) == (found.num_rows, found.num_texts, found.by_label)
