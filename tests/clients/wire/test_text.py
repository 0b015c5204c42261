import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.wire.text import TextEncoder, normalize_text


@given(st.text(st.characters() | st.characters(categories=["Cc", "Cf", "Cs", "Mn", "Zs"])))
def test_a_normalised_text_is_normalised_already(text):
    once = normalize_text(text)
    assert normalize_text(once) == once


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
