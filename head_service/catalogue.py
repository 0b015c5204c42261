"""Which version of which head is live: the short way to what `head_service.lifecycle` does with care."""

from pathlib import Path
from typing import Final

from clients.wire.catalogue import Catalogue
from head_service import configuration
from head_service.configuration import CATALOGUE, MODELS_CONFIG
from head_service.lifecycle import Lifecycle, already_available
from head_service.repository import Repository
from head_service.states import Mark
from head_service.store import is_remote, open_store

__all__ = ["CATALOGUE", "MODELS_CONFIG", "ensure_layout", "promote", "read_catalogue", "write_models_config"]

_NOTHING: Final = frozenset({"reserved", "refused", "removing", "removed"})


def ensure_layout(location: str | Path) -> None:
    """Make *location* a repository that the gateway and a head server can start on, if it is none yet.

    What an object store's head server starts on is its mirror's, see `head_service.mirror.mirror_layout`.
    """
    store = open_store(location)
    if store.read(CATALOGUE) is None:
        with store.locked():
            if store.read(CATALOGUE) is None:
                configuration.write_catalogue(store, Catalogue(), None)
    if not is_remote(location) and store.read(MODELS_CONFIG) is None:
        Lifecycle(Repository(store)).write_configs()


def read_catalogue(location: str | Path) -> Catalogue:
    """The catalogue of the repository at *location*; an empty one when there is none yet.

    Raises:
        RepositoryError: the file is not a catalogue.
    """
    return configuration.read_catalogue_of(open_store(location))[0]


def promote(repository: Repository, name: str, version: int) -> None:
    """Make *version* the one of *name* that answers, by whoever knows that the head server has it. See `Lifecycle.promote`."""
    Lifecycle(repository, already_available).promote(name, version)


def write_models_config(repository: Repository, base_path_root: Path | None = None) -> None:
    """Name to the head server what it is to hold, and with it the newest version of each head that was not refused.

    With *base_path_root* models.config is written once for a server that sees the repository there.
    """
    lifecycle = Lifecycle(repository)
    with repository.locked():
        for state in lifecycle.states():
            newest = max(state.versions, default=0)
            mark = state.marks.get(newest)
            is_new = state.entry is None or newest > state.entry.stable
            if newest and is_new and not (mark and mark.state in _NOTHING):
                repository.set_mark(state.name, newest, Mark("candidate", lifecycle.clock(), lifecycle.actor))
        lifecycle.settle_locked()
        if base_path_root is not None:
            content = configuration.render_config(lifecycle.served(), base_path_root)
            configuration.replace_if_other(repository.store, MODELS_CONFIG, content)
