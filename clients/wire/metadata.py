"""The header and metadata keys our services speak, and the limits all of them share. One place, no literals elsewhere."""

from typing import Final

REQUEST_ID: Final = "x-request-id"
"""HTTP header and gRPC metadata: names one request through all hops."""

TRACEPARENT: Final = "traceparent"
"""HTTP header and gRPC metadata of W3C trace context: the caller's trace and span, and whether they are sampled."""

SERVER_TIMING: Final = "server-timing"
"""HTTP header of answers: how long each stage took, in milliseconds (W3C Server Timing)."""

REQUEST_TIMEOUT_MS: Final = "x-request-timeout-ms"
"""HTTP header: the caller's whole patience, in milliseconds. gRPC carries its own deadline."""

STICKY_KEY: Final = "x-sticky-key"
"""HTTP header: callers with the same one get the same side of a canary."""

RETRY_AFTER: Final = "retry-after"
"""HTTP header: seconds, a whole number (RFC 9110, 10.2.3)."""

RETRY_AFTER_MS: Final = "retry-after-ms"
"""HTTP header and gRPC trailing metadata: milliseconds."""

AUTHORIZATION: Final = "authorization"
"""HTTP header and gRPC metadata: `Bearer tlk_…`, the caller's key."""

API_KEY: Final = "x-api-key"
"""HTTP header: the key alone, for callers that cannot set Authorization."""

EMBEDDING_SERVICE: Final = "trunkline.embedding.v1.EmbeddingService"
PREDICTION_SERVICE: Final = "tensorflow.serving.PredictionService"
MODEL_SERVICE: Final = "tensorflow.serving.ModelService"

MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
"""Bound of one gRPC message in either direction; gRPC's own default of 4 MB is less than one bulk answer."""
