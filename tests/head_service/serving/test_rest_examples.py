import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.wire.tfs import inference_pb2 as pb
from head_service.serving.errors import ServingError
from head_service.serving.examples import serialised_examples
from head_service.serving.rest_examples import input_of

NAMES = st.text(st.characters(), max_size=4)  # lone surrogates among them
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(st.characters(), max_size=4)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner), max_leaves=6)
EXAMPLES = st.dictionaries(NAMES, VALUES)


def features(example: bytes) -> dict[str, object]:
    found = pb.Example.FromString(example).features.feature
    return {name: list(getattr(feature, feature.WhichOneof("kind")).value) for name, feature in found.items()}


@given(st.fixed_dictionaries({}, optional={"examples": st.lists(EXAMPLES) | VALUES, "context": EXAMPLES | VALUES}))
@settings(max_examples=100)
def test_any_body_is_examples_or_refused(body):
    with contextlib.suppress(ServingError):
        assert len(serialised_examples(input_of(body, "")))


def test_values_become_the_kind_they_look_like():
    body = {"examples": [{"i": [1, True], "f": 1.5, "b": ["é", {"b64": "/w=="}]}]}
    [example] = serialised_examples(input_of(body, ""))

    assert features(example) == {"i": [1, 1], "f": [1.5], "b": ["é".encode(), b"\xff"]}


def test_the_contexts_features_are_added_to_each_example():
    rows = serialised_examples(input_of({"context": {"c": 1}, "examples": [{"x": 2}, {}]}, ""))

    assert [features(row) for row in rows] == [{"c": [1], "x": [2]}, {"c": [1]}]


def test_no_example_is_refused():
    with pytest.raises(ServingError, match=r"^Input is empty\.$"):
        serialised_examples(pb.Input())
