"""What a plain HTTP client sees, row by row of the reference's behaviour."""

import gzip
import json
import socket
from typing import Any

import httpx
import pytest

from tests.contract.kinds import KINDS

pytestmark = pytest.mark.timeout(300)


def post(url: str, body: Any, **kwargs: Any) -> httpx.Response:
    content = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
    return httpx.post(url, content=content, timeout=30, **kwargs)


def told(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/json"
    content = answer.json()
    assert list(content) == ["error"]
    return answer.status_code, content["error"]


def test_rows_of_one_output_are_plain(url):
    answer = post(f"{url}/session:predict", {"instances": [2.0, 4]})

    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == {"predictions": [4.0, 5.0]}


def test_rows_of_several_outputs_are_objects(url):
    rows = [{"a": 1, "b": 2}, {"a": 3, "b": 0.5}]

    assert post(f"{url}/module:predict", {"instances": rows}).json() == {
        "predictions": [{"sum": 3.0, "product": 2.0}, {"sum": 3.5, "product": 1.5}]
    }


def test_columns_are_answered_as_columns(url):
    both = post(f"{url}/module:predict", {"inputs": {"a": [1, 2], "b": [3, 4]}}).json()
    one = post(f"{url}/session:predict", {"inputs": [2.0]}).json()

    assert both == {"outputs": {"sum": [4.0, 6.0], "product": [3.0, 8.0]}}
    assert one == {"outputs": [4.0]}


def test_a_keras_export_is_served(url):
    assert post(f"{url}/keras:predict", {"instances": [[1, 2, 3]]}).json() == {"predictions": [[7.0, 7.0]]}


def test_a_version_or_a_label_is_named_in_the_path(url):
    body = {"signature_name": "serving_default", "instances": [2]}

    assert post(f"{url}/session/versions/1:predict", body).json() == {"predictions": [3.0]}
    assert post(f"{url}/session/labels/stable:predict", body).json() == {"predictions": [3.0]}
    assert post(f"{url}/session/versions/2:predict", body).json() == {"predictions": [4.0]}


def test_paths_are_read_without_regard_to_case_and_decoded(url):
    root = url.removesuffix("/v1/models")

    assert post(f"{root}/V1/Models/s%65ssion/VERSIONS/1:Predict", {"instances": [2]}).json() == {"predictions": [3.0]}
    assert post(f"{root}/v1/models/session/Labels/st%61ble:predict", {"instances": [2]}).json() == {"predictions": [3.0]}
    assert httpx.get(f"{root}/v1/MODELS/s%65ssion/versions/1").json()["model_version_status"][0]["version"] == "1"
    assert told(post(f"{root}/v1/models/SESSION:predict", {"instances": [2]}))[0] == 404


def test_floats_are_short_and_whole_ones_keep_their_point(url):
    assert b"[3.1,3.0,3.3333333]" in post(f"{url}/session:predict", {"inputs": [0.2, 0, 0.6666667]}).content


def test_words_for_what_is_not_finite_are_read_and_written(url):
    answer = post(f"{url}/module:predict", '{"signature_name": "float64", "inputs": [NaN, Infinity, -Infinity, 1e-300]}')
    odd = post(f"{url}/module:predict", {"signature_name": "odd", "instances": [0, -1, 1]})

    assert answer.text == '{"outputs": [NaN, Infinity, -Infinity, 1e-300]}'
    assert odd.text == '{"predictions": [-Infinity, NaN, 0.0]}'


def test_texts_are_strings_or_base64_and_outputs_named_bytes_are_base64(url):
    answer = post(f"{url}/module:predict", {"signature_name": "upper", "instances": ["abc", {"b64": "eHl6"}]})

    assert answer.json() == {
        "predictions": [
            {"length": 3, "text": "ABC", "text_bytes": {"b64": "YWJj"}},
            {"length": 3, "text": "XYZ", "text_bytes": {"b64": "eHl6"}},
        ]
    }


@pytest.mark.parametrize("kind", ["int8", "int16", "int32", "int64", "uint8", "uint32", "uint64"])
def test_integers_come_and_go_and_must_be_in_range(url, kind):
    bits = int(kind.strip("uint"))
    low, high = (0, 2**bits - 1) if kind.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    good = post(f"{url}/module:predict", {"signature_name": kind, "inputs": [low, high]})

    assert good.json() == {"outputs": [low, high]}
    for number in (low - 1, high + 1, 1.0):
        status, message = told(post(f"{url}/module:predict", {"signature_name": kind, "inputs": [number]}))
        assert status == 400
        assert f"Type: Number is not of expected type: {kind}" in message


def test_booleans_come_and_go(url):
    answer = post(f"{url}/module:predict", {"signature_name": "bool", "instances": [[True], [False]]})

    assert answer.json() == {"predictions": [[True], [False]]}


@pytest.mark.parametrize("kind", ["half", "bfloat16", "uint16", "complex64", "complex128"])
def test_kinds_that_json_has_no_form_for_are_not_implemented(url, kind):
    assert kind in KINDS
    status, message = told(post(f"{url}/module:predict", {"signature_name": kind, "inputs": [1]}))

    assert (status, message) == (501, f"Conversion of JSON Value: 1 to type: {kind}")


def test_the_first_of_equal_keys_counts_and_others_are_ignored(url):
    deep = "[" * 20_000 + "]" * 20_000
    body = f'{{"extra": {deep}, "instances": [2], "instances": [9]}} and what follows'

    assert post(f"{url}/session:predict", body).json() == {"predictions": [4.0]}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "JSON Parse error: The document is empty"),
        ("instances = [1, 2]", "JSON Parse error: Invalid value. at offset: 0"),
        ("{", "JSON Parse error: Missing a name for object member. at offset: 1"),
        ('{"instances": [1e400]}', "JSON Parse error: Number too big to be stored in double. at offset: 15"),
        ("[1]", "JSON Value: [1] Is not object"),
        ("{}", "Missing 'inputs' or 'instances' key"),
        ('{"instances": [1], "inputs": [1]}', "expecting only one of 'inputs' or 'instances' keys to exist "),
        ('{"instances": 1}', "Expecting 'instances' to be an list/array"),
        ('{"instances": []}', "No values in 'instances' array"),
        ('{"signature_name": 100, "instances": [1]}', "'signature_name' key must be a string value."),
        ('{"signature_name": "x", "instances": [1]}', 'Serving signature name: "x" not found in signature def'),
        (
            '{"instances": ["x"]}',
            "Failed to process element: 0 of 'instances' list. "
            'Error: INVALID_ARGUMENT: JSON Value: "x" Type: String is not of expected type: float',
        ),
        ('{"inputs": [true]}', "JSON Value: true Type: True is not of expected type: float"),
        ('{"inputs": [[1, 2], [1]]}', "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
        ('{"instances": [[[1, 2], [1]]]}', "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
        ('{"instances": [[1], [1, 2]]}', "Expecting tensor size: 1 but got: 2"),
        ('{"instances": [{"y": 1}]}', "JSON object: does not have named input: y"),
        ('{"inputs": {"y": 1}}', "Missing named input: x in 'inputs' object."),
        ('{"instances":' + "[" * 50_000 + "]" * 50_000 + "}", "nested deeper than"),
    ],
)
def test_what_a_body_lacks_is_told_in_the_references_words(url, body, message):
    status, words = told(post(f"{url}/session:predict", body))

    assert status == 400
    assert message in words
    assert len(words) < 600


def test_a_row_must_have_just_the_signatures_inputs(url):
    def words(rows: list[Any]) -> str:
        return told(post(f"{url}/module:predict", {"instances": rows}))[1]

    assert words([1]).startswith("instances is a plain list, but expecting list of objects")
    assert words([{"a": 1}]).endswith('JSON object: {"a": 1} keys must be equal to: a,b')
    assert words([{"a": 1, "b": 1}, 1]) == "Expecting object but got list at item 1 of input list"


def test_rest_has_no_defaults(url):
    status, message = told(post(f"{url}/module:predict", {"signature_name": "scaled", "inputs": {"x": [1]}}))

    assert (status, message) == (400, "Missing named input: by in 'inputs' object.")


def test_outputs_without_a_common_batch_are_no_rows(url):
    total = {"signature_name": "total", "instances": [1, 2]}
    uneven = {"signature_name": "uneven", "instances": [1, 2]}

    assert told(post(f"{url}/module:predict", total)) == (400, "Tensor name: y has no shape information ")
    assert told(post(f"{url}/module:predict", uneven))[1].endswith("has inconsistent batch size: 1 expecting: 2")
    assert post(f"{url}/module:predict", {"signature_name": "total", "inputs": [1, 2]}).json() == {"outputs": 3.0}


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("nobody:predict", '{"instances": [1]}', 404, "Servable not found for request: Latest(nobody)"),
        ("nobody/versions/50:predict", '{"instances": [1]}', 404, "Servable not found for request: Specific(nobody, 50)"),
        ("nobody:predict", "{", 400, "JSON Parse error: Missing a name for object member. at offset: 1"),
        ("nobody:classify", '{"examples": 1}', 400, 'JSON Value: {"examples": 1} Expecting'),
        ("session/labels/nobody:predict", '{"instances": [1]}', 400, "Unrecognized servable version label: nobody"),
        ("session/versions/9223372036854775808:regress", "", 400, "Failed to convert version: 9223372036854775808 to numeric."),
        ("session:classify", '{"signature_name": "none", "examples": [{}]}', 400, "No signature was found with the name: none"),
    ],
)
def test_the_body_is_read_before_the_model_is_looked_up(url, path, body, status, message):
    got, words = told(post(f"{url}/{path}", body))

    assert got == status
    assert words.startswith(message)


def test_classify_answers_labels_with_scores(url):
    rows = [{"x": 2.0, "word": "good"}, {"x": [4.0], "word": {"b64": "YmFk"}}]
    both = post(f"{url}/session:classify", {"signature_name": "classify_both", "examples": rows})
    scores = post(f"{url}/session/versions/1:classify", {"signature_name": "classify_scores", "examples": rows})

    assert both.json() == {"results": [[["good", 4.0], ["other", -3.0]], [["bad", 5.0], ["other", -4.0]]]}
    assert scores.json() == {"results": [[["", 3.0], ["", -2.0]], [["", 4.0], ["", -3.0]]]}


def test_regress_answers_numbers_and_the_context_counts_for_all(url):
    body = {"signature_name": "regress_flat", "context": {"word": "any"}, "examples": [{"x": 2.0}, {"x": 2.4}, {}]}
    whole = {"signature_name": "counted_features", "examples": [{"n": [1, True]}, {"n": 4}]}
    labels = {"signature_name": "classify_labels", "context": {"word": "same"}, "examples": [{"x": 1.5}]}

    assert post(f"{url}/session:regress", body).json() == {"results": [4.0, 4.2, 3.0]}
    assert post(f"{url}/module:regress", whole).json() == {"results": [2.0, 4.0]}
    assert post(f"{url}/session:classify", labels).json() == {"results": [[["same", 0.0], ["other", 0.0]]]}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "JSON Value: {} When method is classify, key 'examples' is expected and was not found"),
        ({"examples": 1}, "JSON Value: {\"examples\": 1} Expecting 'examples' value to be an list/array"),
        ({"examples": []}, "JSON Value: {\"examples\": []} 'examples' value is an empty array"),
        ({"examples": [1]}, "Example must be JSON object but got JSON Number"),
        ({"context": [], "examples": [{}]}, "Example must be JSON object but got JSON Array"),
        ({"examples": [{"x": None}]}, "Feature: x has element with unexpected JSON type: Null"),
        ({"examples": [{"x": [[1]]}]}, "Feature: x has element with unexpected JSON type: Array"),
        ({"examples": [{"x": {"y": 1}}]}, "Feature: x has element with unexpected JSON type: Object"),
        ({"examples": [{"x": [1, 1.5]}]}, "Unexpected element type in feature: x expecting type: int64"),
        ({"examples": [{"x": [1.5, 1]}]}, "Unexpected element type in feature: x expecting type: float"),
        ({"examples": [{"x": ["a", True]}]}, "Unexpected element type in feature: x expecting type: bytes"),
        ({"examples": [{"x": 2**63}]}, "Feature: x has uint64_t element. Only int64_t is supported."),
        ({"signature_name": 1, "examples": [{}]}, "'signature_name' key must be a string value."),
    ],
)
@pytest.mark.parametrize("method", ["classify", "regress"])
def test_examples_that_are_none_are_refused(url, method, body, message):
    status, words = told(post(f"{url}/session:{method}", body))

    assert status == 400
    assert words.endswith(message)


def test_status_tells_versions_as_text(url):
    def version(number: str) -> dict[str, Any]:
        return {"version": number, "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}

    assert httpx.get(f"{url}/session").json() == {"model_version_status": [version("2"), version("1")]}
    assert httpx.get(f"{url}/session/versions/2").json() == {"model_version_status": [version("2")]}
    assert httpx.get(f"{url}/session/labels/stable").json()["model_version_status"][-1] == version("1")


def test_status_of_what_is_not_there_is_not_found(url):
    assert told(httpx.get(f"{url}/nobody")) == (404, "Could not find any versions of model nobody")
    assert told(httpx.get(f"{url}/session/versions/9")) == (404, "Could not find version 9 of model session")


def test_metadata_is_the_signatures_with_every_field(url):
    answer = httpx.get(f"{url}/session/metadata").json()
    signature = answer["metadata"]["signature_def"]["signature_def"]["regress_flat"]

    assert answer["model_spec"] == {"name": "session", "signature_name": "", "version": "2"}
    assert signature["method_name"] == "tensorflow/serving/regress"
    assert signature["inputs"] == {
        "inputs": {
            "dtype": "DT_STRING",
            "tensor_shape": {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False},
            "name": "examples:0",
        }
    }
    assert httpx.get(f"{url}/session/versions/1/metadata").json()["model_spec"]["version"] == "1"
    assert "__saved_model_init_op" in httpx.get(f"{url}/module/metadata").json()["metadata"]["signature_def"]["signature_def"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/foo"),
        ("POST", "/v1/foo"),
        ("POST", "/v1/models"),
        ("GET", "/v1/models/debug/model_name"),
        ("GET", "/v1/models/foo:predict"),
        ("GET", "/v1/models/foo/version/50:predict"),
        ("POST", "/v1/models/foo/versions/HELLO:regress"),
        ("POST", "/v1/models/foo/versions/50/labels/some_label:regress"),
        ("POST", "/v1/models/foo/metadata"),
        ("POST", "/v1/models/session:nonsense"),
        ("PUT", "/v1/models/session:predict"),
        ("DELETE", "/v1/models/session"),
        ("GET", "/v1/"),
    ],
)
def test_any_other_path_below_the_prefix_is_malformed(url, method, path):
    answer = httpx.request(method, url.removesuffix("/v1/models") + path)

    assert told(answer) == (400, f"Malformed request: {method} {path}")


def test_no_name_is_told_and_paths_beyond_the_prefix_are_unknown(url):
    root = url.removesuffix("/v1/models")

    assert told(httpx.get(url)) == (400, "Missing model name in request.")
    assert [httpx.get(root + path).status_code for path in ("/", "/v1", "/v2/models", "/metrics")] == [404] * 4


def test_a_preflight_needs_an_origin_and_cors_headers_need_the_flag(url):
    asked = httpx.options(f"{url}/session:predict", headers={"Origin": "http://example.com"})

    assert asked.status_code == 200
    assert not [name for name in asked.headers if name.startswith("access-control")]
    assert told(httpx.options(f"{url}/session:predict")) == (400, "Origin header is missing in CORS preflight")


def test_with_the_flag_any_sites_script_may_read_every_answer(other_url):
    for answer in (httpx.get(f"{other_url}/module"), httpx.get(f"{other_url}/nobody"), post(f"{other_url}/module:predict", {})):
        assert answer.headers["access-control-allow-origin"] == "*"


def test_a_gzip_body_is_read(url):
    body = gzip.compress(b'{"instances": [2]}')
    answer = post(f"{url}/session:predict", body, headers={"Content-Encoding": "gzip"})

    assert answer.json() == {"predictions": [4.0]}


@pytest.mark.parametrize(
    ("body", "encoding", "status", "message"),
    [
        (gzip.compress(b" " * 200_000_000, 9), "gzip", 413, "the body is longer than"),
        (b" " * 17_000_000, "identity", 413, "the body is longer than"),
        (b"no gzip", "gzip", 400, "the body is not gzip"),
        (gzip.compress(b'{"instances": [2]}')[:-9], "gzip", 400, "the gzip body ends early"),
        (b"{}", "br", 415, "only gzip is understood"),
    ],
)
def test_a_body_that_is_too_much_or_no_gzip_is_refused(url, body, encoding, status, message):
    got, words = told(post(f"{url}/session:predict", body, headers={"Content-Encoding": encoding}))

    assert got == status
    assert words.startswith(message)


def test_a_call_that_takes_longer_than_the_flag_allows_is_ended(other_url):
    body = {"signature_name": "slow", "inputs": 1_500_000}

    assert told(post(f"{other_url}/module:predict", body))[0] == 504


def test_a_body_that_stops_half_way_hurts_nobody(url):
    host, port = url.removeprefix("http://").removesuffix("/v1/models").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST /v1/models/session:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")

    assert post(f"{url}/session:predict", {"instances": [2]}).status_code == 200
