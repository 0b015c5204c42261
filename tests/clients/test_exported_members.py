import clients
import trunkline

EXPORTED = [
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


def test_the_facade_is_what_it_was():
    assert clients.__all__ == EXPORTED


def test_every_public_name_of_the_facade_is_listed():
    public = {name for name, value in vars(clients).items() if not name.startswith("_") and hasattr(value, "__module__")}
    assert public <= set(EXPORTED) | {"GRPC_ERRORS", "HTTP_ERRORS"}


def test_the_front_door_exports_the_client():
    assert trunkline.Client is clients.Client
