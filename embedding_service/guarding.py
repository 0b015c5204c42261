"""Who may come in: what each route and RPC takes once keys are set. What is not listed is refused; a test compares."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from clients.wire.guard import Guard, Refusal
from clients.wire.guarded_http import OPEN, AsgiScope, Needed
from clients.wire.keys import KeysFile, Scope
from clients.wire.metadata import EMBEDDING_SERVICE
from embedding_service.settings import Settings

_TEI: Final = ("", "/embed", "/embed_all", "/similarity", "/tokenize", "/decode")

ROUTES: Final[Mapping[str, Mapping[str, Needed]]] = {
    "/healthz": {"GET": OPEN},
    "/readyz": {"GET": OPEN},
    # As text-embeddings-inference has them: they tell what /readyz tells.
    "/health": {"GET": OPEN},
    "/ping": {"GET": OPEN},
    "/": {"GET": OPEN, "POST": "embed"},
    "/v1/embeddings": {"POST": "embed"},
    "/v1/models": {"GET": "embed"},
    "/encode": {"POST": "embed"},
    "/status/server": {"GET": "embed"},
    "/status/client": {"GET": "embed"},
    # Clients of text-embeddings-inference read it before they embed.
    "/info": {"GET": "embed"},
    "/metrics": {"GET": "admin"},
    **{path: {"POST": "embed"} for path in _TEI if path},
    **{f"/trunks/{{trunk}}{path}": {"POST": "embed"} for path in _TEI},
}

RPCS: Final[Mapping[str, Scope]] = {f"/{EMBEDDING_SERVICE}/{name}": "embed" for name in ("Embed", "EmbedStream", "GetTrunk")}


def guard_of(settings: Settings) -> Guard | None:
    """The guard of both ports; None where no keys are set.

    Raises:
        KeysError: the file of keys cannot be used.
    """
    if settings.keys_file is None:
        return None
    return Guard(KeysFile(settings.keys_file), max_failures_per_minute=settings.auth_failures_per_minute)


def num_texts(message: Any) -> int:
    """How many inputs an RPC's *message* counts for."""
    asked = getattr(message, "request", message)
    return len(asked.inputs) if hasattr(asked, "inputs") else 0


def refusal_body(refusal: Refusal, _: AsgiScope) -> tuple[bytes, dict[str, str]]:
    """*refusal* in OpenAI's shape, whose field `message` the other protocols' clients show too."""
    kind = "authentication_error" if refusal.code == "unauthenticated" else "invalid_request_error"
    told = {"message": refusal.message, "type": kind, "param": None, "code": refusal.code}
    return msgspec.json.encode({"error": told}), {}
