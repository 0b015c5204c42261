"""What bringing a version in needs of the head server: to wait until it has the version, and to ask it for scores.

Where none runs, a version is loaded here for its scores, so that the gate is never left out.
"""

import contextlib
import time
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from numpy.typing import NDArray

from clients import HeadClient, NotFound
from clients.wire.catalogue import Manifest
from clients.wire.credentials import NO_CREDENTIALS, Credentials
from head_service.errors import RepositoryError
from head_service.gate import Scorer
from head_service.repository import Repository
from head_service.scoring import Embeds, Inputs, TextScorer, served
from head_service.serving.trust import LoadError

if TYPE_CHECKING:
    from head_service.serving.servable import Servable

AVAILABLE_WITHIN_SECONDS: Final = 60.0
SCORE_TIMEOUT_SECONDS: Final = 60.0


def wait_until_available(address: str, head: str, version: int, *, credentials: Credentials = NO_CREDENTIALS) -> None:
    """Wait until the head server at *address* serves *version*; nothing when there is none.

    Raises:
        RepositoryError: it refuses to, or does not within `AVAILABLE_WITHIN_SECONDS`.
    """
    if not address:
        return
    give_up = time.monotonic() + AVAILABLE_WITHIN_SECONDS
    state = "UNKNOWN"
    with HeadClient(address, **credentials._asdict()) as client:
        while time.monotonic() < give_up:
            state, message = _status(client, head, version)
            if state == "AVAILABLE":
                return
            if message:
                raise RepositoryError(f"the head server refuses {head} version {version}: {message}")
            # The server follows the file system by polling, so there is nothing to be woken by.
            time.sleep(0.1)
    raise RepositoryError(f"{head} version {version} is still {state} in the head server; the version before it keeps answering")


def _status(client: HeadClient, head: str, version: int) -> tuple[str, str]:
    try:
        [status] = client.status(head, version=version)
    except NotFound:
        return "UNKNOWN", ""
    return status.state, status.error_message


@contextlib.contextmanager
def scorer_at(
    address: str, embedder: Embeds, repository: Repository, credentials: Credentials = NO_CREDENTIALS
) -> Iterator[Scorer]:
    """Scores by the head server at *address*; "" for none: by loading the version from *repository*."""
    if not address:
        with contextlib.closing(LoadedHere(repository)) as here:
            yield TextScorer(embedder, here)
        return
    with HeadClient(address, timeout=SCORE_TIMEOUT_SECONDS, **credentials._asdict()) as client:
        yield TextScorer(embedder, partial(served, client))


def loaded(repository: Repository, manifest: Manifest, inputs: Inputs) -> NDArray[Any]:
    """The scores of a version that is loaded here, for this once; raises as `LoadedHere`."""
    with contextlib.closing(LoadedHere(repository)) as here:
        return here(manifest, inputs)


class LoadedHere:
    """Scores of versions that are loaded here, the last one until another is asked or it is closed; see `scoring.Predict`."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._held = contextlib.ExitStack()
        self._version: tuple[str, int] | None = None
        self._servable: Servable | None = None

    def __call__(self, manifest: Manifest, inputs: Inputs) -> NDArray[Any]:
        """See `scoring.Predict`.

        Raises:
            RepositoryError: the version cannot be had, or not be loaded.
        """
        if self._version != (manifest.name, manifest.version) or self._servable is None:
            self.close()
            self._servable = self._loaded(manifest)
            self._version = (manifest.name, manifest.version)
        return self._servable.run("", inputs, (manifest.output,))[manifest.output]

    def close(self) -> None:
        """Give back what is loaded."""
        self._servable = self._version = None
        self._held.close()

    def _loaded(self, manifest: Manifest) -> "Servable":
        from head_service.serving.servable import Servable  # noqa: PLC0415 (TensorFlow: seconds)

        directory = self._held.enter_context(self._repository.on_disk(manifest.name, manifest.version))
        try:
            servable = Servable(manifest.name, manifest.version, directory)
        except LoadError as error:
            raise RepositoryError(f"{manifest.name} version {manifest.version} cannot be loaded: {error}") from None
        self._held.callback(servable.close)
        return servable
