"""`python -m head_service.serving`: stands where tensorflow_model_server would. Prints one line to stdout when ready."""

import asyncio
import gc
import logging
import os
import sys

from head_service.serving.errors import ServingError
from head_service.serving.flags import FlagError, parse_flags
from head_service.serving.settings import read_settings

_log = logging.getLogger("head_service.serving")


def main() -> int:
    """Exit status: 0 after a drain, 1 when it could not start (one sentence says why), 2 for flags that make no sense."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="heads: %(message)s")
    logging.getLogger("head_service").setLevel(logging.INFO)
    # Its warnings are about the API this server has to use.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    try:
        settings = read_settings(parse_flags(sys.argv[1:]))
    except FlagError as error:
        _log.error("%s", error)
        return 1
    from head_service.serving.server import ListenError, serve  # noqa: PLC0415 (TensorFlow: a bad flag is told at once)

    try:
        # What was imported lives as long as the process: the collector need not look at it again and again.
        gc.freeze()
        asyncio.run(serve(settings, _announce))
    except (ListenError, ServingError) as error:
        _log.error("%s", error)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _announce(rpc: str, rest: str) -> None:
    print(f"serving grpc={rpc} rest={rest}", flush=True)


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    sys.stdout.flush()
    # A thread that is still inside TensorFlow cannot be ended, and the interpreter would wait for it.
    os._exit(status)
