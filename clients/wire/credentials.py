"""What a service of ours shows the services that it calls: keys and certificates, read from its settings."""

from pathlib import Path
from typing import Final, NamedTuple, Protocol

from clients import Tls

MAX_KEY_BYTES: Final = 4_096


class CredentialsError(Exception):
    """A file of a key or certificate cannot be used; the message is one sentence and names its setting."""


class Credentials(NamedTuple):
    """For one service that is called; each None where there is none. As clients take them."""

    api_key: str | None = None
    tls: Tls | None = None

    def __repr__(self) -> str:
        return f"<Credentials [{'a key' if self.api_key else 'no key'}, {'TLS' if self.tls else 'in the clear'}]>"


NO_CREDENTIALS: Final = Credentials()


class TlsFiles(NamedTuple):
    """PEM files: *authority* signed the service's certificate (None: no TLS); *certificate* and *key* are the caller's own."""

    authority: Path | None
    certificate: Path | None
    key: Path | None


class Secret(Protocol):
    """A key that is not shown by accident, as pydantic's SecretStr."""

    def get_secret_value(self) -> str:
        """The key itself."""
        ...


class CallerSettings(Protocol):
    """What the settings of a caller of both services have: a key or a file of it for each, and PEM files."""

    @property
    def embedding_key(self) -> Secret | None: ...  # noqa: D102 (the class says it)
    @property
    def embedding_key_file(self) -> Path | None: ...  # noqa: D102
    @property
    def embedding_ca_file(self) -> Path | None: ...  # noqa: D102
    @property
    def heads_key(self) -> Secret | None: ...  # noqa: D102
    @property
    def heads_key_file(self) -> Path | None: ...  # noqa: D102
    @property
    def heads_ca_file(self) -> Path | None: ...  # noqa: D102
    @property
    def tls_certificate_file(self) -> Path | None: ...  # noqa: D102
    @property
    def tls_key_file(self) -> Path | None: ...  # noqa: D102


def embedding_credentials(settings: CallerSettings) -> Credentials:
    """What *settings* show the embedding service.

    Raises:
        CredentialsError: a file cannot be used.
    """
    files = TlsFiles(settings.embedding_ca_file, settings.tls_certificate_file, settings.tls_key_file)
    return credentials_of("embedding", _told(settings.embedding_key), settings.embedding_key_file, files)


def head_credentials(settings: CallerSettings) -> Credentials:
    """What *settings* show the head server.

    Raises:
        CredentialsError: a file cannot be used.
    """
    files = TlsFiles(settings.heads_ca_file, settings.tls_certificate_file, settings.tls_key_file)
    return credentials_of("heads", _told(settings.heads_key), settings.heads_key_file, files)


def credentials_of(service: str, key: str | None, key_file: Path | None, files: TlsFiles) -> Credentials:
    """What is shown to *service*, whose settings begin with that word. Given a *key_file*, *key* means nothing.

    Raises:
        CredentialsError: a file cannot be used.
    """
    found = key if key_file is None else _key_in(key_file, f"{service}_key_file")
    if files.authority is None:
        return Credentials(found)
    tls = Tls(
        root_certificates=_pem(files.authority, f"{service}_ca_file"),
        certificate=_pem(files.certificate, "tls_certificate_file"),
        private_key=_pem(files.key, "tls_key_file"),
    )
    return Credentials(found, tls)


def _told(key: Secret | None) -> str | None:
    return key.get_secret_value() if key else None


def _key_in(path: Path, setting: str) -> str:
    key = _read(path, setting).strip()
    if not 0 < len(key) <= MAX_KEY_BYTES or not all(0x21 <= byte < 0x7F for byte in key):
        raise CredentialsError(f"{setting} holds something else than one key")
    return key.decode()


def _pem(path: Path | None, setting: str) -> bytes | None:
    if path is None:
        return None
    content = _read(path, setting)
    if b"-----BEGIN" not in content:
        raise CredentialsError(f"{setting} is not PEM")
    return content


def _read(path: Path, setting: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CredentialsError(f"{setting} cannot be read: {error.strerror}") from None
