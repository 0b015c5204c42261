"""`python -m head_service.control serve | worker | migrate | key`. The first two print a line to stdout when they are ready."""

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, TypeVar, get_args

from pydantic import ValidationError
from pydantic_settings import CliApp

from clients.wire.credentials import CredentialsError, embedding_credentials, head_credentials
from clients.wire.guard import is_loopback
from clients.wire.logs import problems_of
from head_service.control.errors import ControlError
from head_service.control.keep import Kept, open_kept, open_store
from head_service.control.keys import Scope, add_key
from head_service.control.retraining import Schedule
from head_service.control.settings import ServeSettings, Settings, WorkerSettings

_log = logging.getLogger("head_service.control")
_Settings = TypeVar("_Settings", bound=Settings)


def main() -> int:
    """Exit status: 0 after a drain, 1 when it could not start (one sentence says why), 2 for settings that make no sense."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="control: %(message)s")
    logging.getLogger("head_service").setLevel(logging.INFO)
    command, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    if command not in COMMANDS:
        _log.error("say one of %s; each knows --help", ", ".join(COMMANDS))
        return 2
    try:
        return COMMANDS[command](arguments)
    except ValidationError as error:
        for problem in problems_of(error):
            _log.error("%s", problem)
        return 2
    except ControlError as error:
        _log.error("%s", error)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130


def serve(arguments: list[str]) -> int:
    """The API, until SIGTERM or SIGINT."""
    from head_service.control.listening import listen  # noqa: PLC0415 (a worker does without the web's packages)

    settings = _settings(ServeSettings, arguments)
    if settings.keys is None and not is_loopback(settings.host):
        _log.warning("whoever reaches %s may do all: there are no keys", settings.host)
    kept = open_kept(settings)
    try:
        listen(settings, kept)
    finally:
        kept.close()
    return 0


def work(arguments: list[str]) -> int:
    """A worker, until SIGTERM or SIGINT."""
    from head_service.catalogue import ensure_layout  # noqa: PLC0415 (only workers publish)
    from head_service.control.child import check_trainer  # noqa: PLC0415

    settings = _settings(WorkerSettings, arguments)
    check_trainer(settings.trainer)
    try:
        embedding_credentials(settings)
        head_credentials(settings)
    except CredentialsError as error:
        raise ControlError(str(error)) from None
    ensure_layout(settings.location)
    kept = open_kept(settings)
    try:
        asyncio.run(_work(settings, kept))
    finally:
        kept.close()
    return 0


async def _work(settings: WorkerSettings, kept: Kept) -> None:
    from head_service.control.worker import Rooms, Worker  # noqa: PLC0415 (see `work`)

    schedule = Schedule(settings.retrain_every_hours * 3_600, settings.retrain_min_rows, settings.retrain_publish)

    def retrain() -> list[str]:
        return [run.id for run in kept.retraining.submit_due(schedule)]

    worker = Worker(Rooms(kept.runs, kept.wakeup, kept.data, kept.uploads, retrain), settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.stop)
    print(f"worker {worker.name}", flush=True)
    await worker.run()


def migrate(arguments: list[str]) -> int:
    """Bring the database to its newest form."""
    store = open_store(_settings(Settings, arguments))
    try:
        store.migrate()
    finally:
        store.close()
    return 0


def key(arguments: list[str]) -> int:
    """Make a key, print it once, and keep its hash."""
    parser = argparse.ArgumentParser(prog="python -m head_service.control key", description=key.__doc__)
    parser.add_argument("--keys", type=Path, required=True, help="The file of keys; made when it is not there.")
    parser.add_argument("--name", required=True, help="Whose it is; quotas and runs go by it.")
    parser.add_argument("--scopes", required=True, help=f"Of {', '.join(get_args(Scope))}, with commas between.")
    parser.add_argument("--days", type=float, default=None, help="How long it is valid; for ever when absent.")
    given = parser.parse_args(arguments)
    scopes = tuple(scope for scope in get_args(Scope) if scope in given.scopes.split(","))
    if len(scopes) != len(given.scopes.split(",")):
        raise ControlError(f"--scopes takes some of {', '.join(get_args(Scope))}, each once, with commas between")
    expires = None if given.days is None else datetime.now(UTC) + timedelta(days=given.days)
    print(add_key(given.keys, given.name, scopes, expires))
    return 0


def _settings(kind: type[_Settings], arguments: list[str]) -> _Settings:
    return CliApp.run(kind, cli_args=arguments)


COMMANDS: Final[dict[str, Callable[[list[str]], int]]] = {"serve": serve, "worker": work, "migrate": migrate, "key": key}


if __name__ == "__main__":
    sys.exit(main())
