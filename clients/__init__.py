"""The leaf library: the contracts of our services and the only code that knows how to call each of them.

`Client` calls the gateway, `EmbeddingClient` the embedding service and `HeadClient` a head server; each has an `Async`
twin. Everything they raise is a `TrunklineError`.
"""

from clients._config import Tls
from clients._deadline import Deadline
from clients._embedding import AsyncEmbeddingClient, EmbeddingClient
from clients._embedding_stream import AsyncEmbeddingStream
from clients._embedding_wire import Durations, Embeddings, TableKey, Trunk, View, ViewArray
from clients._errors import (
    GRPC_ERRORS,
    HTTP_ERRORS,
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    InvalidResponse,
    NotFound,
    Overloaded,
    PermissionDenied,
    Refused,
    ServerFault,
    TrunklineError,
    Unauthenticated,
    Unavailable,
    error_for_http,
)
from clients._gateway import AsyncClient, Client
from clients._gateway_wire import ClassifyOptions, HeadError, HeadResult, Result, StreamOptions, TextError
from clients._heads import AsyncHeadClient, HeadClient
from clients._heads_wire import Prediction, VersionStatus
from clients.wire.text import TextPair

__all__ = [
    "GRPC_ERRORS",
    "HTTP_ERRORS",
    "AsyncClient",
    "AsyncEmbeddingClient",
    "AsyncEmbeddingStream",
    "AsyncHeadClient",
    "Cancelled",
    "ClassifyOptions",
    "Client",
    "Deadline",
    "DeadlineExceeded",
    "Durations",
    "EmbeddingClient",
    "Embeddings",
    "FailedPrecondition",
    "HeadClient",
    "HeadError",
    "HeadResult",
    "InvalidRequest",
    "InvalidResponse",
    "NotFound",
    "Overloaded",
    "PermissionDenied",
    "Prediction",
    "Refused",
    "Result",
    "ServerFault",
    "StreamOptions",
    "TableKey",
    "TextError",
    "TextPair",
    "Tls",
    "Trunk",
    "TrunklineError",
    "Unauthenticated",
    "Unavailable",
    "VersionStatus",
    "View",
    "ViewArray",
    "error_for_http",
]
