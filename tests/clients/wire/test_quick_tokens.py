import sys
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel, WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from clients.wire.quick_tokens import NotQuick, Read, check, probes_of
from clients.wire.text import TextEncoder, TextPair

_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,'#[]é中"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *_LETTERS, *(f"##{letter}" for letter in _LETTERS), "quick", "##ly", "don"]


def word_pieces(*, is_cased: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(WordPiece({word: number for number, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = BertNormalizer(lowercase=not is_cased), BertPreTokenizer()
    tokenizer.add_special_tokens(VOCABULARY[:4])
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return tokenizer


def encoder_of(tokenizer: Tokenizer, *, quick_tokens: bool = True, max_tokens: int = 1_000) -> TextEncoder:
    return TextEncoder(tokenizer.to_str().encode(), max_tokens=max_tokens, quick_tokens=quick_tokens)


def library_of(tokenizer: Tokenizer) -> Read:
    return lambda texts: [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


QUICK, SLOW = encoder_of(word_pieces()), encoder_of(word_pieces(), quick_tokens=False)
CASED, SLOW_CASED = encoder_of(word_pieces(is_cased=True)), encoder_of(word_pieces(is_cased=True), quick_tokens=False)

ANY_TEXT = st.text(st.characters() | st.sampled_from(" " + _LETTERS) | st.sampled_from("E\u0301\u200dİẞ\ufdfa\U0001f600"))


@given(st.lists(ANY_TEXT | st.sampled_from([*VOCABULARY, "x" * 100, "x" * 101]), max_size=4))
def test_nanotoken_reads_every_text_as_the_library_does(texts: list[str]) -> None:
    assert SLOW.encode(texts) == QUICK.encode(texts)
    assert SLOW_CASED.encode(texts) == CASED.encode(texts)
    for text in texts:
        assert SLOW.encode_windows(text) == QUICK.encode_windows(text)
        assert SLOW.encode_pair(TextPair(text, "quickly")) == QUICK.encode_pair(TextPair(text, "quickly"))


def test_the_comparison_is_between_two_that_differ_in_how_they_read() -> None:
    assert "" == QUICK.why_not_quick == SLOW.why_not_quick
    assert "clients.wire.quick_tokens" == QUICK._read.__module__
    assert "clients.wire.library_tokens" == SLOW._read.__module__


def test_what_a_tokenizer_cuts_and_pads_by_itself_is_switched_off() -> None:
    tokenizer = word_pieces()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=8)
    found = encoder_of(tokenizer)
    assert not found.why_not_quick
    assert SLOW.encode(["a b c d e f g"]) == found.encode(["a b c d e f g"])


def test_a_tokenizer_of_another_kind_is_left_to_the_library() -> None:
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(["[UNK]", "[CLS]", "[SEP]", "one"])}, "[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    found = encoder_of(tokenizer)
    assert "does not read this tokenizer" in found.why_not_quick
    assert [1, 3, 0, 2] == found.encode(["one two"])[0].ids


def test_without_the_package_the_library_stays_and_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nanotoken", None)
    found = encoder_of(word_pieces())
    assert "trunkline[quick-tokens]" in found.why_not_quick
    assert SLOW.encode(["quickly"]) == found.encode(["quickly"])


@pytest.mark.parametrize("odd", ["quick", "##ly", "\U0001f600", "\u0915", "x" * 101, "[CLS]"])
def test_one_that_reads_a_single_word_or_character_otherwise_is_refused(odd: str) -> None:
    reference = library_of(word_pieces())

    def read(texts: Sequence[str]) -> list[list[int]]:
        return [ids + [0] * (odd in text) for text, ids in zip(texts, reference(texts), strict=True)]

    with pytest.raises(NotQuick, match="otherwise"):
        check(read, reference, VOCABULARY)
    check(reference, reference, VOCABULARY)


def test_every_word_of_the_vocabulary_is_among_the_probes_alone_and_as_an_end() -> None:
    words = {word for probe in probes_of(["quick", "##ly"]) for word in probe.split()}
    assert {"quick", "##ly", "aquick", "aly"} <= words
