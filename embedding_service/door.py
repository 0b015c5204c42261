"""Refusing while every queue is full, before a byte of the body is read: most of what a refusal costs comes before it."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from starlette.responses import Response

from clients.wire import http_server
from embedding_service import http, tei
from embedding_service.exchange import Exchanges
from embedding_service.infer import Infer

TELLS: Final = {"/v1/embeddings": http.tell, "/embed": tei.tell, "/embed_all": tei.tell}
"""How a full service says so, by the path of what is POSTed."""


def door_of(infer: Infer, exchanges: Exchanges) -> http_server.Door:
    """Refuses what *infer* would refuse whatever was asked for; open to all where *exchanges* are told of each request.

    It asks for no key: who has none, or a wrong one, learns that the service is full until it is not, and spends nothing of it.
    """

    def door(path: str, _headers: Sequence[tuple[bytes, bytes]], _state: Mapping[str, Any]) -> Response | None:
        tell = TELLS.get(path)
        error = None if tell is None else infer.refused_to_all()
        return None if tell is None or error is None else tell(error)

    return http_server.open_door if exchanges.is_on else door
