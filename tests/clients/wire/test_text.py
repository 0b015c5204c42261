from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.wire.text import TextEncoder, TextPair, normalization_notes, normalize_text, window_spans


@given(st.text(st.characters() | st.characters(categories=["Cc", "Cf", "Cs", "Mn", "Zs"])))
def test_a_normalised_text_is_normalised_already(text):
    once = normalize_text(text)
    assert normalize_text(once) == once


@given(
    st.text(st.characters() | st.characters(categories=["Cf", "Mn", "Zs"]) | st.sampled_from("ae  \u0301\u00a0\t\u1100\u1161"))
)
def test_a_text_with_nothing_to_drop_is_normalised_as_one_with_something(text):
    # Where nothing is to be dropped a shorter way is taken.
    assert normalize_text(text) == normalize_text(text + "\x00")


@given(st.text(st.characters() | st.characters(categories=["Cc", "Cf", "Cs", "Mn", "Zs"]) | st.sampled_from("a \t")))
def test_there_is_a_note_exactly_where_normalising_changes_something(text):
    assert bool(normalization_notes(text)) == (normalize_text(text) != text)


@pytest.mark.parametrize(
    ("text", "notes"),
    [
        ("a b", ()),
        ("a  b", ("white_space_collapsed",)),
        ("a ", ("white_space_collapsed",)),
        ("a\tb", ("white_space_collapsed",)),
        ("a\u00a0b", ("white_space_collapsed",)),
        ("e\u0301", ("recomposed",)),
        ("\u00e9", ()),
        ("a\u200b", ("control_characters_removed",)),
        (" e\u0301\x00", ("recomposed", "white_space_collapsed", "control_characters_removed")),
    ],
)
def test_notes_tell_what_normalising_changed(text, notes):
    assert normalization_notes(text) == notes


@given(st.text(st.characters() | st.characters(categories=["Cs"])))
def test_a_normalised_text_can_travel(text):
    normalize_text(text).encode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  two\t\n words ", "two words"),
        ("e\u0301", "\u00e9"),
        ("a\u0000b\u200bc\ufeff", "abc"),
        ("lone \ud800 surrogate", "lone surrogate"),
        ("\u0915\u094d\u200d\u0937", "\u0915\u094d\u200d\u0937"),
        ("\u0000\u200b", ""),
    ],
)
def test_the_rules_of_the_normaliser_hold(text, expected):
    assert normalize_text(text) == expected


@pytest.fixture(scope="module")
def tokenizer_json():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "one", "two", "three", "four"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.enable_padding(length=16)
    tokenizer.enable_truncation(3)
    return tokenizer.to_str().encode()


def test_a_text_that_fits_is_whole(tokenizer_json):
    [found] = TextEncoder(tokenizer_json, max_tokens=5).encode(["one two  three"])
    assert (found.ids, found.truncated) == ([2, 4, 5, 6, 3], False)


@pytest.mark.parametrize(("side", "ids"), [("right", [2, 4, 5, 3]), ("left", [2, 6, 7, 3])])
def test_a_text_that_is_too_long_loses_one_side_and_keeps_its_special_tokens(tokenizer_json, side, ids):
    [found] = TextEncoder(tokenizer_json, max_tokens=4).encode(["one two three four"], side=side)
    assert (found.ids, found.truncated) == (ids, True)


def test_the_prompt_comes_before_every_text(tokenizer_json):
    encoder = TextEncoder(tokenizer_json, max_tokens=8, prompt="four ")
    assert [found.ids for found in encoder.encode(["one", ""])] == [[2, 7, 4, 3], [2, 7, 3]]


def test_a_tokenizer_without_two_special_tokens_is_refused():
    from tokenizers import Tokenizer, models

    bare = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]")).to_str().encode()
    with pytest.raises(ValueError, match="0 special tokens"):
        TextEncoder(bare, max_tokens=8)


@given(st.integers(1, 3_000), st.integers(3, 300))
def test_windows_cover_a_text_are_alike_in_length_and_overlap(length, room):
    spans = window_spans(length, room)

    assert (spans[0][0], spans[-1][1]) == (0, length)
    assert len({stop - start for start, stop in spans}) == 1
    assert all(stop - start <= room for start, stop in spans)
    assert all(start < stop - room // 4 + 1 for (_, stop), (start, _) in pairwise(spans))
    assert len(spans) == 1 or length > room


def test_a_long_text_is_read_in_windows_with_special_tokens_of_their_own(tokenizer_json):
    encoder = TextEncoder(tokenizer_json, max_tokens=6)
    windows = encoder.encode_windows("one two three four one two three")
    assert [window.ids for window in windows] == [[2, 4, 5, 6, 7, 3], [2, 7, 4, 5, 6, 3]]
    assert not any(window.truncated for window in windows)


def test_a_prompt_that_ends_in_a_space_stands_before_each_window_also_where_the_space_is_the_next_words():
    """As SentencePiece has it: a space belongs to the word behind it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<unk>", "<s>", "</s>", "\u2581", "\u2581query", ":", "\u2581one", "\u2581two", "\u2581three", "one", "two", "three"]
    tokenizer = Tokenizer(models.Unigram([(word, -float(number > 0)) for number, word in enumerate(words)], unk_id=0))
    tokenizer.add_special_tokens(words[1:3])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    encoder = TextEncoder(tokenizer.to_str().encode(), max_tokens=7, prompt="query: ")

    windows = [window.ids for window in encoder.encode_windows("one two three one two three")]

    assert [1, 4, 5, 6, 7, 8, 2] == windows[0]
    assert len(windows) > 1
    assert all([1, 4, 5] == ids[:3] for ids in windows)
    assert [6, 7, 8] == windows[-1][-4:-1]


def roberta_like(prompt: str = "") -> TextEncoder:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<unk>", "<s>", "</s>", "one", "two", "three", "four", "a"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.add_special_tokens(words[1:3])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1), add_prefix_space=False)
    return TextEncoder(tokenizer.to_str().encode(), max_tokens=8, prompt=prompt)


def test_a_pair_is_laid_out_as_its_tokenizer_has_it():
    """RoBERTa and its kin: two separators, one segment."""
    from tokenizers import Tokenizer

    encoder = roberta_like()
    found = encoder.encode_pair(TextPair("one two", "three"))

    expected = encoder._tokenizer.encode("one two", "three")
    assert isinstance(encoder._tokenizer, Tokenizer)
    assert expected.ids == found.ids == [1, 3, 4, 2, 2, 5, 2]
    assert (0, {0}) == (found.pair_at, set(expected.type_ids))
    assert [1, 3, 4, 2, 2, 5, 6, 2] == encoder.encode_pair(TextPair("one two three four", "three four one two")).ids
    assert 4 == encoder.num_special_of_pair


@pytest.mark.parametrize(
    ("pair", "lacks"), [(("", "one"), True), (("one", " "), True), (("one", "two"), False), (("one one one one", "two"), False)]
)
@pytest.mark.parametrize("prompt", [None, "two", ""])
def test_a_pair_tells_whether_a_text_of_it_is_nothing(pair, lacks, prompt):
    assert lacks == roberta_like("three ").encode_pair(TextPair(*pair), prompt=prompt).lacks_text


def test_cut_at_its_beginning_a_text_keeps_the_prompt():
    encoder = roberta_like("a ")
    [found] = encoder.encode(["one one one two three four four"], side="left")
    pair = encoder.encode_pair(TextPair("one one one two three four", "one"), side="left")
    [long] = encoder.encode(["one"], side="left", prompt="two two two two two two two ")

    assert ([1, 7, 3, 4, 5, 6, 6, 2], True) == (found.ids, found.truncated)
    assert ([1, 7, 5, 6, 2, 2, 3, 2], True) == (pair.ids, pair.truncated)
    assert [1, 4, 4, 4, 4, 4, 3, 2] == long.ids


def test_a_pair_knows_where_its_second_text_begins(tokenizer_json):
    found = TextEncoder(tokenizer_json, max_tokens=9).encode_pair(TextPair("one two", " three "))
    assert (found.ids, found.pair_at, found.truncated) == ([2, 4, 5, 3, 6, 3], 4, False)


@pytest.mark.parametrize(
    ("pair", "side", "ids"),
    [
        (TextPair("one two three four", "one"), "right", [2, 4, 5, 3, 4, 3]),
        (TextPair("one two three four", "one"), "left", [2, 6, 7, 3, 4, 3]),
        (TextPair("one", "one two three four"), "right", [2, 4, 3, 4, 5, 3]),
        (TextPair("one two three", "one two three"), "right", [2, 4, 3, 4, 5, 3]),
    ],
)
def test_of_a_pair_that_is_too_long_the_longer_text_is_cut(tokenizer_json, pair, side, ids):
    found = TextEncoder(tokenizer_json, max_tokens=6).encode_pair(pair, side=side)
    assert (found.ids, found.truncated) == (ids, True)


def test_tokens_become_ids_as_they_are_and_ids_tokens(tokenizer_json):
    encoder = TextEncoder(tokenizer_json, max_tokens=8)
    assert encoder.ids_of_tokens(["one", "unheard", "[SEP]", "one two"]) == [4, 1, 3, 1]
    assert encoder.tokens_of_ids([2, 4, 1, 99]) == ["[CLS]", "one", "[UNK]", ""]
    assert encoder.special_ids == (2, 3)


def test_a_word_piece_is_a_token_of_its_own():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[UNK]", "[CLS]", "[SEP]", "play", "##ing"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    encoder = TextEncoder(tokenizer.to_str().encode(), max_tokens=8)

    assert encoder.ids_of_tokens(["play", "##ing", "playing"]) == [3, 4, 0]
    assert encoder.tokens_of_ids(encoder.encode(["playing"])[0].ids) == ["[CLS]", "play", "##ing", "[SEP]"]


def test_a_sentence_piece_vocabulary_has_its_own_word_for_the_unknown():
    from tokenizers import Tokenizer, models, processors

    tokenizer = Tokenizer(models.Unigram([("<s>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("a", -1.0)], unk_id=2))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    assert TextEncoder(tokenizer.to_str().encode(), max_tokens=8).ids_of_tokens(["a", "b"]) == [3, 2]


def test_a_tokenizer_without_a_word_for_the_unknown_says_so():
    from tokenizers import Tokenizer, models, processors

    tokenizer = Tokenizer(models.BPE({"[CLS]": 0, "[SEP]": 1, "a": 2}, []))
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)])
    encoder = TextEncoder(tokenizer.to_str().encode(), max_tokens=8)

    assert encoder.ids_of_tokens(["a"]) == [2]
    with pytest.raises(ValueError, match="does not know"):
        encoder.ids_of_tokens(["b"])


def test_notes_of_a_letter_with_a_million_marks_take_no_longer_than_the_text_is_long():
    # By the standard library alone this would take ten minutes.
    text = "a" + "\u0316\u0301" * 500_000

    assert ("recomposed",) == normalization_notes(text)
