import contextlib
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from head_service.serving.errors import ServingError
from head_service.serving.rest_json import parse_object

SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


def read(body: str | bytes, *wanted: str) -> dict[str, object]:
    return parse_object(body.encode() if isinstance(body, str) else body, wanted)[0]


def refusal(body: str | bytes) -> str:
    with pytest.raises(ServingError) as caught:
        read(body, "a")
    return caught.value.message


@given(st.dictionaries(st.text(), VALUES))
@settings(max_examples=50)
def test_what_the_standard_library_writes_is_read_back(members):
    found = read(json.dumps(members), *members)

    assert repr(found) == repr(members)


@given(st.dictionaries(st.text(), VALUES))
@settings(max_examples=50)
def test_members_that_nobody_asked_for_are_left_out(members):
    assert read(json.dumps({**members, "asked": 1}), "asked") == {"asked": 1}


@given(st.binary(max_size=40) | st.text(alphabet='{}[]",:0123456789.eE+-\\untrufalsNI \n', max_size=40))
@settings(max_examples=300)
def test_any_body_is_read_or_refused(body):
    with contextlib.suppress(ServingError):
        parse_object(body.encode() if isinstance(body, str) else body, {"a"})


@given(st.text(alphabet='[]{}"a:,1.e-\\ ', max_size=20))
@settings(max_examples=300)
def test_an_ignored_member_is_judged_as_a_wanted_one(text):
    def judged(name: str) -> bool:
        try:
            return bool(read('{"a":' + text + "}", name)) or True
        except ServingError:
            return False

    assert judged("a") == judged("b")


def test_the_first_of_equal_keys_counts():
    assert read('{"a": 1, "b": {"c": 1, "c": 2}, "a": 2}', "a", "b") == {"a": 1, "b": {"c": 1}}


def test_what_follows_the_document_is_not_read():
    assert read('\ufeff {"a": 1}X', "a") == {"a": 1}


def test_words_for_what_is_not_finite_are_numbers():
    found = read('{"a": [NaN, Infinity, -Infinity]}', "a")["a"]

    assert isinstance(found, list)
    assert math.isnan(found[0])
    assert found[1:] == [math.inf, -math.inf]


def test_an_integer_beyond_64_bits_is_a_double():
    found = read('{"b": {}, "a": [18446744073709551615, 18446744073709551616, -9223372036854775809]}', "a")

    assert repr(found["a"]) == "[18446744073709551615, 1.8446744073709552e+19, -9.223372036854776e+18]"


@pytest.mark.parametrize("number", ["1e400", "-1e400", "1" * 400, "1" * 250 + "e99", "1e+0400"])
@pytest.mark.parametrize("name", ["a", "b"])
def test_a_number_too_big_for_a_double_is_refused(number, name):
    assert refusal(f'{{"{name}": [{number}]}}') == "JSON Parse error: Number too big to be stored in double. at offset: 7"


def test_bytes_that_are_no_utf8_are_kept():
    found = read(b'{"a": "\xff\xc3\xa9"}', "a")["a"]

    assert str(found).encode("utf-8", "surrogateescape") == b"\xff\xc3\xa9"


def test_an_ignored_member_may_be_nested_deeper_than_the_stack():
    deep = "[" * 50_000 + '{"x": "]"}' + "]" * 50_000

    assert read(f'{{"b": {deep}, "a": 1}}', "a") == {"a": 1}
    assert refusal(f'{{"a": {deep}}}') == "JSON Value is nested deeper than any tensor"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "JSON Parse error: The document is empty"),
        (" \n", "JSON Parse error: The document is empty. at offset: 2"),
        ("{", "JSON Parse error: Missing a name for object member. at offset: 1"),
        ("instances = [1, 2]", "JSON Parse error: Invalid value. at offset: 0"),
        ('{"é" 1}', "JSON Parse error: Missing a colon after a name of object member. at offset: 6"),
        ('{"a": [1 2]}', "JSON Parse error: Missing a comma or ] after an array element. at offset: 9"),
        ('{"a": {"b": 1 2}}', "JSON Parse error: Missing a comma or } after an object member. at offset: 14"),
        ('{"a": 1 2}', "JSON Parse error: Missing a comma or } after an object member. at offset: 8"),
        ('{"a": [1,]}', "JSON Parse error: Invalid value. at offset: 9"),
        ('{"a": "x}', "JSON Parse error: Missing a closing quotation mark in string. at offset: 6"),
        ('{"a": "\\x"}', "JSON Parse error: Invalid escape character in string. at offset: 7"),
        ('{"a": "\\u12"}', "JSON Parse error: Incorrect hex digit after \\u escape in string. at offset: 8"),
        ('{"a": "\n"}', "JSON Parse error: Invalid encoding in string. at offset: 7"),
        ("[1, 2]", "JSON Value: [1, 2] Is not object"),
        ('"' + "x" * 500 + '"', 'JSON Value: "' + "x" * 63 + " Is not object"),
    ],
)
def test_what_is_no_json_is_told_with_its_place(body, message):
    assert refusal(body) == message


@given(st.dictionaries(st.sampled_from("abc"), st.lists(SCALARS, max_size=3)), st.sampled_from(["", '"d": {}, ']))
@settings(max_examples=100)
def test_the_quick_way_reads_what_the_long_one_reads(members, more):
    plain = json.dumps(members)
    long = "{" + more + plain[1:] if members else plain

    assert repr(read(plain, "a", "b")) == repr(read(long, "a", "b"))
