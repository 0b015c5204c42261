"""`--ssl_config_file`: TLS for the gRPC port, as tensorflow_serving/config/ssl_config.proto says it."""

import grpc

from clients.wire.tfs import server_pb2
from head_service.serving.flags import FlagError, Flags, read_text_proto


def read_credentials(flags: Flags) -> grpc.ServerCredentials | None:
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
    return grpc.ssl_server_credentials(
        [(config.server_key.encode(), config.server_cert.encode())],
        root_certificates=config.custom_ca.encode() or None,
        require_client_auth=config.client_verify,
    )
