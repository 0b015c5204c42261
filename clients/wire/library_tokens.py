"""How the tokenizers library reads texts: normalised before, where that is the same, which takes two thirds of the time.

Within a tokenizer the normaliser keeps account of where each character came from. Of printable ASCII BERT's does no more than
lower-case it: the other steps (control characters, Chinese ones, accents) find nothing there. `python -m perf.micro.tokens`.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

Read = Callable[[Sequence[str]], list[list[int]]]
"""Token ids of each text, without special ones around them."""

_NEVER: Final = "(?!)"
"""What no text holds."""


def library_reader(tokenizer: "Tokenizer") -> Read:
    """What reads as *tokenizer* does, which neither cuts nor pads."""
    reserved = tokenizer.get_added_tokens_decoder().values()
    if not _may_normalize_before(tokenizer, reserved):
        return partial(ids_of, tokenizer)
    normalized, normalize = _without_normalizer(tokenizer), tokenizer.normalizer.normalize_str
    is_lower_casing = tokenizer.normalizer.lowercase
    holds_reserved = re.compile("|".join(re.escape(token.content) for token in reserved) or _NEVER).search

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


def _may_normalize_before(tokenizer: "Tokenizer", reserved: "Iterable[AddedToken]") -> bool:
    """Whether the normaliser is BERT's, and no reserved word is looked for in what it makes of a text."""
    from tokenizers.normalizers import BertNormalizer  # noqa: PLC0415 (the clients' base install does without it)

    return isinstance(tokenizer.normalizer, BertNormalizer) and not any(token.normalized for token in reserved)


def _without_normalizer(tokenizer: "Tokenizer") -> "Tokenizer":
    """Another reader of the same vocabulary, which is not copied: it is most of what a tokenizer weighs."""
    from tokenizers import Tokenizer  # noqa: PLC0415 (the clients' base install does without it)

    other = Tokenizer(tokenizer.model)
    other.pre_tokenizer = tokenizer.pre_tokenizer
    return other
