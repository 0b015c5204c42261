"""Which heads are live, as the catalogue says now."""

from collections.abc import Callable

from clients.wire.catalogue import Manifest
from head_service.catalogue import read_catalogue

LiveHead = Callable[[str], Manifest | None]
"""The manifest of a head's live version; None: no such head is live."""


def live_heads(location: str) -> LiveHead:
    """Of the repository at *location*, read anew each time.

    Raises:
        RepositoryError: in the function it gives: the catalogue cannot be read.
    """

    def find(head: str) -> Manifest | None:
        found = read_catalogue(location).heads.get(head)
        return found.versions[found.stable] if found else None

    return find
