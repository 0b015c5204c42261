"""`python -m head_service.serving`: stands where tensorflow_model_server would. Prints one line to stdout when ready."""

import gc
import logging
import os
import socket
import sys

import uvloop

from clients.wire.http_server import allow_many_connections
from clients.wire.listening import ListenError
from head_service.serving.errors import ServingError
from head_service.serving.flags import FlagError, parse_flags
from head_service.serving.listening import listening
from head_service.serving.settings import Settings, read_settings

_log = logging.getLogger("head_service.serving")

SWITCH_SECONDS = 0.0005
"""How long a thread that loads may keep the interpreter from the one that answers; Python's own 5 ms are longer than a call."""


def main() -> int:
    """Exit status: 0 after a drain, 1 when it could not start (one sentence says why), 2 for flags that make no sense."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="heads: %(message)s")
    logging.getLogger("head_service").setLevel(logging.INFO)
    # Its warnings are about the API this server has to use.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    try:
        settings = read_settings(parse_flags(sys.argv[1:]))
        allow_many_connections()
        with listening(settings.flags) as listener:
            _serve(settings, listener)
    except (FlagError, ListenError, ServingError) as error:
        _log.error("%s", error)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _serve(settings: Settings, listener: socket.socket) -> None:
    from head_service.serving.server import serve  # noqa: PLC0415 (TensorFlow: what is wrong so far is told at once)

    # What was imported lives as long as the process: the collector need not look at it again and again.
    gc.freeze()
    sys.setswitchinterval(SWITCH_SECONDS)
    uvloop.run(serve(settings, listener, _announce))


def _announce(rpc: str, rest: str) -> None:
    print(f"serving grpc={rpc} rest={rest}", flush=True)


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    sys.stdout.flush()
    # A thread that is still inside TensorFlow cannot be ended, and the interpreter would wait for it.
    os._exit(status)
