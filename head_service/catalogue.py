"""Which version of which head is live; what changes that is `head_service.lifecycle`."""

from pathlib import Path

from clients.wire.catalogue import Catalogue
from head_service import configuration
from head_service.configuration import CATALOGUE, MODELS_CONFIG
from head_service.lifecycle import Lifecycle
from head_service.repository import Repository
from head_service.store import is_remote, open_store

__all__ = ["CATALOGUE", "MODELS_CONFIG", "ensure_layout", "read_catalogue"]


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
