from typing import Annotated, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, ValidationError, model_validator

from clients.wire.logs import clean_id, event_fields, problems_of, trace_id


@given(st.text())
def test_an_id_that_is_repeated_is_short_and_prints_on_one_line(value: str) -> None:
    found = clean_id(value)

    assert found in {"", value}
    assert len(found) <= 128
    assert found.isascii()
    assert len(found.splitlines()) <= 1


@given(st.text())
def test_a_trace_id_is_hexadecimal_or_nothing(header: str) -> None:
    assert trace_id(header) == "" or set(trace_id(header)) <= set("0123456789abcdef")


def test_a_line_leaves_out_what_is_not_known() -> None:
    assert {"fields": {"a": "x", "c": 0}} == event_fields(a="x", b="", c=0, d=None)


class Ports(BaseModel):
    port: Annotated[int, Field(le=65_535)] = 1
    secret: str = ""

    @model_validator(mode="after")
    def _no_secret(self) -> Self:
        if self.secret:
            raise ValueError("it has a secret")
        return self


def test_what_is_wrong_with_settings_is_told_without_their_values() -> None:
    with pytest.raises(ValidationError) as caught:
        Ports(port=99_999, secret="tr_hidden")
    assert problems_of(caught.value) == ["port: Input should be less than or equal to 65535"]
    with pytest.raises(ValidationError) as caught:
        Ports(secret="tr_hidden")
    assert problems_of(caught.value) == ["it has a secret"]
