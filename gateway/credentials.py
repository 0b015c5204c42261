"""What the gateway shows its backends: keys and certificates, read once at the start."""

from pathlib import Path
from typing import Final, NamedTuple

from pydantic import SecretStr

from clients import Tls
from gateway.settings import Settings

MAX_KEY_BYTES: Final = 4_096


class CredentialsError(Exception):
    """A file of a key or certificate cannot be used; the message is one sentence and names it."""


class Credentials(NamedTuple):
    """For one backend; each None where there is none. As clients take them."""

    api_key: str | None = None
    tls: Tls | None = None

    def __repr__(self) -> str:
        return f"<Credentials [{'a key' if self.api_key else 'no key'}, {'TLS' if self.tls else 'in the clear'}]>"


NO_CREDENTIALS: Final = Credentials()


def embedding_credentials(settings: Settings) -> Credentials:
    """For the embedding service.

    Raises:
        CredentialsError: a file cannot be used.
    """
    return Credentials(
        _key(settings.embedding_key, settings.embedding_key_file, "embedding_key_file"),
        _tls(settings, settings.embedding_ca_file, "embedding_ca_file"),
    )


def head_credentials(settings: Settings) -> Credentials:
    """For the head server.

    Raises:
        CredentialsError: a file cannot be used.
    """
    return Credentials(
        _key(settings.heads_key, settings.heads_key_file, "heads_key_file"),
        _tls(settings, settings.heads_ca_file, "heads_ca_file"),
    )


def _key(given: SecretStr | None, path: Path | None, setting: str) -> str | None:
    if path is None:
        return given.get_secret_value() if given is not None else None
    key = _read(path, setting).strip()
    if not 0 < len(key) <= MAX_KEY_BYTES or not all(0x21 <= byte < 0x7F for byte in key):
        raise CredentialsError(f"{setting} holds something else than one key")
    return key.decode()


def _tls(settings: Settings, ca_file: Path | None, setting: str) -> Tls | None:
    if ca_file is None:
        return None
    return Tls(
        root_certificates=_pem(ca_file, setting),
        certificate=_pem(settings.tls_certificate_file, "tls_certificate_file"),
        private_key=_pem(settings.tls_key_file, "tls_key_file"),
    )


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
