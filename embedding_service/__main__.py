"""`python -m embedding_service`: prepares the trunk where needed, then serves it. Prints one line to stdout when ready."""

import asyncio
import logging
import os
import sys
from collections.abc import Sequence

import uvloop
from pydantic import ValidationError
from pydantic_settings import CliApp

from clients.wire.guard import is_loopback
from clients.wire.http_server import allow_many_connections, calm_collector
from clients.wire.keys import KeysError
from clients.wire.listening import ListenError
from clients.wire.logs import problems_of
from embedding_service import logs
from embedding_service.backend import Backend
from embedding_service.backend.load import load_backend
from embedding_service.backend.tables import Table
from embedding_service.guarding import guard_of
from embedding_service.memory import share_one_heap
from embedding_service.models.errors import PreparationError
from embedding_service.models.prepare import prepare
from embedding_service.models.tables import prepare_table
from embedding_service.priority import new_threads_give_way, share_the_interpreter
from embedding_service.service import Addresses, MissingExtra, serve, warm_up
from embedding_service.settings import Settings

_log = logging.getLogger("embedding_service")


def main() -> int:
    """Exit status: 0 after a drain, 1 when it could not start (one sentence says why), 2 for settings that make no sense."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logs.configure()
    try:
        settings = CliApp.run(Settings)
    except ValidationError as error:
        for problem in problems_of(error):
            _log.error("%s", problem)
        return 2
    logs.configure(settings.log_format)
    share_one_heap()
    try:
        allow_many_connections()
        # What is wrong with it is told before the trunk is loaded.
        guard_of(settings)
        if settings.keys_file is None and not is_loopback(settings.host):
            _log.warning("whoever reaches %s may ask: there are no keys", settings.host)
        backends = [_backend(source, settings) for source in settings.model or (None,)]
        tables = [_table(given, settings) for given in settings.table]
        _check_names([*(backend.trunk.name for backend in backends), *(table.spec.name for table in tables)])
        calm_collector()
        share_the_interpreter()
        uvloop.run(serve(backends, settings, _announce, tables))
    except (PreparationError, ListenError, MissingExtra, KeysError) as error:
        _log.error("%s", error)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    return 0


def _backend(model: str | None, settings: Settings) -> Backend:
    prepared = prepare(model, cache_dir=settings.cache_dir, engine=settings.engine, layers=settings.layers, progress=_log.info)
    with new_threads_give_way():
        backend = load_backend(prepared)
        warm_up(backend)
    return backend


def _table(given: str, settings: Settings) -> Table:
    name, _, source = given.partition("=")
    prepared = prepare_table(source, name=name, cache_dir=settings.cache_dir, progress=_log.info)
    return Table(prepared.spec, prepared.folder)


def _check_names(names: Sequence[str]) -> None:
    if len(names) > len(set(names)):
        raise PreparationError(f"two have one name among {', '.join(names)}; call one otherwise with NAME=SOURCE")


def _announce(addresses: Addresses) -> None:
    if addresses.bert:
        _log.info("bert-as-service: requests to %s, answers from %s", addresses.bert, addresses.bert_out)
    print(f"embedding grpc={addresses.grpc} http={addresses.http}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
