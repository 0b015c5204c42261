import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text

from clients import TrunklineError, Unavailable
from head_service.control.errors import ControlError, StorageFull
from head_service.control.runs import Runs
from head_service.control.schema import Base
from head_service.control.store import Store
from head_service.control.words import DataSource, TrainingOrder

ORDER = TrainingOrder(head="spam", data=DataSource(path="spam.csv"))


def test_a_commit_is_on_the_disk_and_keys_hold(store):
    with store.read() as session:
        found = {
            name: session.execute(text(f"pragma {name}")).scalar_one() for name in ("synchronous", "journal_mode", "foreign_keys")
        }

    assert {"synchronous": 2, "journal_mode": "wal", "foreign_keys": 1} == found


def test_the_migrations_make_the_tables_that_the_code_has(store):
    with store._engine.connect() as connection:
        assert [] == compare_metadata(MigrationContext.configure(connection), Base.metadata)


def test_processes_that_start_at_once_migrate_once(tmp_path: Path):
    stores = [Store(f"sqlite:///{tmp_path / 'new.sqlite'}") for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        # Alembic's environment is one a process; its own lock is not what is tried here.
        for store in stores:
            pool.submit(store.start).result()

    for store in stores:
        assert [] == Runs(store).page()
        store.close()


def test_tables_of_a_newer_version_are_refused_in_a_sentence(tmp_path: Path, store):
    with store.write() as session:
        session.execute(text("update alembic_version set version_num = '9999'"))

    with pytest.raises(ControlError, match="newer version of this software"):
        store.start()


@pytest.mark.parametrize(
    "url", ["nonsense", "mysql://host/db", "sqlite:////no/such/folder/a.sqlite", "postgresql://127.0.0.1:1/x"]
)
def test_a_database_that_cannot_be_used_is_told_in_a_sentence(url):
    with pytest.raises(ControlError, match="database cannot be used"):
        Store(url).start()


def test_a_file_that_is_no_database_is_told_in_a_sentence(tmp_path: Path):
    path = tmp_path / "a.sqlite"
    path.write_bytes(b"not a database at all, but long enough to be looked at as one" * 20)
    store = Store(f"sqlite:///{path}")

    with pytest.raises(ControlError, match="database cannot be used"):
        store.start()
    store.close()


def test_a_full_disk_keeps_nothing_and_says_so_and_goes_on_when_there_is_room(store):
    runs = Runs(store)
    with store.read() as session:
        pages = session.execute(text("pragma page_count")).scalar_one()
    limit = [f"pragma max_page_count = {pages}"]

    def bounded(connection, _record, _proxy):
        connection.execute(limit[0])

    from sqlalchemy import event

    event.listen(store._engine, "checkout", bounded)
    kept = []

    def fill() -> None:
        while len(kept) < 1_000:
            kept.append(runs.submit(ORDER, "ann")[0].id)

    with pytest.raises(StorageFull, match="nothing was kept"):
        fill()
    limit[0] = "pragma max_page_count = 100000"

    kept.append(runs.submit(ORDER, "ann")[0].id)

    assert set(kept) == {run.id for run in runs.page(limit=1_000)}


def test_a_locked_database_is_unavailable_and_not_a_fault(tmp_path: Path, store, monkeypatch):
    monkeypatch.setattr("head_service.control.store.BUSY_SECONDS", 0.05)
    store._engine.dispose()
    other = sqlite3.connect(tmp_path / "control.sqlite")
    other.execute("begin immediate")

    with pytest.raises(Unavailable):
        Runs(store).submit(ORDER, "ann")
    other.close()


def test_a_broken_constraint_quotes_no_row(store):
    with pytest.raises(TrunklineError, match="kept already") as caught, store.write() as session:
        session.execute(text("insert into feedback_days values ('CANARY', '2026-01-01', null)"))

    assert "CANARY" not in str(caught.value)
