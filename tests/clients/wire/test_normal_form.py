import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clients.wire.normal_form import MANY_MARKS, Form, normal_form

MARKS = "\u0300\u0301\u0308\u0316\u0323\u0327\u0344\u0345\u0f71\u0f72\u0f73\u0f75\u0f81\u302a\u1dc5"


@pytest.mark.parametrize("form", ["NFC", "NFKC"])
@given(
    text=st.lists(
        st.text(max_size=3)
        | st.text(MARKS, min_size=MANY_MARKS, max_size=3 * MANY_MARKS)
        | st.sampled_from(["a", "\ufb01", "\u1100"])
    ).map("".join)
)
@example(text="a" + "\u0301\u0316" * 100)
@example(text="\u037a" + "\u0316\u0345" * 100)
def test_it_is_what_the_standard_library_gives(form: Form, text: str) -> None:
    assert unicodedata.normalize(form, text) == normal_form(form, text)


def test_a_letter_with_very_many_marks_is_put_into_order() -> None:
    found = normal_form("NFC", "a" + "\u0301\u0316" * 100_000)

    assert "\u00e1" + "\u0316" * 100_000 + "\u0301" * 99_999 == unicodedata.normalize("NFC", found) == found
