"""nanotoken, a reader of WordPiece tokenizers far quicker than the tokenizers library, where it reads the same.

It is young, and what it reads decides every answer. So it is an extra, asked for by a setting, and takes the library's place only
after both have read the tokenizer's whole vocabulary, and each character there is between letters, alike.
"""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Final

from clients.wire.library_tokens import Read
from clients.wire.normal_form import normal_form

MAX_KEPT_WORDS: Final = 65_536
"""Whose tokens a thread remembers. Its own habit is 16 times as many, which random words fill at 100 bytes each."""

WORDS_A_PROBE: Final = 32
PROBES_AT_ONCE: Final = 64

_CHARACTERS: Final = (range(0x10000), range(0x1D400, 0x1D800), range(0x1F000, 0x1FB00), range(0x20000, 0x20100))
"""The plane in which people write, mathematical letters, pictures, and the first of those that only Chinese has."""

_NEVER_MET: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})
"""Categories that the normaliser leaves nothing of; it lets two joiners through, which are among the words below."""

_WORDS: Final = ("", "a", "\u200c", "a\u200db", "e\u0301", "\ufdfa", "\u0130", "\u1e9e", "...", "don't", "[CLS]", "[cls]x", "##a")


class NotQuick(Exception):
    """The tokenizers library stays; the message says why, in words for operators."""


def quick_reader(tokenizer_json: str, reference: Read) -> Read:
    """What reads as *reference* does, that being how the tokenizers library reads *tokenizer_json*. Holds a thread for a second.

    Raises:
        NotQuick: there is no such thing here.
    """
    try:
        import nanotoken  # noqa: PLC0415 (an extra)
    except ImportError:
        raise NotQuick("the package nanotoken is missing; install trunkline[quick-tokens]") from None
    nanotoken.set_cache_entries(MAX_KEPT_WORDS)
    try:
        tokenizer = nanotoken.Tokenizer.from_json(tokenizer_json)
    except ValueError as error:
        raise NotQuick(f"nanotoken does not read this tokenizer: {error}") from None

    def read(texts: Sequence[str]) -> list[list[int]]:
        # Threads of its own would be on the cores of the forward pass.
        return tokenizer.encode_batch_list(texts, add_special_tokens=False, parallel=False)

    check(read, reference, tokenizer.get_vocab())
    return read


def check(read: Read, reference: Read, vocabulary: Iterable[str]) -> None:
    """Have both read all probes.

    Raises:
        NotQuick: they do not agree in all.
    """
    probes = probes_of(vocabulary)
    while some := list(islice(probes, PROBES_AT_ONCE)):
        if read(some) != reference(some):
            raise NotQuick("nanotoken reads this tokenizer otherwise than the tokenizers library does")


def probes_of(vocabulary: Iterable[str]) -> Iterator[str]:
    """Texts of every entry of *vocabulary*, as a word and as the end of one; of characters; of words of many lengths."""
    entries = (part for token in vocabulary for part in (token, "a" + token.removeprefix("##")))
    characters = (chr(number) for numbers in _CHARACTERS for number in numbers)
    between = (f"a{c}b {c}" for c in characters if unicodedata.category(c) not in _NEVER_MET)
    lengths = ("x" * count for count in (99, 100, 101, 1_000))
    words = chain(entries, between, lengths, _WORDS)
    while some := list(islice(words, WORDS_A_PROBE)):
        yield normal_form("NFC", " ".join(some))
