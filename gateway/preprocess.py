"""From what a caller sent to token ids: the path of clients.wire.text, and a refusal of texts that have nothing in them.

Heads may want texts to be read in several ways; what comes out the same is one input of the trunk.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from clients import InvalidRequest
from clients.wire.catalogue import Manifest
from clients.wire.text import Encoded, TextEncoder
from gateway.classification import TextFacts, Truncation

INLINE_CHARACTERS: Final = 20_000
"""Up to here tokenising takes about a millisecond and stays on the loop."""

MAX_CHARACTERS: Final = 1_000_000


class Reading(NamedTuple):
    """How a head wants texts to be read: a long one in *windows*, whose outputs it aggregates, or cut."""

    windows: bool = False


@dataclass(frozen=True, slots=True)
class Prepared:
    """*inputs* are distinct; *places*[reading][text] are those of its pieces among them: one, or one a window."""

    inputs: list[Encoded]
    places: dict[Reading, list[tuple[int, ...]]]
    texts: list[TextFacts]


def reading_of(manifest: Manifest) -> Reading:
    """How *manifest*'s head wants texts to be read."""
    del manifest
    return Reading()


async def prepare(
    encoder: TextEncoder, texts: Sequence[str], readings: Sequence[Reading], truncation: Truncation = "right"
) -> Prepared:
    """Normalise and tokenise *texts* in the ways of *readings*; equal inputs become one.

    Raises:
        InvalidRequest: a text is empty, or too long to look at; the message says which by its index.
    """
    for index, text in enumerate(texts):
        if len(text) > MAX_CHARACTERS:
            raise InvalidRequest(f"text {index} is longer than {MAX_CHARACTERS} characters")
    if sum(map(len, texts)) <= INLINE_CHARACTERS:
        encoded = _encode(encoder, texts, truncation)
    else:
        encoded = await asyncio.to_thread(_encode, encoder, texts, truncation)
    for index, pieces in enumerate(encoded):
        if len(pieces[0].ids) <= 2:
            raise InvalidRequest(f"text {index} is empty, or nothing but white space and control characters")
        if truncation == "error" and pieces[0].truncated:
            raise InvalidRequest(f"text {index} is longer than the {encoder.max_tokens} tokens that the trunk reads")
    inputs, places = _distinct(encoded)
    facts = [TextFacts(sum(len(piece.ids) for piece in pieces), pieces[0].truncated) for pieces in encoded]
    return Prepared(inputs, dict.fromkeys(readings, places), facts)


def _encode(encoder: TextEncoder, texts: Sequence[str], truncation: Truncation) -> list[list[Encoded]]:
    """The pieces of each text."""
    if truncation == "window":
        return [encoder.encode_windows(text) for text in texts]
    return [[one] for one in encoder.encode(texts, side="left" if truncation == "left" else "right")]


def _distinct(encoded: list[list[Encoded]]) -> tuple[list[Encoded], list[tuple[int, ...]]]:
    if len(encoded) == 1 and len(encoded[0]) == 1:
        return encoded[0], [(0,)]
    inputs: list[Encoded] = []
    known: dict[tuple[int, ...], int] = {}
    places = []
    for pieces in encoded:
        at = []
        for piece in pieces:
            ids = tuple(piece.ids)
            if ids not in known:
                known[ids] = len(inputs)
                inputs.append(piece)
            at.append(known[ids])
        places.append(tuple(at))
    return inputs, places
