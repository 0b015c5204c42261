"""What the gateway shows its backends: keys and certificates, read once at the start."""

from clients.wire.credentials import NO_CREDENTIALS, Credentials, CredentialsError, TlsFiles, credentials_of
from gateway.settings import Settings

__all__ = ["NO_CREDENTIALS", "Credentials", "CredentialsError", "embedding_credentials", "head_credentials"]


def embedding_credentials(settings: Settings) -> Credentials:
    """For the embedding service.

    Raises:
        CredentialsError: a file cannot be used.
    """
    key = settings.embedding_key.get_secret_value() if settings.embedding_key else None
    files = TlsFiles(settings.embedding_ca_file, settings.tls_certificate_file, settings.tls_key_file)
    return credentials_of("embedding", key, settings.embedding_key_file, files)


def head_credentials(settings: Settings) -> Credentials:
    """For the head server.

    Raises:
        CredentialsError: a file cannot be used.
    """
    key = settings.heads_key.get_secret_value() if settings.heads_key else None
    files = TlsFiles(settings.heads_ca_file, settings.tls_certificate_file, settings.tls_key_file)
    return credentials_of("heads", key, settings.heads_key_file, files)
