"""What a version on the head server says of texts: the gate's scorer, and whether a version is loaded at all."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clients import Embeddings, HeadClient, NotFound, TrunklineError, View
from clients.wire.catalogue import Manifest
from head_service.errors import RepositoryError, TrunkMismatchError

FloatArray = NDArray[np.float32]


class Embeds(Protocol):
    """What scoring needs of the embedding service; `clients.EmbeddingClient` is one."""

    def embed_all(self, texts: Sequence[str], *, views: Sequence[View] = ()) -> Embeddings:
        """Embed any number of texts."""
        ...


@dataclass(frozen=True, slots=True)
class ServerScorer:
    """Embeds texts as a head wants them and asks the head server, as the gateway would; see `head_service.gate.Scorer`."""

    embedder: Embeds
    heads: HeadClient

    def __call__(self, manifest: Manifest, texts: Sequence[str]) -> list[list[float]]:
        """The scores, a row a text.

        Raises:
            TrunkMismatchError: the embedding service has another trunk.
            RepositoryError: the head server's answer is not scores.
            TrunklineError: one of the two cannot be reached.
        """
        inputs = embedded(manifest, self.embedder, texts)
        predicted = self.heads.predict(manifest.name, inputs, version=manifest.version, output_filter=(manifest.output,))
        return rows_of_scores(manifest, predicted.outputs[manifest.output])


def embedded(manifest: Manifest, embedder: Embeds, texts: Sequence[str]) -> dict[str, NDArray[Any]]:
    """What a head is sent for *texts*, see `inputs_of`.

    Raises:
        TrunkMismatchError: the embedding service has another trunk.
    """
    answer = embedder.embed_all(texts, views=views_of(manifest))
    if answer.trunk_fingerprint != manifest.trunk.fingerprint:
        raise TrunkMismatchError(
            f"head {manifest.name!r} version {manifest.version} is of another trunk than the embedding service's"
        )
    return inputs_of(manifest, answer)


def rows_of_scores(manifest: Manifest, scores: NDArray[Any]) -> list[list[float]]:
    """A row a text.

    Raises:
        RepositoryError: these are no such rows.
    """
    if scores.ndim != 2:
        raise RepositoryError(f"head {manifest.name!r} version {manifest.version} does not answer with rows of scores")
    return [[float(score) for score in row] for row in scores]


def views_of(manifest: Manifest) -> tuple[View, ...]:
    """The views of the trunk that a head reads: one, or one a mixed layer."""
    view = manifest.view
    layers = manifest.mix_layers or (view.layer,)
    return tuple(View(pooling=view.pooling, layer=layer, normalize=view.normalize, dims=view.dims) for layer in layers)


def inputs_of(manifest: Manifest, answer: Embeddings) -> dict[str, NDArray[Any]]:
    """What the head server is sent, all float32: vectors [texts, width]; or [texts, tokens, width] and a mask [texts, tokens]."""
    vectors = np.concatenate([np.asarray(view.array, np.float32) for view in answer.views], axis=1)
    if manifest.view.pooling != "tokens":
        return {manifest.input: vectors}
    lengths = np.asarray(answer.views[0].row_tokens)
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.float32)
    padded = np.zeros((*mask.shape, vectors.shape[1]), np.float32)
    padded[mask.astype(bool)] = vectors
    return {manifest.input: padded, manifest.mask_input: mask}


def is_available(heads: HeadClient, name: str, version: int) -> bool | None:
    """Whether the head server answers by a version; None when it cannot be asked."""
    try:
        states = heads.status(name, version=version, timeout=1.0)
    except NotFound:
        return False
    except TrunklineError:
        return None
    return any(one.version == version and one.state == "AVAILABLE" for one in states)
