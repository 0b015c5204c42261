"""A backend without a model: it works, predictably. For tests of everything around a real one.

Useful for: vectors that carry a checksum of their text (a swapped answer is seen), forward passes that take a set time,
that wait until they are let go, that fail, or that answer the wrong number of rows; and for counting what was executed.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Mapping

import numpy as np

from embedding_service.backend import Batch, BatchResult, EngineSpec, FloatArray, PassCost, TrunkSpec, View


def checksum_vector(token_ids: tuple[int, ...], width: int = 8) -> FloatArray:
    """The vector the fake gives for *token_ids*: float32 [width], derived from their SHA-256."""
    digest = hashlib.sha256(repr(token_ids).encode()).digest()
    return np.frombuffer(digest[:width], dtype=np.uint8).astype(np.float32) / np.float32(255)


class FakeBackend:
    """See the module's docstring. *fault*, when set, is called with each batch first and may raise or wait."""

    def __init__(
        self,
        tokenizer_json: bytes = b"",
        *,
        name: str = "fake",
        concurrency: int = 1,
        seconds_per_token: float = 0.0,
        max_tokens: int = 64,
        prompt: str = "",
        prompts: Mapping[str, str] | None = None,
        fault: Callable[[Batch], None] | None = None,
        pass_cost: PassCost | None = None,
    ) -> None:
        self.trunk = TrunkSpec(
            name=name,
            fingerprint="sha256:" + hashlib.sha256(name.encode()).hexdigest(),
            width=8,
            num_layers=2,
            vocab_size=30_522,
            max_tokens=max_tokens,
            default_view=View(normalize=False),
            prompt=prompt,
            tokenizer_json=tokenizer_json,
            prompts=prompts or {},
        )
        self.engine = EngineSpec("fake", 1.0, pass_cost or PassCost(), concurrency=concurrency, layers=(-1,))
        self.fault = fault
        self.batches: list[Batch] = []
        self.is_closed = False
        self._seconds_per_token = seconds_per_token
        self._lock = threading.Lock()

    def embed(self, batch: Batch) -> BatchResult:
        """See `embedding_service.backend.Backend`."""
        with self._lock:
            self.batches.append(batch)
        if self.fault is not None:
            self.fault(batch)
        time.sleep(self._seconds_per_token * batch.num_tokens)
        return [[_read(ids, view) for view in views] for ids, views in zip(batch.token_ids, batch.views, strict=True)]

    def close(self) -> None:
        """See `embedding_service.backend.Backend`."""
        self.is_closed = True


def _read(token_ids: tuple[int, ...], view: View) -> FloatArray:
    vector = checksum_vector(token_ids)
    return np.tile(vector, (len(token_ids), 1)) if view.pooling == "tokens" else vector
