import contextlib
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from head_service.serving.errors import ServingError
from head_service.serving.rest_tensors import column_inputs, row_inputs, tensor_of

DTYPES = [np.float32, np.float64, np.int8, np.int32, np.int64, np.uint8, np.uint32, np.uint64, np.bool_]


def typed(**inputs):
    return {alias: SimpleNamespace(dtype=np.dtype(dtype)) for alias, dtype in inputs.items()}


def refusal(call) -> str:
    with pytest.raises(ServingError) as caught:
        call()
    return f"{caught.value.code.name}: {caught.value.message}"


@given(st.sampled_from(DTYPES).flatmap(lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, min_side=1))))
@settings(max_examples=100)
def test_an_array_comes_back_from_its_lists(array):
    np.testing.assert_array_equal(tensor_of(array.tolist(), array.dtype), array)


NUMBERS = st.recursive(st.integers(-9, 9) | st.booleans() | st.just(1.5) | st.none() | st.just("a"), st.lists, max_leaves=6)


@given(NUMBERS, st.sampled_from([*DTYPES, object, np.float16]))
@settings(max_examples=200)
def test_any_value_is_an_array_or_refused(value, dtype):
    with contextlib.suppress(ServingError):
        assert tensor_of(value, np.dtype(dtype)).dtype == dtype


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        ("x", "float32", 'INVALID_ARGUMENT: JSON Value: "x" Type: String is not of expected type: float'),
        (True, "float32", "INVALID_ARGUMENT: JSON Value: true Type: True is not of expected type: float"),
        ([1, False], "int32", "INVALID_ARGUMENT: JSON Value: false Type: False is not of expected type: int32"),
        (None, "float64", "INVALID_ARGUMENT: JSON Value: null Type: Null is not of expected type: double"),
        (1.0, "int64", "INVALID_ARGUMENT: JSON Value: 1.0 Type: Number is not of expected type: int64"),
        (1, "bool", "INVALID_ARGUMENT: JSON Value: 1 Type: Number is not of expected type: bool"),
        (2**31, "int32", "INVALID_ARGUMENT: JSON Value: 2147483648 Type: Number is not of expected type: int32"),
        (-1, "uint32", "INVALID_ARGUMENT: JSON Value: -1 Type: Number is not of expected type: uint32"),
        (300, "uint8", "INVALID_ARGUMENT: JSON Value: 300 Type: Number is not of expected type: uint8"),
        ({"a": 1}, "int64", 'INVALID_ARGUMENT: JSON Value: {"a": 1} Type: Object is not of expected type: int64'),
        (1, "object", "INVALID_ARGUMENT: JSON Value: 1 Type: Number is not of expected type: string"),
        ({"b64": 1}, "object", 'INVALID_ARGUMENT: JSON Value: {"b64": 1} not formatted correctly for base64 data'),
        ({"b64": "?"}, "object", "INVALID_ARGUMENT: Unable to base64 decode"),
        ("\ud800", "object", "INVALID_ARGUMENT: JSON Parse error: The surrogate pair in string is invalid."),
        (1, "float16", "UNIMPLEMENTED: Conversion of JSON Value: 1 to type: half"),
        (1, ml_dtypes.bfloat16, "UNIMPLEMENTED: Conversion of JSON Value: 1 to type: bfloat16"),
        ([[1], [1, 2]], "int32", "INVALID_ARGUMENT: Encountered list at unexpected size: 2 at level: 1 expected size: 1"),
        ([1, [1]], "int32", "INVALID_ARGUMENT: Encountered list at unexpected level: 1 expected < 1"),
        ([[1], 1], "int32", "INVALID_ARGUMENT: JSON Value: 1 found at incorrect level: 2 in the JSON DOM. Expected at level: 2"),
    ],
)
def test_a_value_that_is_no_such_tensor_is_refused(value, dtype, message):
    assert refusal(lambda: tensor_of(value, np.dtype(dtype))) == message


def test_a_long_value_is_not_sent_back_whole():
    assert len(refusal(lambda: tensor_of("x" * 10_000, np.dtype("float32")))) < 200


def test_a_tensor_of_too_many_dimensions_is_refused():
    value = 1
    for _ in range(900):
        value = [value]

    assert "nested deeper" in refusal(lambda: tensor_of(value, np.dtype("int32")))


def test_texts_and_base64_become_bytes():
    found = tensor_of([["é", {"b64": "/w"}], [{"b64": " /w ==\n"}, ""]], np.dtype(object))

    assert found.tolist() == [["é".encode(), b"\xff"], [b"\xff", b""]]


def test_a_float_beyond_float32_is_infinite():
    assert tensor_of([1e39, float("-inf")], np.dtype("float32")).tolist() == [float("inf"), float("-inf")]


def test_rows_of_one_input_are_plain_or_named():
    plain = row_inputs([[1, 2], [3, 4]], typed(x=np.int32))
    named = row_inputs([{"x": [1, 2]}, {"x": [3, 4]}], typed(x=np.int32))
    texts = row_inputs([{"b64": "YQ=="}, "b"], typed(x=object))

    assert plain["x"].tolist() == named["x"].tolist() == [[1, 2], [3, 4]]
    assert texts["x"].tolist() == [b"a", b"b"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([1], "instances is a plain list, but expecting list of objects as multiple input tensors required"),
        ([{"a": 1, "b": 1.5}, 2], "Expecting object but got list at item 1 of input list"),
        ([{"a": 1, "c": 2}], "Failed to process element: 0 key: c of 'instances' list. Error: INVALID_ARGUMENT: "),
        ([{"a": 1}], "Failed to process element: 0 of 'instances' list. JSON object: {\"a\": 1} keys must be equal to: a,b"),
        (
            [{"a": 1, "b": 1}, {"a": "x", "b": 1}],
            "Failed to process element: 1 key: a of 'instances' list. Error: INVALID_ARGUMENT: JSON Value: \"x\" Type: String",
        ),
        (
            [{"a": 1, "b": 1}, {"a": [1, 2], "b": 1}],
            "Failed to process element: 1 key: a of 'instances' list. "
            "Error: INVALID_ARGUMENT: Expecting tensor size: 1 but got: 2",
        ),
        (
            [{"a": 1, "b": 1}, {"a": [1], "b": 1}],
            "Failed to process element: 1 key: a of 'instances' list. Error: INVALID_ARGUMENT: Expecting shape [] but got: [1]",
        ),
    ],
)
def test_a_row_that_differs_is_named(rows, message):
    assert refusal(lambda: row_inputs(rows, typed(a=np.int32, b=np.float32))).startswith(f"INVALID_ARGUMENT: {message}")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1], [1, 2]], "of 'instances' list. Error: INVALID_ARGUMENT: Expecting tensor size: 1 but got: 2"),
        ([[1], {"x": [1]}], "Expecting value/list but got object at item 1 of input list"),
    ],
)
def test_a_plain_row_that_differs_is_named(rows, message):
    assert message in refusal(lambda: row_inputs(rows, typed(x=np.int32)))


def test_columns_are_whole_tensors():
    both = column_inputs({"a": [[1, 2]], "b": 3, "ignored": "x"}, typed(a=np.int32, b=np.float32))
    one = column_inputs([[1, 2]], typed(a=np.int32))

    assert (both["a"].tolist(), both["b"].tolist(), one["a"].tolist()) == ([[1, 2]], 3.0, [[1, 2]])


def test_a_column_that_is_missing_is_named():
    inputs = typed(a=np.int32, b=np.int32)

    assert refusal(lambda: column_inputs({"a": 1}, inputs)) == "INVALID_ARGUMENT: Missing named input: b in 'inputs' object."
    assert "inputs is a plain value/list" in refusal(lambda: column_inputs([1], inputs))
