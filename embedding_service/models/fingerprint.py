"""A trunk's identity: whatever changes its vectors changes this, and nothing else does."""

import hashlib
import json

from clients.wire.chain import Chain
from clients.wire.text import NORMALIZER
from embedding_service.backend import View
from embedding_service.backend.words import WORDS


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


def fingerprint_after(chain: Chain, trunk: str) -> str:
    """The fingerprint of the trunk of fingerprint *trunk* where *chain* goes before its normaliser: its own without a chain."""
    if not chain:
        return trunk
    facts = {"trunk": trunk, "preprocess": chain.names}
    return "sha256:" + hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def table_fingerprint(*, vectors_sha256: str, keys_sha256: str, offsets_sha256: str, is_lowercase: bool) -> str:
    """Return "sha256:<64 hex digits>" over a table's numbers, its keys in their order, and how texts are read by it.

    The hashes are those of the arrays' bytes as `backend.tables` lays them out, so the form of the source leaves no trace.
    """
    facts = {
        "vectors": vectors_sha256,
        "keys": keys_sha256,
        "offsets": offsets_sha256,
        "lowercase": is_lowercase,
        "normalizer": NORMALIZER,
        "words": WORDS,
    }
    return "sha256:" + hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
