"""TLS contexts for gRPC: HTTP/2 by ALPN, TLS 1.2 or later, from PEM in memory."""

import os
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


def client_context(root_certificates: bytes | None, certificate: bytes | None, private_key: bytes | None) -> ssl.SSLContext:
    """For a caller; see `clients.Tls`.

    Raises:
        ValueError: what was given is not PEM, or key and certificate are not of one another.
    """
    if root_certificates is not None and b"-----BEGIN" not in root_certificates:
        # Python would take the system's instead.
        raise ValueError("there are no root certificates in what was given")
    try:
        context = ssl.create_default_context(cadata=None if root_certificates is None else _text(root_certificates))
        if certificate is not None and private_key is not None:
            _load_pair(context, certificate, private_key)
    except ssl.SSLError:
        raise ValueError("the certificates and the key must be PEM, and of one another") from None
    return _prepared(context)


def server_context(certificate: bytes, private_key: bytes, client_roots: bytes | None, *, is_asked: bool) -> ssl.SSLContext:
    """For a server; *client_roots*: who must have signed the callers' certificates, where they are asked for them.

    Raises:
        ValueError: what was given is not PEM, or key and certificate are not of one another.
    """
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _load_pair(context, certificate, private_key)
        if client_roots is not None:
            context.load_verify_locations(cadata=_text(client_roots))
        if is_asked:
            context.verify_mode = ssl.CERT_REQUIRED
    except ssl.SSLError:
        raise ValueError("the certificates and the key must be PEM, and of one another") from None
    return _prepared(context)


def _prepared(context: ssl.SSLContext) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # On by default from Python 3.13 on; it refuses certificates of private authorities that gRPC takes.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.set_alpn_protocols(["h2"])
    return context


def _text(pem: bytes) -> str:
    """*pem* without the comments in other scripts that bundles have between certificates."""
    return pem.decode("ascii", "ignore")


def _load_pair(context: ssl.SSLContext, certificate: bytes, private_key: bytes) -> None:
    with _file(certificate) as first, _file(private_key) as second:
        context.load_cert_chain(first, second, password="")


@contextmanager
def _file(content: bytes) -> Iterator[str]:
    """*content* as a file that only this user can read, for as long as it takes: OpenSSL reads keys from files alone."""
    number, path = tempfile.mkstemp()
    try:
        with os.fdopen(number, "wb") as file:
            file.write(content)
        yield path
    finally:
        os.unlink(path)  # noqa: PTH108
