"""What of texts goes through the trunk for a head: the same pieces that the gateway makes of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from clients import Trunk
from clients.wire.catalogue import LongText
from clients.wire.chain import StepFailedError, UnknownStepError, chain_of, with_versions
from clients.wire.text import TextEncoder, chain_before_normalizer, normalize_text
from head_service.errors import DataError

Piece = str | tuple[int, ...]
"""A text, which the embedding service tokenises; or token ids of a window of one."""


class DescribesTrunk(Protocol):
    """What windows need of the embedding service; `clients.EmbeddingClient` is one."""

    def trunk(self, name: str = "", *, with_tokenizer: bool = False) -> Trunk:
        """Describe the trunk."""
        ...


@dataclass(frozen=True, slots=True)
class Pieces:
    """*inputs* are embedded; *rows* says of each text which of them are its: one, or several that overlap."""

    inputs: list[Piece]
    rows: list[range]


def pieces_of(texts: Sequence[str], preprocess: tuple[str, ...], long_text: LongText, embedder: DescribesTrunk) -> Pieces:
    """*texts* after the steps of *preprocess*, long ones in windows unless *long_text* says that they are cut.

    Raises:
        DataError: a step is unknown here or failed, or nothing is left of a text.
        TrunklineError: the embedding service cannot be reached.
    """
    ready = prepared(texts, preprocess)
    if empty := [index for index, text in enumerate(ready) if preprocess and not normalize_text(text)]:
        raise DataError(f"{', '.join(preprocess)} leaves nothing of {len(empty)} of the texts")
    if long_text == "cut":
        return Pieces(list(ready), [range(row, row + 1) for row in range(len(ready))])
    encoder = _encoder(embedder)
    inputs: list[Piece] = []
    rows = []
    for text, whole in zip(ready, encoder.encode(ready), strict=True):
        pieces: list[Piece] = [tuple(one.ids) for one in encoder.encode_windows(text)] if whole.truncated else [text]
        rows.append(range(len(inputs), len(inputs) + len(pieces)))
        inputs += pieces
    return Pieces(inputs, rows)


def named_steps(names: Iterable[str]) -> tuple[str, ...]:
    """*names* of steps as a manifest has them, see `clients.wire.chain.with_versions`.

    Raises:
        DataError: one of them is not here.
    """
    try:
        return with_versions(names)
    except UnknownStepError as error:
        raise DataError(str(error)) from None


def prepared(texts: Sequence[str], preprocess: tuple[str, ...]) -> Sequence[str]:
    """*texts* after the steps of *preprocess*.

    Raises:
        DataError: a step is unknown here, or failed.
    """
    try:
        return list(map(chain_of(preprocess), texts)) if preprocess else texts
    except (UnknownStepError, StepFailedError) as error:
        raise DataError(str(error)) from None


def _encoder(embedder: DescribesTrunk) -> TextEncoder:
    trunk = embedder.trunk(with_tokenizer=True)
    try:
        chain = chain_before_normalizer(trunk.normalizer)
    except UnknownStepError as error:
        raise DataError(f"texts cannot be read in windows for the trunk {trunk.name!r}: {error}") from None
    return TextEncoder(trunk.tokenizer_json, max_tokens=trunk.max_tokens, prompt=trunk.prompt, chain=chain)
