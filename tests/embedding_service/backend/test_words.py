from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_service.backend.words import ReadText, parts, read_texts, split_words


def read(text: str, vocabulary: Sequence[str], *, is_lowercase: bool = True) -> tuple[list[str], list[str]]:
    """The keys that *text* is read by, and the words that are missing."""
    [result] = read_texts(
        [text], lambda keys: [vocabulary.index(key) if key in vocabulary else -1 for key in keys], is_lowercase=is_lowercase
    )
    return [vocabulary[row] for row in result.rows], result.missing


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The king's frog, isn't it?", ["The", "king's", "frog", "isn't", "it"]),
        ("O’Brien paid 1,000.50 for a line‑up (2/3)", ["O'Brien", "paid", "1,000.50", "for", "a", "line-up", "2/3"]),
        ("in the U.S. army, e.g. at trunkline.example.", ["in", "the", "U.S.", "army", "e.g.", "at", "trunkline.example"]),
        ("end. Next", ["end", "Next"]),
        ("-- !!! ... _", []),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("می‌خواهم", ["می‌خواهم"]),
        ("i❤️frogs 😀", ["i", "frogs"]),
        ("New_York", ["New_York"]),
    ],
)
def test_a_text_is_cut_into_words(text: str, words: list[str]) -> None:
    assert words == split_words(text)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("isn't", ["is", "n't"]),
        ("king's", ["king", "'s"]),
        ("n't", ["n't"]),
        ("they'd've", ["they", "d", "ve"]),
        ("l'homme", ["l", "homme"]),
        ("line-up", ["line", "up"]),
        ("iphone手机", ["iphone", "手机"]),
        ("king", ["king"]),
    ],
)
def test_a_word_has_these_parts(word: str, expected: list[str]) -> None:
    assert expected == parts(word)


def test_a_key_is_found_whole_before_its_parts() -> None:
    assert (["line-up"], []) == read("Line-up", ["line", "up", "line-up"])
    assert (["line", "up"], []) == read("Line-up", ["line", "up"])
    assert (["line"], ["up"]) == read("Line-up", ["line"])
    assert (["o'brien", "'s"], []) == read("O'Brien's", ["o'brien", "'s", "o"])
    assert (["is", "n't"], []) == read("isn't", ["is", "n't", "isn"])


def test_case_is_kept_where_keys_have_capitals() -> None:
    assert (["Apple"], ["apple"]) == read("Apple apple", ["Apple"], is_lowercase=False)
    assert (["apple", "apple"], []) == read("Apple apple", ["apple"])


def test_text_is_normalised_as_a_trunks_is() -> None:
    assert (["café"], []) == read("cafe\u0301\u200b", ["café"])


def test_scripts_without_spaces_are_read_by_the_longest_key() -> None:
    vocabulary = ["我", "喜欢", "喜", "北京", "北京大学", "大学", "手机", "iphone"]
    assert (["我", "喜欢", "北京大学"], []) == read("我喜欢北京大学。", vocabulary)
    assert (["北京", "大学"], []) == read("北京，大学", vocabulary)
    assert (["我"], ["们不是"]) == read("我们不是", vocabulary)
    assert (["iphone", "手机"], ["的"]) == read("iPhone的手机", vocabulary)


def test_nothing_is_read_from_nothing() -> None:
    assert [ReadText(), ReadText()] == read_texts(["", " ?! "], lambda keys: [-1] * len(keys), is_lowercase=True)


@pytest.mark.parametrize(
    "text", ["x" + "'s" * 20_000, "a." * 20_000, "a-" * 20_000, "字" * 20_000, "字a" * 10_000, "n't" * 9_000]
)
def test_a_hostile_text_is_read_in_order_of_its_length(text: str) -> None:
    num_asked = 0

    def rows_of(keys: Sequence[str]) -> list[int]:
        nonlocal num_asked
        num_asked += sum(map(len, keys))
        return [-1] * len(keys)

    [result] = read_texts([text], rows_of, is_lowercase=True)

    assert [] == result.rows
    assert num_asked <= 50 * len(text)


@given(st.lists(st.text(), max_size=5), st.sets(st.text(min_size=1, max_size=3), max_size=20))
def test_any_text_is_read_the_same_alone_and_in_company(texts: list[str], vocabulary: set[str]) -> None:
    known = {word: number for number, word in enumerate(sorted(vocabulary))}

    def rows_of(keys: Sequence[str]) -> list[int]:
        return [known.get(key, -1) for key in keys]

    together = read_texts(texts, rows_of, is_lowercase=True)

    assert [read_texts([text], rows_of, is_lowercase=True)[0] for text in texts] == together
    assert all(word not in known for text in together for word in text.missing)
