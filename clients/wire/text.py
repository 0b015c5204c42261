"""The one path from text to token ids, shared by whoever tokenises: the embedding service, or a caller for it.

Training and serving can only agree when both take this path, so the normaliser has a version, and the version is part of
the trunk's fingerprint.
"""

import re
import unicodedata
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from clients.wire.chain import NO_STEPS, Chain, UnknownStepError, chain_of
from clients.wire.library_tokens import library_reader
from clients.wire.normal_form import normal_form
from clients.wire.quick_tokens import NotQuick, quick_reader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer


NORMALIZER: Final = "trunkline-text/1"
"""NFC; control, format and surrogate characters dropped, but for white space and joiners; runs of white space to one space."""

TruncationSide = Literal["right", "left"]

_WHITE_SPACE: Final = re.compile(r"\s+")
_JOINERS: Final = frozenset("\u200c\u200d")
_DROPPED: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})


def normalize_text(text: str) -> str:
    """*text* by the rules of `NORMALIZER`; idempotent. A text that is nothing but dropped characters becomes ""."""
    if text.isascii() and text.isprintable():
        return " ".join(text.split())
    composed = normal_form("NFC", text)
    spaced = _WHITE_SPACE.sub(" ", composed)
    if spaced.isprintable():
        return spaced.strip()
    kept = "".join(c for c in spaced if c in _JOINERS or unicodedata.category(c) not in _DROPPED)
    # Dropping a character can bring two spaces, or a letter and its accent, together.
    return _WHITE_SPACE.sub(" ", normal_form("NFC", kept)).strip()


def normalizer_after(chain: Chain) -> str:
    """How a trunk with *chain* says that it normalises: the names of all steps, the normaliser last, spaces between.

    One that knows nothing of chains compares it with `NORMALIZER` and refuses.
    """
    return " ".join((*chain.names, NORMALIZER))


def chain_before_normalizer(said: str) -> Chain:
    """The chain of a trunk that says it normalises by *said*.

    Raises:
        UnknownStepError: that cannot be done here.
    """
    *names, last = said.split(" ")
    if last != NORMALIZER:
        raise UnknownStepError(f"the trunk's texts are normalised by {last[:100]!r}, here they are by {NORMALIZER}")
    return chain_of(tuple(names))


def normalization_notes(text: str) -> tuple[str, ...]:
    """What `normalize_text` does to *text*, in the order it does it; nothing for the many texts that it leaves alone."""
    if text.isascii() and text.isprintable():
        return ("white_space_collapsed",) if "  " in text or text != text.strip(" ") else ()
    composed = normal_form("NFC", text)
    if composed == text and text.isprintable() and "  " not in text and text == text.strip(" "):
        return ()
    spaced = _WHITE_SPACE.sub(" ", composed).strip()
    notes = {
        "recomposed": composed != text,
        "white_space_collapsed": spaced != composed,
        "control_characters_removed": any(c not in _JOINERS and unicodedata.category(c) in _DROPPED for c in spaced),
    }
    return tuple(note for note, happened in notes.items() if happened)


@dataclass(frozen=True, slots=True)
class TextPair:
    """Two texts read together by one forward pass: [CLS] first [SEP] second [SEP], or as the tokenizer has it."""

    first: str
    second: str


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids with the special tokens in place, and whether the text had more than fit.

    *pair_at* is where segment 1 begins, with the second text of a pair; 0 for a single text, and for a tokenizer whose pairs are
    of one segment. *lacks_text*: one text of a pair has no token.
    """

    ids: list[int]
    truncated: bool
    pair_at: int = 0
    lacks_text: bool = False


@dataclass(frozen=True, slots=True)
class PairLayout:
    """What a tokenizer puts between the texts of a pair, and the segment, 0 or 1, of the second one."""

    between: tuple[int, ...]
    segment: int


@dataclass(frozen=True, slots=True)
class Token:
    """One token; *start* and *stop* are characters of the text as given: None for special ones and where that is not known."""

    id: int
    text: str
    is_special: bool
    start: int | None = None
    stop: int | None = None


def window_spans(length: int, room: int) -> list[tuple[int, int]]:
    """Where windows of at most *room* tokens begin and stop in *length* tokens, so that together they cover all of them.

    As few as can be when neighbours overlap by a quarter of *room*; of one length, and as evenly apart as whole numbers allow.
    """
    if length <= room:
        return [(0, length)]
    overlap = room // 4
    count = -(-(length - overlap) // (room - overlap))
    width = -(-(length + (count - 1) * overlap) // count)
    starts = [round(index * (length - width) / (count - 1)) for index in range(count)]
    return [(start, start + width) for start in starts]


def pair_layout(tokenizer: "Tokenizer", special: tuple[int, int]) -> PairLayout:
    """How *tokenizer* joins two texts: BERT's way puts one separator between them, and the second one in segment 1.

    RoBERTa and its kin have two separators and one segment. One that says nothing of pairs is read BERT's way.
    """
    found = tokenizer.encode("a", "a")
    places = found.sequence_ids
    in_bert = PairLayout((special[1],), 1)
    if 0 not in places or 1 not in places or (found.ids[0], found.ids[-1]) != special:
        return in_bert
    begin = places.index(1)
    before = found.ids[:begin]
    last_of_first = max(place for place, sequence in enumerate(places) if sequence == 0)
    between = tuple(before[last_of_first + 1 :])
    return PairLayout(between, found.type_ids[begin]) if between else in_bert


def _kept_of_pair(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of each text of a pair are kept when only *room* fit: the longer one gives up its tokens first."""
    shorter = min(first, second, room // 2)
    return (shorter, room - shorter) if first <= second else (room - shorter, shorter)


class TextEncoder:
    """Turns texts into token ids for one trunk. Thread-safe once made; the GIL is released while it works.

    *tokenizer_json* is a Hugging Face tokenizer.json; whatever truncation and padding it declares is switched off.
    *max_tokens* counts the special tokens. *prompt* is put before every text, of a pair before the first one; a call may
    bring another. *chain*, the trunk's own, is applied to every text, never to a prompt; whatever encodes texts may raise its
    `StepFailedError`. *quick_tokens*: texts are read by nanotoken, where `quick_tokens` finds that it may be.
    """

    def __init__(
        self,
        tokenizer_json: bytes,
        *,
        max_tokens: int,
        prompt: str = "",
        chain: Chain = NO_STEPS,
        quick_tokens: bool = False,
    ) -> None:
        from tokenizers import Tokenizer  # noqa: PLC0415 (the clients' base install does without it)

        self.max_tokens = max_tokens
        self.is_quick = chain.is_quick
        """Whether nothing but our own code looks at texts."""
        self._prompt = prompt
        self._normalize = (lambda text: normalize_text(chain(text))) if chain else normalize_text
        self._tokenizer: Tokenizer = Tokenizer.from_str(tokenizer_json.decode())
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        special = self._tokenizer.encode("").ids
        if len(special) != 2:
            raise ValueError(f"this tokenizer puts {len(special)} special tokens around a text; a BERT trunk has two")
        self._first, self._last = special
        self._pairs = pair_layout(self._tokenizer, (self._first, self._last))
        self._read = library_reader(self._tokenizer)
        self.why_not_quick = ""
        """Why `quick_tokens` was asked for in vain; "" otherwise."""
        if quick_tokens:
            try:
                self._read = quick_reader(self._tokenizer.to_str(), self._read)
            except NotQuick as reason:
                self.why_not_quick = str(reason)
        self._prompt_ids = self._ids(prompt) if prompt else []

    def encode(self, texts: "Sequence[str]", *, side: TruncationSide = "right", prompt: str | None = None) -> list[Encoded]:
        """Normalise and tokenise each text, dropping its end (*side* right) or beginning (left) where it is too long.

        The prompt is not dropped.
        """
        before = self._prompt if prompt is None else prompt
        prepared = [before + self._normalize(text) for text in texts]
        room = self.max_tokens - 2
        found = []
        for ids in self._read(prepared):
            kept = self._cut(before, ids, room, side) if len(ids) > room else ids
            found.append(Encoded([self._first, *kept, self._last], len(ids) > room))
        return found

    def encode_windows(self, text: str, *, prompt: str | None = None) -> list[Encoded]:
        """All of *text* in windows of one length that overlap by about a quarter of what fits; one window where it all fits.

        The prompt stands before each of them.
        """
        before = self._prompt if prompt is None else prompt
        ids = self._ids(before + self._normalize(text))
        head = self._head(before, ids)
        if len(head) > self.max_tokens // 2:
            head = []
        body = ids[len(head) :]
        return [
            Encoded([self._first, *head, *body[start:stop], self._last], truncated=False)
            for start, stop in window_spans(len(body), self.max_tokens - 2 - len(head))
        ]

    def _head(self, before: str, ids: list[int]) -> list[int]:
        """What of *ids*, of a text behind the prompt *before*, is the prompt's alone.

        Nothing where it runs into the text's first word: it stands before the first window alone then. A space at its end may be
        part of that word, as SentencePiece has it, and makes no difference.
        """
        for prompt in dict.fromkeys((before, before.rstrip())):
            head = self._ids(prompt) if prompt else []
            if ids[: len(head)] == head:
                return head
        return []

    def encode_pair(self, pair: TextPair, *, side: TruncationSide = "right", prompt: str | None = None) -> Encoded:
        """Both texts of *pair*; where they are too long together the longer one loses its end or beginning."""
        before = self._prompt if prompt is None else prompt
        first = self._ids(before + self._normalize(pair.first))
        second = self._ids(self._normalize(pair.second))
        lacks_text = not second or first == (self._prompt_ids if prompt is None else self._ids(prompt))
        room = max(self.max_tokens - self.num_special_of_pair, 2)
        truncated = len(first) + len(second) > room
        if truncated:
            kept = _kept_of_pair(len(first), len(second), room)
            first, second = self._cut(before, first, kept[0], side), self._cut("", second, kept[1], side)
        return replace(self.joined(first, second), truncated=truncated, lacks_text=lacks_text)

    def joined(self, first: "Sequence[int]", second: "Sequence[int]") -> Encoded:
        """Token ids of two texts as one pair, with the special tokens in place."""
        ids = [self._first, *first, *self._pairs.between, *second, self._last]
        return Encoded(ids, truncated=False, pair_at=len(ids) - len(second) - 1 if self._pairs.segment else 0)

    @property
    def num_special_of_pair(self) -> int:
        """Special tokens of a pair."""
        return 2 + len(self._pairs.between)

    def is_nothing(self, encoded: Encoded, *, prompt: str | None = None) -> bool:
        """Whether a text left nothing in *encoded*, its first window: there is the prompt at most."""
        expected = self._prompt_ids if prompt is None else self._ids(prompt)
        return len(encoded.ids) - 2 == len(expected) and encoded.ids[1:-1] == expected

    def tokens(self, text: str, *, with_special: bool = True) -> list[Token]:
        """All tokens of *text*, none dropped, without the prompt; the special ones only *with_special*."""
        normalized = self._normalize(text)
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

    def _ids(self, prepared: str) -> list[int]:
        """All ids of *prepared*, without the special ones."""
        [ids] = self._read([prepared])
        return ids

    def _cut(self, before: str, ids: list[int], room: int, side: TruncationSide) -> list[int]:
        """*room* of *ids*, of a text behind the prompt *before*, where there are more; a prompt over half of it is cut too."""
        if len(ids) <= room or side == "right":
            return ids[:room]
        head = self._head(before, ids)
        head = head if len(head) <= room // 2 else []
        return [*head, *ids[len(ids) - room + len(head) :]]

    @property
    def special_ids(self) -> tuple[int, int]:
        """What stands before a text and what behind it: [CLS] and [SEP]."""
        return self._first, self._last

    def ids_of_tokens(self, tokens: "Sequence[str]") -> list[int]:
        """The id of each of *tokens*, taken as it is, without special tokens around them; a token not known has the unknown id.

        Raises:
            ValueError: this tokenizer has no unknown id.
        """
        # A model of the SentencePiece kind does not tell; by convention it is this one.
        unknown = self._tokenizer.token_to_id(getattr(self._tokenizer.model, "unk_token", None) or "<unk>")
        ids = []
        for token in tokens:
            number = self._tokenizer.token_to_id(token)
            number = unknown if number is None else number
            if number is None:
                raise ValueError("this tokenizer has no token for what it does not know")
            ids.append(number)
        return ids

    def tokens_of_ids(self, ids: "Sequence[int]") -> list[str]:
        """Each of *ids* as its token stands in the vocabulary, special ones included; "" where there is none."""
        return [self._tokenizer.id_to_token(number) or "" for number in ids]
