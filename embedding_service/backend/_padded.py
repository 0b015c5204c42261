"""What the padded engines share: rows to a rectangle, hidden states to views, numbers that are not finite to an error."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from embedding_service.backend import BackendError, Batch, BatchResult, EngineSpec, FloatArray, TrunkSpec
from embedding_service.backend.pooling import read_batch

Ids = NDArray[np.int64]
Run = Callable[[Ids, Ids], dict[int, FloatArray]]
"""(input_ids, attention_mask), each [rows, tokens], to float32 [rows, tokens, width] by negative layer; thread-safe."""


def pad(token_ids: tuple[tuple[int, ...], ...]) -> tuple[Ids, Ids]:
    """Ids and mask, int64 [rows, longest row]; padding is id 0, BERT's [PAD]."""
    longest = max(map(len, token_ids))
    ids = np.zeros((len(token_ids), longest), np.int64)
    mask = np.zeros_like(ids)
    for index, row in enumerate(token_ids):
        ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
    return ids, mask


class PaddedBackend:
    """A `Backend` around an engine's *run*."""

    def __init__(self, trunk: TrunkSpec, engine: EngineSpec, run: Run) -> None:
        self.trunk = trunk
        self.engine = engine
        self._run: Run | None = run

    def embed(self, batch: Batch) -> BatchResult:
        """See `embedding_service.backend.Backend`."""
        assert self._run is not None, "the backend was closed"
        ids, mask = pad(batch.token_ids)
        try:
            hidden = self._run(ids, mask)
        # Engines raise their own kinds, RuntimeError mostly; to the batcher all of them are a lost batch.
        except Exception as error:
            raise BackendError(f"{self.engine.label} failed: {error}") from error
        result = read_batch(hidden, [len(row) for row in batch.token_ids], batch.views)
        if not all(np.isfinite(array).all() for row in result for array in row):
            raise BackendError(f"{self.engine.label} gave numbers that are not finite")
        return result

    def close(self) -> None:
        """See `embedding_service.backend.Backend`."""
        self._run = None
