"""tensorflow_model_server's flags, by its names (model_servers/main.cc); the last few are ours.

Those that say how the reference spends threads and memory are taken and have no effect: this server has an event loop.
"""

import argparse
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn, TypeVar

from google.protobuf import text_format
from google.protobuf.message import Message

from clients.wire.tfs import server_pb2
from clients.wire.tfs import serving_pb2 as pb

CONFIG_FLAG: Final = "--model_config_file"
METRICS_PATH: Final = "/monitoring/prometheus/metrics"

WITHOUT_EFFECT: Final = (
    "rest_api_num_threads",
    "num_unload_threads",
    "grpc_max_threads",
    "flush_filesystem_caches",
    "remove_unused_fields_from_bundle_metagraph",
    "enable_signature_method_name_check",
    "enable_profiler",
    "skip_initialize_tpu",
)

AnyMessage = TypeVar("AnyMessage", bound=Message)


class FlagError(Exception):
    """The flags make no sense; the message says which."""


@dataclass(frozen=True, slots=True)
class Flags:
    """What was asked for."""

    host: str
    port: int
    grpc_socket_path: str
    rest_api_port: int
    model_name: str
    model_base_path: str
    model_config_file: str
    model_config_file_poll_wait_seconds: float
    file_system_poll_wait_seconds: float
    max_num_load_retries: int
    load_retry_interval_micros: int
    num_load_threads: int
    allow_version_labels_for_unavailable_models: bool
    force_allow_any_version_labels_for_unavailable_models: bool
    enable_batching: bool
    batching_parameters_file: str
    monitoring_config_file: str
    ssl_config_file: str
    saved_model_tags: str
    enable_model_warmup: bool
    num_request_iterations_for_warmup: int
    enable_grpc_healthcheck_service: bool
    enable_cors_support: bool
    enable_serialization_as_tensor_content: bool
    rest_api_timeout_in_ms: int
    grpc_channel_arguments: str
    tensorflow_session_parallelism: int
    tensorflow_intra_op_parallelism: int
    tensorflow_inter_op_parallelism: int
    allow_foreign_models: bool
    keys_file: str
    insecure: bool
    drain_delay_seconds: float
    drain_grace_seconds: float


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and no more."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"heads: {message}; see --help\n")


def parse_flags(arguments: Sequence[str]) -> Flags:
    """The flags in *arguments*; an unknown one ends the process with status 2 and a sentence."""
    parser = _Parser("python -m head_service.serving", allow_abbrev=False)
    _listening(parser)
    _models(parser)
    _running(parser)
    for name in WITHOUT_EFFECT:
        parser.add_argument(f"--{name}", nargs="?", help="without effect here", default=argparse.SUPPRESS)
    ours = parser.add_argument_group("not the reference's")
    ours.add_argument("--host", default="127.0.0.1", help="address to listen on; beyond loopback it takes --keys_file")
    keys = os.environ.get("TRUNKLINE_HEADS_KEYS_FILE", "")
    ours.add_argument("--keys_file", default=keys, help="file of keys, see `trunkline keys`; also TRUNKLINE_HEADS_KEYS_FILE")
    insecure = os.environ.get("TRUNKLINE_HEADS_INSECURE", "").lower() in {"true", "1"}
    _switch(ours, "insecure", insecure, "listen beyond loopback without keys; also TRUNKLINE_HEADS_INSECURE=true")
    _switch(ours, "allow_foreign_models", True, "load SavedModels without a manifest, unchecked; heads are always checked")
    ours.add_argument(
        "--drain_delay_seconds", type=_not_negative, default=0.5, help="between telling health checks and refusing calls"
    )
    ours.add_argument("--drain_grace_seconds", type=_not_negative, default=5.0, help="for calls that are under way at the end")
    given = vars(parser.parse_args(arguments))
    return Flags(**{name: value for name, value in given.items() if name not in WITHOUT_EFFECT})


def _listening(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=int, default=8500, help="gRPC port; 0: any free one")
    parser.add_argument("--grpc_socket_path", default="", help="gRPC on this UNIX socket too")
    parser.add_argument("--rest_api_port", type=int, default=8501, help="HTTP port; 0: any free one")
    parser.add_argument("--rest_api_timeout_in_ms", type=_positive, default=30_000)
    parser.add_argument("--ssl_config_file", default="", help="SSLConfig as text: TLS for gRPC")
    parser.add_argument(
        "--grpc_channel_arguments",
        default="",
        help="key=value, commas between: grpc.max_receive_message_length, grpc.max_concurrent_streams, grpc.max_metadata_size",
    )
    parser.add_argument("--monitoring_config_file", default="", help=f"MonitoringConfig as text; by default at {METRICS_PATH}")
    _switch(parser, "enable_grpc_healthcheck_service", False)
    _switch(parser, "enable_cors_support", False, "any site's script may read the REST answers")


def _models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model_name", default="default")
    parser.add_argument("--model_base_path", default="")
    parser.add_argument("--model_config_file", default="", help="ModelServerConfig as text; wins over the two above")
    parser.add_argument("--model_config_file_poll_wait_seconds", type=_finite, default=0, help="0: read once")
    parser.add_argument("--file_system_poll_wait_seconds", type=_finite, default=1, help="0: look once; less: never look")
    parser.add_argument("--max_num_load_retries", type=int, default=5)
    parser.add_argument("--load_retry_interval_micros", type=int, default=60_000_000)
    parser.add_argument("--num_load_threads", type=int, default=0, help="models loaded at once; 0: one")
    _switch(parser, "allow_version_labels_for_unavailable_models", False)
    _switch(parser, "force_allow_any_version_labels_for_unavailable_models", False)
    parser.add_argument("--saved_model_tags", default="serve", help="with commas between")
    _switch(parser, "enable_model_warmup", True)
    parser.add_argument("--num_request_iterations_for_warmup", type=_positive, default=1)


def _running(parser: argparse.ArgumentParser) -> None:
    _switch(parser, "enable_batching", False)
    parser.add_argument("--batching_parameters_file", default="", help="BatchingParameters as text")
    _switch(parser, "enable_serialization_as_tensor_content", False)
    parser.add_argument("--tensorflow_session_parallelism", type=int, default=0, help="both of the next two")
    parser.add_argument("--tensorflow_intra_op_parallelism", type=int, default=1)
    parser.add_argument("--tensorflow_inter_op_parallelism", type=int, default=1)


def read_config(flags: Flags) -> pb.ModelServerConfig:
    """The models to serve.

    Raises:
        FlagError: none are named, or the file cannot be read.
    """
    config = pb.ModelServerConfig()
    if flags.model_config_file:
        return read_text_proto(CONFIG_FLAG, flags.model_config_file, config)
    if not flags.model_base_path:
        raise FlagError("name the models with --model_config_file, or one with --model_name and --model_base_path")
    path = str(Path(flags.model_base_path).absolute())
    config.model_config_list.config.add(name=flags.model_name, base_path=path, model_platform="tensorflow")
    return config


def read_monitoring(flags: Flags) -> str:
    """The path of the metrics; "" when there are none to be."""
    if not flags.monitoring_config_file:
        return ""
    config = read_text_proto("--monitoring_config_file", flags.monitoring_config_file, server_pb2.MonitoringConfig())
    if not config.prometheus_config.enable:
        return ""
    path = config.prometheus_config.path or METRICS_PATH
    if not path.startswith("/"):
        raise FlagError("--monitoring_config_file: the path must begin with /")
    return path


def channel_arguments(flags: Flags) -> list[tuple[str, int | str]]:
    """`--grpc_channel_arguments`, a whole number where it is one."""
    arguments: list[tuple[str, int | str]] = []
    for pair in filter(None, flags.grpc_channel_arguments.split(",")):
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise FlagError("--grpc_channel_arguments must be key=value with commas between")
        arguments.append((key, int(value) if value.lstrip("-").isdecimal() else value))
    return arguments


def read_text_proto(flag: str, path: str, into: AnyMessage) -> AnyMessage:
    """*into*, filled from the text file that *flag* names.

    Raises:
        FlagError: it cannot be read, or is something else; the message names *flag*.
    """
    return parse_text_proto(flag, read_bytes(flag, path), into)


def read_bytes(flag: str, path: str) -> bytes:
    """What the file that *flag* names holds.

    Raises:
        FlagError: it cannot be read; the message names *flag*.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise FlagError(f"{flag} cannot be read: {error.strerror}") from None


def parse_text_proto(flag: str, content: bytes, into: AnyMessage) -> AnyMessage:
    """*into*, filled from *content*, which the file that *flag* names holds. In pure Python: a long one takes milliseconds.

    Raises:
        FlagError: it is something else; the message names *flag*.
    """
    try:
        text_format.Parse(content.decode(), into)
    except UnicodeDecodeError:
        raise FlagError(f"{flag} is not text in UTF-8") from None
    except text_format.ParseError as error:
        raise FlagError(f"{flag} is not a {into.DESCRIPTOR.name}: {str(error)[:200]}") from None
    return into


def _switch(parser: "argparse._ActionsContainer", name: str, default: bool, help: str = "") -> None:  # noqa: A002
    parser.add_argument(f"--{name}", type=_boolean, default=default, nargs="?", const=True, help=help or None)


def _boolean(word: str) -> bool:
    if word.lower() not in {"true", "false", "1", "0"}:
        raise argparse.ArgumentTypeError("true or false")
    return word.lower() in {"true", "1"}


def _positive(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError("a whole number of at least 1")
    return int(word)


def _finite(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError("a number")
    return value


def _not_negative(word: str) -> float:
    value = _finite(word)
    if value < 0:
        raise argparse.ArgumentTypeError("a number of at least 0")
    return value
