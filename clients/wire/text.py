"""The one path from text to token ids, shared by whoever tokenises: the embedding service, or a caller for it.

Training and serving can only agree when both take this path, so the normaliser has a version, and the version is part of
the trunk's fingerprint.
"""

import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence


NORMALIZER: Final = "trunkline-text/1"
"""NFC; control, format and surrogate characters dropped, but for white space and joiners; runs of white space to one space."""

TruncationSide = Literal["right", "left"]

_WHITE_SPACE: Final = re.compile(r"\s+")
_JOINERS: Final = frozenset("\u200c\u200d")
_DROPPED: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})


def normalize_text(text: str) -> str:
    """*text* by the rules of `NORMALIZER`; idempotent. A text that is nothing but dropped characters becomes ""."""
    if text.isascii() and text.isprintable():
        return _WHITE_SPACE.sub(" ", text).strip()
    composed = unicodedata.normalize("NFC", text)
    spaced = _WHITE_SPACE.sub(" ", composed)
    kept = "".join(c for c in spaced if c in _JOINERS or unicodedata.category(c) not in _DROPPED)
    # Dropping a character can bring two spaces, or a letter and its accent, together.
    return _WHITE_SPACE.sub(" ", unicodedata.normalize("NFC", kept)).strip()


@dataclass(frozen=True, slots=True)
class TextPair:
    """Two texts read together by one forward pass: [CLS] first [SEP] second [SEP]."""

    first: str
    second: str


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids with the special tokens in place, and whether the text had more than fit."""

    ids: list[int]
    truncated: bool


@dataclass(frozen=True, slots=True)
class Token:
    """One token; *start* and *stop* are characters of the text as given: None for special ones and where that is not known."""

    id: int
    text: str
    is_special: bool
    start: int | None = None
    stop: int | None = None


class TextEncoder:
    """Turns texts into token ids for one trunk. Thread-safe once made; the GIL is released while it works.

    *tokenizer_json* is a Hugging Face tokenizer.json; whatever truncation and padding it declares is switched off.
    *max_tokens* counts the special tokens. *prompt* is put before every text.
    """

    def __init__(self, tokenizer_json: bytes, *, max_tokens: int, prompt: str = "") -> None:
        from tokenizers import Tokenizer  # noqa: PLC0415 (the clients' base install does without it)

        self.max_tokens = max_tokens
        self._prompt = prompt
        self._tokenizer: Tokenizer = Tokenizer.from_str(tokenizer_json.decode())
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        special = self._tokenizer.encode("").ids
        if len(special) != 2:
            raise ValueError(f"this tokenizer puts {len(special)} special tokens around a text; a BERT trunk has two")
        self._first, self._last = special

    def encode(self, texts: "Sequence[str]", *, side: TruncationSide = "right") -> list[Encoded]:
        """Normalise and tokenise each text, dropping its end (*side* right) or beginning (left) where it is too long."""
        prepared = [self._prompt + normalize_text(text) for text in texts]
        encodings = self._tokenizer.encode_batch_fast(prepared, add_special_tokens=False)
        return [self._fit(encoding.ids, side) for encoding in encodings]

    def tokens(self, text: str, *, with_special: bool = True) -> list[Token]:
        """All tokens of *text*, none dropped, without the prompt; the special ones only *with_special*."""
        normalized = normalize_text(text)
        encoding = self._tokenizer.encode(normalized, add_special_tokens=with_special)
        parts = zip(encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets, strict=True)
        tokens = []
        for number, piece, special, (start, stop) in parts:
            if special:
                tokens.append(Token(number, piece, is_special=True))
            elif normalized == text:
                tokens.append(Token(number, normalized[start:stop], is_special=False, start=start, stop=stop))
            else:
                tokens.append(Token(number, normalized[start:stop], is_special=False))
        return tokens

    def decode(self, ids: "Sequence[int]", *, skip_special: bool = True) -> str:
        """The text of *ids*, as far as tokens tell it; unknown ids are left out."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special)

    def _fit(self, ids: list[int], side: TruncationSide) -> Encoded:
        room = self.max_tokens - 2
        truncated = len(ids) > room
        if truncated:
            ids = ids[:room] if side == "right" else ids[-room:]
        return Encoded([self._first, *ids, self._last], truncated)
