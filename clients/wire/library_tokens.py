"""How the tokenizers library reads texts: normalised before, where that is the same, which takes two thirds of the time.

Within a tokenizer the normaliser keeps account of where each character came from. Of printable ASCII BERT's does no more than
lower-case it: the other steps (control characters, Chinese ones, accents) find nothing there. `python -m perf.micro.tokens`.
"""

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Read = Callable[[Sequence[str]], list[list[int]]]
"""Token ids of each text, without special ones around them."""

_NEVER: Final = "(?!)"
"""What no text holds."""


def library_reader(tokenizer: "Tokenizer") -> Read:
    """What reads as *tokenizer* does, which neither cuts nor pads."""
    described = json.loads(tokenizer.to_str())
    if not _may_normalize_before(described):
        return partial(ids_of, tokenizer)
    normalized, normalize = _without_normalizer(described), tokenizer.normalizer.normalize_str
    is_lower_casing = described["normalizer"]["lowercase"]
    holds_reserved = re.compile("|".join(re.escape(token["content"]) for token in described["added_tokens"]) or _NEVER).search

    def form_of(text: str) -> str:
        if text.isascii() and text.isprintable():
            return text.lower() if is_lower_casing else text
        return str(normalize(text))

    def read(texts: Sequence[str]) -> list[list[int]]:
        # Those words are looked for in a text as it was.
        if any(map(holds_reserved, texts)):
            return ids_of(tokenizer, texts)
        return ids_of(normalized, [form_of(text) for text in texts])

    return read


def ids_of(tokenizer: "Tokenizer", texts: Sequence[str]) -> list[list[int]]:
    """What *tokenizer* reads of each of *texts* as it comes."""
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def _may_normalize_before(described: dict[str, Any]) -> bool:
    """Whether the normaliser is BERT's, and no reserved word is looked for in what it makes of a text."""
    is_berts = (described["normalizer"] or {}).get("type") == "BertNormalizer"
    return is_berts and not any(token["normalized"] for token in described["added_tokens"])


def _without_normalizer(described: dict[str, Any]) -> "Tokenizer":
    from tokenizers import Tokenizer  # noqa: PLC0415 (the clients' base install does without it)

    return Tokenizer.from_str(json.dumps(described | {"normalizer": None, "added_tokens": []}))
