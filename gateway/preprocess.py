"""From what a caller sent to token ids: the path of clients.wire.text, and a refusal of texts that have nothing in them."""

import asyncio
from collections.abc import Sequence
from typing import Final

from clients import InvalidRequest
from clients.wire.text import Encoded, TextEncoder

INLINE_CHARACTERS: Final = 20_000
"""Up to here tokenising takes about a millisecond and stays on the loop."""

MAX_CHARACTERS: Final = 1_000_000


async def encode_texts(encoder: TextEncoder, texts: Sequence[str]) -> list[Encoded]:
    """Normalise and tokenise.

    Raises:
        InvalidRequest: a text is empty, or too long to look at; the message says which by its index.
    """
    for index, text in enumerate(texts):
        if len(text) > MAX_CHARACTERS:
            raise InvalidRequest(f"text {index} is longer than {MAX_CHARACTERS} characters")
    if sum(map(len, texts)) <= INLINE_CHARACTERS:
        encoded = encoder.encode(texts)
    else:
        encoded = await asyncio.to_thread(encoder.encode, texts)
    for index, item in enumerate(encoded):
        if len(item.ids) <= 2:
            raise InvalidRequest(f"text {index} is empty, or nothing but white space and control characters")
    return encoded
