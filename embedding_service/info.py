"""What the service tells of itself at `/info`."""

import dataclasses
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from embedding_service.backend.tables import Table
from embedding_service.infer import HostedTrunk
from embedding_service.settings import Settings


def info_of(settings: Settings, trunks: Sequence[HostedTrunk], tables: Sequence[Table]) -> dict[str, Any]:
    """Trunks, tables and effective settings, without what names a place or a secret."""
    spec, engine = trunks[0].spec, trunks[0].engine
    # The names text-embeddings-inference has for the same facts; its clients read them.
    in_tei_words = {
        "model_id": spec.name,
        "model_sha": spec.fingerprint,
        "model_dtype": engine.label,
        "model_type": {"embedding": {"pooling": spec.default_view.pooling}},
        "max_input_length": spec.max_tokens,
        "max_batch_tokens": settings.max_batch_tokens,
        "max_batch_requests": settings.max_batch_requests,
        "max_client_batch_size": settings.max_request_inputs,
        "auto_truncate": True,
        "version": version("trunkline"),
    }
    effective = settings.model_dump(mode="json", exclude={"cache_dir", "model", "table"})
    of_tables = [dataclasses.asdict(table.spec) for table in tables]
    of_trunks = [_described(trunk) for trunk in trunks]
    return {"service": "embedding", "trunks": of_trunks, "tables": of_tables, "settings": effective, **in_tei_words}


def _described(trunk: HostedTrunk) -> dict[str, Any]:
    spec, engine = trunk.spec, trunk.engine
    return {
        "name": spec.name,
        "fingerprint": spec.fingerprint,
        "width": spec.width,
        "max_tokens": spec.max_tokens,
        "engine": engine.label,
        "agreement": engine.agreement,
        "concurrency": engine.concurrency,
        "layers": engine.layers,
    }
