from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.wire.decoding import MAX_TOLD, told_of_shape

CANARY = "canary-7f3a"


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    depth: int = 0


class Outer(msgspec.Struct, forbid_unknown_fields=True, rename={"kind": "type"}):
    text: str = ""
    kind: Literal["one", "two"] = "one"
    inner: Inner | None = None


def told(body: bytes, kind: Any = Outer) -> str:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.json.decode(body, type=kind)
    return told_of_shape(caught.value, kind)


def test_an_unknown_field_is_told_with_those_that_there_are() -> None:
    assert "it has an unknown field; it takes inner, text, type" == told(b'{"txt": "a"}')


def test_of_a_field_within_another_only_that_it_is_unknown() -> None:
    assert "it has an unknown field" == told(b'{"inner": {"dept": 1}}')


def test_what_is_no_object_has_no_fields_to_name() -> None:
    assert "it has an unknown field" == told(b'[{"dept": 1}]', list[Inner])


def test_types_and_places_are_told() -> None:
    assert "Expected `int`, got `str` - at `$.inner.depth`" == told(b'{"inner": {"depth": "1"}}')


def test_a_word_that_is_no_choice_is_told_with_its_place() -> None:
    assert "a word is none of those to choose from - at `$.type`" == told(b'{"type": "three"}')


@given(st.text(max_size=40), st.text(max_size=40))
def test_nothing_that_the_caller_wrote_is_told(before: str, after: str) -> None:
    word = f"{before}{CANARY}{after}"
    for body in ({word: 1}, {"type": word}, {"inner": {word: 1}}, {"inner": word}, {"text": {word: word}}):
        said = told(msgspec.json.encode(body))
        assert CANARY not in said
        assert len(said) <= MAX_TOLD
