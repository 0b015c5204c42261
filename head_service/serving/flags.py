"""tensorflow_model_server's flags, by its names, as far as they mean something here; `--host` is ours."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format

from clients.wire.tfs import serving_pb2 as pb


class FlagError(Exception):
    """The flags make no sense; the message says which."""


@dataclass(frozen=True, slots=True)
class Flags:
    """What was asked for."""

    host: str
    port: int
    rest_api_port: int
    model_name: str
    model_base_path: str
    model_config_file: str
    model_config_file_poll_wait_seconds: int
    file_system_poll_wait_seconds: float
    enable_grpc_healthcheck_service: bool
    enable_serialization_as_tensor_content: bool
    rest_api_timeout_in_ms: int
    tensorflow_intra_op_parallelism: int
    tensorflow_inter_op_parallelism: int


def parse_flags(arguments: Sequence[str]) -> Flags:
    """The flags in *arguments*; an unknown one ends the process with status 2 and a sentence, as argparse does."""
    parser = argparse.ArgumentParser("python -m head_service.serving", allow_abbrev=False)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8500, help="gRPC port; 0: any free one")
    parser.add_argument("--rest_api_port", type=int, default=8501, help="HTTP port; 0: any free one")
    parser.add_argument("--model_name", default="default")
    parser.add_argument("--model_base_path", default="")
    parser.add_argument("--model_config_file", default="", help="ModelServerConfig as text; wins over the two above")
    parser.add_argument("--model_config_file_poll_wait_seconds", type=int, default=0, help="0: read once")
    parser.add_argument("--file_system_poll_wait_seconds", type=float, default=1)
    parser.add_argument("--enable_grpc_healthcheck_service", type=_boolean, default=False, nargs="?", const=True)
    parser.add_argument("--enable_serialization_as_tensor_content", type=_boolean, default=False, nargs="?", const=True)
    parser.add_argument("--rest_api_timeout_in_ms", type=int, default=30_000)
    parser.add_argument("--tensorflow_intra_op_parallelism", type=int, default=1)
    parser.add_argument("--tensorflow_inter_op_parallelism", type=int, default=1)
    return Flags(**vars(parser.parse_args(arguments)))


def read_config(flags: Flags) -> pb.ModelServerConfig:
    """The models to serve.

    Raises:
        FlagError: none are named, or the file cannot be read.
    """
    config = pb.ModelServerConfig()
    if flags.model_config_file:
        try:
            text_format.Parse(Path(flags.model_config_file).read_text(encoding="utf-8"), config)
        except OSError as error:
            raise FlagError(f"--model_config_file cannot be read: {error.strerror}") from None
        except text_format.ParseError as error:
            raise FlagError(f"--model_config_file is not a ModelServerConfig: {error}") from None
    elif flags.model_base_path:
        path = str(Path(flags.model_base_path).absolute())
        config.model_config_list.config.add(name=flags.model_name, base_path=path, model_platform="tensorflow")
    else:
        raise FlagError("name the models with --model_config_file, or one with --model_name and --model_base_path")
    return config


def _boolean(word: str) -> bool:
    if word.lower() not in {"true", "false", "1", "0"}:
        raise argparse.ArgumentTypeError("true or false")
    return word.lower() in {"true", "1"}
