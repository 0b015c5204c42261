"""`--keys_file`: who may come in. The reference has no keys; its clients send ours as metadata, or as a header over REST."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from clients.wire.guard import NO_METHOD, NO_ROUTE, Guard, Refusal, is_loopback, why_not_listen
from clients.wire.guarded_http import OPEN, AsgiScope, Needed, Needs
from clients.wire.keys import KeysError, KeysFile, Scope
from clients.wire.metadata import MODEL_SERVICE, PREDICTION_SERVICE
from head_service.serving.flags import FlagError, Flags
from head_service.serving.rest_routes import is_ours

_log = logging.getLogger(__name__)

RPCS: Final[Mapping[str, Scope]] = {
    **{
        f"/{PREDICTION_SERVICE}/{name}": "classify"
        for name in ("Predict", "Classify", "Regress", "MultiInference", "GetModelMetadata")
    },
    f"/{MODEL_SERVICE}/GetModelStatus": "classify",
    # It says what is served, and from which folder.
    f"/{MODEL_SERVICE}/HandleReloadConfigRequest": "admin",
}


def read_guard(flags: Flags) -> Guard | None:
    """The guard of both ports; None when no file is named.

    Raises:
        FlagError: the file cannot be used, or all would be let in from beyond this machine.
    """
    if reason := why_not_listen(flags.host, flags.keys_file, "--keys_file", insecure=flags.insecure):
        raise FlagError(reason)
    if not flags.keys_file:
        if not is_loopback(flags.host):
            _log.warning("whoever reaches %s may ask: there are no keys", flags.host)
        return None
    try:
        return Guard(KeysFile(Path(flags.keys_file)))
    except KeysError as error:
        raise FlagError(str(error)) from None


def rest_needs(metrics_path: str, *, cors: bool) -> Needs:
    """What a REST request takes. *cors*: scripts of any site may ask, so their browsers' question comes in without a key."""

    def needs(method: str, path: str) -> Needed | Refusal:
        if method == "OPTIONS":
            return OPEN if cors else NO_METHOD
        if metrics_path and path == metrics_path:
            return "admin"
        return "classify" if is_ours(path) else NO_ROUTE

    return needs


def refusal_body(refusal: Refusal, _: AsgiScope) -> tuple[bytes, dict[str, str]]:
    """*refusal* in TensorFlow Serving's shape."""
    return msgspec.json.encode({"error": refusal.message}), {}
