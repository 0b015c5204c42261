"""How the clients behave where the caller does not say otherwise."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import httpx


@dataclass(frozen=True, slots=True)
class Retry:
    """How long to stay away from a service that is full: what it asks for, else *backoff* doubled up to *max_backoff*.

    Both in seconds. There is no count of attempts: the call's timeout ends them.
    """

    backoff: float = 0.05
    max_backoff: float = 2.0

    def delay(self, attempt: int, retry_after: float | None) -> float:
        """Seconds to wait before attempt number *attempt* + 1, the first being 0."""
        if retry_after is not None:
            return retry_after
        return min(self.max_backoff, self.backoff * 2.0 ** min(attempt, 32))


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS towards a gRPC service, all of it PEM.

    *root_certificates*: who must have signed the service's certificate; None: whom the system trusts. *certificate* and
    *private_key*: the client's own, for a service that asks for them (mutual TLS). *server_name*: what the service's certificate
    names, where that is not the host in its address.
    """

    root_certificates: bytes | None = None
    certificate: bytes | None = None
    private_key: bytes | None = field(default=None, repr=False)
    server_name: str = ""

    @classmethod
    def from_files(
        cls,
        root_certificates: Path | str | None = None,
        certificate: Path | str | None = None,
        private_key: Path | str | None = None,
        *,
        server_name: str = "",
    ) -> Self:
        """The same, from files.

        Raises:
            OSError: one cannot be read.
        """
        return cls(_read(root_certificates), _read(certificate), _read(private_key), server_name)


def _read(path: Path | str | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()


GATEWAY_TIMEOUT: Final = 10.0
EMBEDDING_TIMEOUT: Final = 10.0
HEAD_TIMEOUT: Final = 5.0
GATEWAY_CONNECTIONS: Final = httpx.Limits(max_connections=100, max_keepalive_connections=100, keepalive_expiry=5.0)
"""All that are open are kept: of a hundred calls at once httpx by itself would keep twenty, and connect anew for the next ones.
What is idle for five seconds goes, long before the gateway ends it (`http_server.KEEP_ALIVE_SECONDS`)."""
EMBED_ALL_RETRY: Final = Retry()
STREAM_RETRY: Final = Retry()
