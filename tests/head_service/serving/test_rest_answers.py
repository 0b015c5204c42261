import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.wire.tfs import inference_pb2 as pb
from head_service.serving.errors import ServingError
from head_service.serving.rest_answers import (
    all_finite,
    classify_answer,
    column_answer,
    regress_answer,
    row_answer,
    shortest,
    written,
)


@given(st.lists(st.floats(width=32), min_size=1))
@settings(max_examples=300)
def test_a_float_is_written_short_and_reads_back_as_itself(values):
    array = np.array(values, np.float32)
    found = shortest(array)

    np.testing.assert_array_equal(found.astype(np.float32), array)


@given(st.integers(-999_999, 999_999), st.integers(-12, 5))
def test_a_decimal_of_six_digits_is_written_as_it_was(digits, exponent):
    decimal = float(f"{digits}e{exponent}")

    assert shortest(np.array([decimal], np.float32)).tolist() == [decimal]


def test_whole_floats_keep_their_point_and_infinities_their_words():
    outputs = {"y": np.array([0.2, 1, np.inf, -np.inf, np.nan], np.float32)}

    assert not all_finite(outputs)
    content = written(row_answer(outputs), is_finite=False)
    assert content == b'{"predictions": [0.2, 1.0, Infinity, -Infinity, NaN]}'
    assert written({"a": [1.0, 0.1]}, is_finite=True) == b'{"a":[1.0,0.1]}'


def test_outputs_whose_name_ends_in_bytes_are_base64():
    outputs = {"a_bytes": np.array([b"\xff"], object), "a": np.array([b"\xc3\xa9"], object)}

    assert row_answer(outputs) == {"predictions": [{"a_bytes": {"b64": "/w=="}, "a": "é"}]}
    assert column_answer(outputs) == {"outputs": {"a_bytes": [{"b64": "/w=="}], "a": ["é"]}}


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"y": np.float32(1)}, "Tensor name: y has no shape information "),
        ({"a": np.zeros(2), "b": np.zeros(3)}, "Tensor name: b has inconsistent batch size: 3 expecting: 2"),
        ({"y": np.zeros(1, np.complex64)}, "Failed to write JSON value for tensor type: complex64"),
        ({"y": np.zeros(1, np.float16)}, "Failed to write JSON value for tensor type: half"),
    ],
)
def test_rows_that_cannot_be_written_are_refused(outputs, message):
    with pytest.raises(ServingError) as caught:
        row_answer({alias: np.asarray(array) for alias, array in outputs.items()})

    assert caught.value.message == message


def test_no_rows_are_an_empty_list():
    assert row_answer({"y": np.zeros((0, 2), np.float32)}) == {"predictions": []}


def test_results_are_pairs_or_numbers():
    classes = pb.Classifications(classes=[pb.Class(label="a", score=0.1), pb.Class(score=2)])
    regressions = [pb.Regression(value=0.3)]

    assert json.dumps(classify_answer(pb.ClassificationResult(classifications=[classes]))) == (
        '{"results": [[["a", 0.1], ["", 2.0]]]}'
    )
    assert regress_answer(pb.RegressionResult(regressions=regressions)) == {"results": [0.3]}
