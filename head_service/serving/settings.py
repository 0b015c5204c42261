"""The flags and all the files they name, read before anything is loaded: what is wrong is told at once. No TensorFlow here."""

import ssl
from dataclasses import dataclass

from clients.wire.guard import Guard
from clients.wire.tfs import serving_pb2 as pb
from head_service.serving.batching import Parameters, read_parameters
from head_service.serving.flags import Flags, channel_arguments, read_config, read_monitoring
from head_service.serving.guarding import read_guard
from head_service.serving.tls import read_credentials


@dataclass(frozen=True, slots=True)
class Settings:
    """The flags with the files they name, all read before anything is loaded.

    *metrics_path* is "" and *batching*, *credentials* and *guard* are None where they were not asked for.
    """

    flags: Flags
    models: pb.ModelServerConfig
    batching: Parameters | None
    metrics_path: str
    credentials: ssl.SSLContext | None
    channel_arguments: list[tuple[str, int | str]]
    guard: Guard | None


def read_settings(flags: Flags) -> Settings:
    """What *flags* ask for.

    Raises:
        FlagError: they make no sense, or a file they name does not.
    """
    return Settings(
        flags,
        read_config(flags),
        read_parameters(flags),
        read_monitoring(flags),
        read_credentials(flags),
        channel_arguments(flags),
        read_guard(flags),
    )
