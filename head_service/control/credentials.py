"""What a worker shows the embedding service and the head server; read anew for each run, since keys are exchanged."""

from clients.wire.credentials import Credentials, TlsFiles, credentials_of
from head_service.control.settings import WorkerSettings


def embedding_credentials(settings: WorkerSettings) -> Credentials:
    """For the embedding service.

    Raises:
        CredentialsError: a file cannot be used.
    """
    key = settings.embedding_key.get_secret_value() if settings.embedding_key else None
    files = TlsFiles(settings.embedding_ca_file, settings.tls_certificate_file, settings.tls_key_file)
    return credentials_of("embedding", key, settings.embedding_key_file, files)


def head_credentials(settings: WorkerSettings) -> Credentials:
    """For the head server.

    Raises:
        CredentialsError: a file cannot be used.
    """
    key = settings.heads_key.get_secret_value() if settings.heads_key else None
    files = TlsFiles(settings.heads_ca_file, settings.tls_certificate_file, settings.tls_key_file)
    return credentials_of("heads", key, settings.heads_key_file, files)
