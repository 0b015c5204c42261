"""`--ssl_config_file`: TLS for the gRPC port, as tensorflow_serving/config/ssl_config.proto says it."""

import ssl

from clients.wire.rpc.tls import server_context
from clients.wire.tfs import server_pb2
from head_service.serving.flags import FlagError, Flags, read_text_proto


def read_credentials(flags: Flags) -> ssl.SSLContext | None:
    """What the file says; None when none is named.

    Raises:
        FlagError: it cannot be read, or has no key and certificate.
    """
    if not flags.ssl_config_file:
        return None
    config = read_text_proto("--ssl_config_file", flags.ssl_config_file, server_pb2.SslConfig())
    if "BEGIN" not in config.server_key or "BEGIN" not in config.server_cert:
        raise FlagError("--ssl_config_file must hold server_key and server_cert, both PEM")
    if config.client_verify and not config.custom_ca:
        raise FlagError("--ssl_config_file: client_verify needs custom_ca, the authority that signed the clients' certificates")
    try:
        return server_context(
            config.server_cert.encode(),
            config.server_key.encode(),
            config.custom_ca.encode() or None,
            is_asked=config.client_verify,
        )
    except ValueError as error:
        raise FlagError(f"--ssl_config_file: {error}") from None
