import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer, Lowercase
from tokenizers.pre_tokenizers import BertPreTokenizer

from clients.wire.library_tokens import library_reader

_LETTERS = "abcdexyzABCDEXYZ0123.,'#[]é中ß"
RESERVED = ("[PAD]", "[UNK]", "[CLS]")
WORDS = {
    word: number for number, word in enumerate([*RESERVED, *_LETTERS, *(f"##{letter}" for letter in _LETTERS), "abc", "##bc"])
}


def tokenizer_of(*, lowercase: bool = True) -> Tokenizer:
    tokenizer = Tokenizer(WordPiece(WORDS, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = BertNormalizer(lowercase=lowercase), BertPreTokenizer()
    tokenizer.add_special_tokens(list(RESERVED))
    return tokenizer


def ids_of(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]


ODD = " \t\n\x00\x7f\u00ad\u200d\u0301\ufffd\u0130\uff3b"
PIECES = st.text(st.sampled_from(_LETTERS + ODD)) | st.text() | st.sampled_from(RESERVED)
ANY_TEXT = st.lists(PIECES, max_size=4).map("".join)


@pytest.mark.parametrize("lowercase", [True, False])
@given(texts=st.lists(ANY_TEXT, max_size=4))
def test_every_text_is_read_as_the_tokenizer_reads_it(lowercase: bool, texts: list[str]) -> None:
    tokenizer = tokenizer_of(lowercase=lowercase)
    assert ids_of(tokenizer, texts) == library_reader(tokenizer)(texts)


def test_each_printable_ascii_character_is_read_alike_between_letters_and_alone() -> None:
    texts = [f"a{chr(number)}B {chr(number)}" for number in range(0x20, 0x7F)]
    for tokenizer in (tokenizer_of(), tokenizer_of(lowercase=False)):
        assert ids_of(tokenizer, texts) == library_reader(tokenizer)(texts)


def test_a_reserved_word_is_one_token_wherever_it_stands_and_none_when_only_the_normaliser_makes_it() -> None:
    tokenizer = tokenizer_of(lowercase=False)
    read = library_reader(tokenizer)
    assert [[*read(["a"])[0], WORDS["[CLS]"]]] == read(["a[CLS]"])
    assert WORDS["[CLS]"] not in read(["[C\x00LS]"])[0]
    assert WORDS["[CLS]"] not in library_reader(tokenizer_of())(["[cls]"])[0]


def test_where_a_reserved_word_is_looked_for_in_the_normalised_text_the_tokenizer_does_all_itself() -> None:
    tokenizer = tokenizer_of()
    tokenizer.add_tokens([AddedToken("xyz", normalized=True)])
    assert [[len(WORDS)]] == ids_of(tokenizer, ["XYZ"]) == library_reader(tokenizer)(["XYZ"])


def test_another_normaliser_is_left_to_the_tokenizer() -> None:
    tokenizer = tokenizer_of()
    tokenizer.normalizer = Lowercase()
    assert ids_of(tokenizer, ["É中 ABC"]) == library_reader(tokenizer)(["É中 ABC"])
    tokenizer.normalizer = None
    assert ids_of(tokenizer, ["É中 ABC"]) == library_reader(tokenizer)(["É中 ABC"])


def test_texts_do_not_go_through_the_normaliser_within_the_tokenizer() -> None:
    tokenizer = tokenizer_of()
    read = library_reader(tokenizer)
    # Changed behind its back, it would read the second text otherwise.
    tokenizer.normalizer = Lowercase()
    assert ids_of(tokenizer_of(), ["ABC", "É"]) == read(["ABC", "É"])


def test_a_tokenizer_without_reserved_words_reads_as_itself() -> None:
    tokenizer = Tokenizer(WordPiece(WORDS, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = BertNormalizer(), BertPreTokenizer()
    assert ids_of(tokenizer, ["A [CLS] é", ""]) == library_reader(tokenizer)(["A [CLS] é", ""])


def test_the_vocabulary_is_not_held_twice() -> None:
    tokenizer = tokenizer_of()
    read = library_reader(tokenizer)
    assert read(["abc"]) != [[WORDS["[UNK]"]]]
    # What is seen from both sides is one and the same.
    tokenizer.model.max_input_chars_per_word = 2
    assert read(["abc"]) == [[WORDS["[UNK]"]]]


def test_a_tokenizer_that_cuts_no_words_reads_as_itself() -> None:
    tokenizer = tokenizer_of()
    tokenizer.pre_tokenizer = None
    assert ids_of(tokenizer, ["A, abc", "É"]) == library_reader(tokenizer)(["A, abc", "É"])
