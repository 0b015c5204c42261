"""The database: opened safely, brought to its newest form, and its faults told in our words.

SQLite: a commit that was answered is on the disk (WAL with synchronous=FULL; sqlite.org/pragma.html#pragma_synchronous), writers
take their lock at once and wait for each other. PostgreSQL by URL, migrated by command only.
"""

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session

from clients import TrunklineError, Unavailable
from head_service.control.errors import Collision, ControlError, StorageFull

BUSY_SECONDS: Final = 10.0
_FULL: Final = frozenset({sqlite3.SQLITE_FULL})
_DISK_FULL_SQLSTATES: Final = frozenset({"53100"})
"""PostgreSQL, Appendix A: disk_full."""
_MIGRATING: Final = 0x7472756E
"""The key of the advisory lock that one migrating process holds."""


class Store:
    """A database of runs and feedback. Threads and processes may share it; every write is one transaction."""

    def __init__(self, url: str, *, clock: Callable[[], float] = time.time) -> None:
        try:
            self._engine = create_engine(_with_driver(url), pool_pre_ping=True)
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise ControlError(_unusable(error)) from None
        self.is_sqlite: Final = self._engine.dialect.name == "sqlite"
        if self.is_sqlite:
            _prepare_sqlite(self._engine)
        self._clock = clock

    @contextlib.contextmanager
    def write(self) -> Iterator[Session]:
        """One transaction: all of it is kept when the block ends, and none of it when it raises.

        Raises:
            StorageFull: the disk is; nothing was kept.
            Collision: a constraint does not allow it; nothing was kept.
            Unavailable: the database cannot be reached or written.
        """
        with told(), Session(self._engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        """One consistent look; the errors are those of `write`."""
        reading = self._engine.execution_options(is_read=True)
        with told(), Session(reading, expire_on_commit=False) as session, session.begin():
            yield session

    def now(self, session: Session) -> float:
        """Seconds since 1970 by the one clock that all who share the store go by: the server's, or with SQLite this machine's."""
        if self.is_sqlite:
            return self._clock()
        return float(session.execute(text("select extract(epoch from clock_timestamp())")).scalar_one())

    def start(self) -> None:
        """Make sure that the tables are of the form this code knows. SQLite is migrated; a server only by `migrate`.

        Raises:
            ControlError: they are older or newer.
        """
        if self.is_sqlite:
            self.migrate()
            return
        with _opened(), self._engine.connect() as connection:
            if _revision(connection) != _newest():
                raise ControlError("the database is not migrated; run `python -m head_service.control migrate` first")

    def migrate(self) -> None:
        """Bring the tables to their newest form.

        Raises:
            ControlError: a newer version of this software made them, or it is no database of ours.
        """
        with _opened(), self._engine.begin() as connection:
            if not self.is_sqlite:
                connection.execute(text("select pg_advisory_xact_lock(:key)"), {"key": _MIGRATING})
            if _revision(connection) != _newest():
                config = _config()
                config.attributes["connection"] = connection
                command.upgrade(config, "head")

    def close(self) -> None:
        """Let the connections go."""
        self._engine.dispose()


@contextlib.contextmanager
def told() -> Iterator[None]:
    """The database's faults in our words; the statement and its parameters, which may be a text, are left out.

    Raises:
        StorageFull, Unavailable: see `Store.write`.
    """
    try:
        yield
    except SQLAlchemyError as error:
        raise _fault(error) from None


def _fault(error: SQLAlchemyError) -> TrunklineError:
    cause = error.orig if isinstance(error, DBAPIError) else None
    if getattr(cause, "sqlite_errorcode", 0) in _FULL or getattr(cause, "sqlstate", "") in _DISK_FULL_SQLSTATES:
        return StorageFull("there is no room left for this; nothing was kept", retry_after=30.0)
    if isinstance(error, IntegrityError):
        return Collision("this could not be kept beside what is kept already")
    if isinstance(error, DBAPIError) and not isinstance(error, OperationalError):
        # A fault of ours, such as a broken constraint, and its own words could quote a row.
        return TrunklineError(f"the database refused a statement ({type(cause).__name__})")
    return Unavailable("the database cannot be used just now; nothing was kept", retry_after=1.0)


@contextlib.contextmanager
def _opened() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        raise ControlError(_unusable(error.orig)) from None


def _unusable(error: BaseException | None) -> str:
    first = str(error).strip().split("\n")[0]
    return f"the database cannot be used: {first}; see --database"


def _with_driver(url: str) -> str:
    """PostgreSQL is spoken by psycopg, whichever way its URL begins."""
    for prefix in ("postgres://", "postgresql://"):
        if url.startswith(prefix):
            return f"postgresql+psycopg://{url.removeprefix(prefix)}"
    if make_url(url).get_backend_name() not in {"sqlite", "postgresql"}:
        raise ArgumentError("its URL begins with sqlite:/// or postgresql://")
    return url


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _: Any) -> None:
        # Transactions are begun below, not by the driver, which would take the lock late and find it taken.
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout = {round(BUSY_SECONDS * 1000)}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA trusted_schema = OFF")

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        is_read = connection.get_execution_options().get("is_read", False)
        connection.exec_driver_sql("BEGIN" if is_read else "BEGIN IMMEDIATE")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "head_service.control:migrations")
    return config


def _newest() -> str:
    found = ScriptDirectory.from_config(_config()).get_current_head()
    assert found is not None
    return found


def _revision(connection: Connection) -> str | None:
    """The form of the tables; None: there are none yet.

    Raises:
        ControlError: this code does not know it.
    """
    heads = MigrationContext.configure(connection).get_current_heads()
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if set(heads) - known:
        raise ControlError("the database was made by a newer version of this software; upgrade it, or name another --database")
    return heads[0] if heads else None
