"""A trunk's identity: whatever changes its vectors changes this, and nothing else does."""

import hashlib
import json

from clients.wire.text import NORMALIZER
from embedding_service.backend import View


def fingerprint(*, weights_sha256: str, tokenizer_json: bytes, view: View, prompt: str, max_tokens: int) -> str:
    """Return "sha256:<64 hex digits>" over weights, tokenizer, normaliser, the default view, prompt and maximum length."""
    facts = {
        "weights": weights_sha256,
        "tokenizer": hashlib.sha256(tokenizer_json).hexdigest(),
        "normalizer": NORMALIZER,
        "pooling": view.pooling,
        "layer": view.layer,
        "normalize": view.normalize,
        "prompt": prompt,
        "max_tokens": max_tokens,
    }
    return "sha256:" + hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
