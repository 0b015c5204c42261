"""What the official client sees over gRPC, row by row of the reference's behaviour."""

import base64
import struct

import pytest

from tests.contract.kinds import KINDS

pytestmark = pytest.mark.timeout(300)

INVALID = "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("situation", "code", "message"),
    [
        ("no spec", INVALID, "Missing ModelSpec"),
        ("no name", INVALID, "ModelSpec has no name specified."),
        ("model", "NOT_FOUND", "Servable not found for request: Latest(nobody)"),
        ("version", "NOT_FOUND", "Servable not found for request: Specific(module, 99)"),
        ("label", INVALID, "Unrecognized servable version label: nobody"),
        ("signature", "FAILED_PRECONDITION", 'Serving signature key "nothing" not found.'),
        (
            "missing",
            INVALID,
            "input size does not match signature: 1!=2 len({a}) != len({a,b}). Sent extra: {}. Missing but required: {b}.",
        ),
        (
            "extra",
            INVALID,
            "input size does not match signature: 3!=2 len({a,b,c}) != len({a,b}). Sent extra: {c}. Missing but required: {}.",
        ),
        (
            "wrong name",
            INVALID,
            "Signature input alias: b(feed name: serving_default_b:0) not found in request and no default value provided. "
            "Inputs expected to be in the request {a,c}, or default input alias set: ",
        ),
        ("default, wrong name", INVALID, "Inputs contains invalid name. Used request inputs: x, request input: c,x"),
        (
            "default, missing",
            INVALID,
            "Signature input alias: x(feed name: scaled_x:0) not found in request and no default value provided. "
            "Inputs expected to be in the request {by}, or default input alias set: by",
        ),
        (
            "default, extra",
            INVALID,
            "input size does not match signature: 3!=2 len({by,c,x}) != len({by,x}). Sent extra: {c}. Missing but required: {}.",
        ),
        ("broken", INVALID, "tensor parsing error: b"),
        ("huge", INVALID, "tensor parsing error: b"),
        (
            "filter",
            INVALID,
            "output tensor alias not found in signature: nothing Outputs expected to be in the set {product,sum}.",
        ),
        ("twice", INVALID, "duplicate output tensor alias: sum"),
    ],
)
def test_what_predict_refuses_is_told_as_the_reference_tells_it(official, situation, code, message):
    assert official["errors"][situation] == [code, message]


@pytest.mark.parametrize("situation", ["shape", "dtype"])
def test_what_the_graph_refuses_is_the_callers_fault(official, situation):
    assert official["errors"][situation][0] == INVALID


@pytest.mark.parametrize(
    ("situation", "first"),
    [
        ("model, then signature", "Servable not found"),
        ("signature, then inputs", "Serving signature key"),
        ("inputs, then filter", "input size does not match"),
        ("filter, then run", "output tensor alias not found"),
    ],
)
def test_of_two_faults_the_first_in_the_references_order_is_told(official, situation, first):
    assert official["errors"][situation][1].startswith(first)


@pytest.mark.parametrize(
    ("situation", "code", "message"),
    [
        ("no spec", INVALID, "Missing ModelSpec"),
        ("no name", INVALID, "ModelSpec has no name specified."),
        ("model", "NOT_FOUND", "Servable not found for request: Latest(nobody)"),
        ("version", "NOT_FOUND", "Servable not found for request: Specific(session, 99)"),
        ("signature", INVALID, "No signature was found with the name: nothing"),
        ("empty", INVALID, "Input is empty."),
        ("not parsed", INVALID, ""),
        ("two inputs", INVALID, "Expected one input Tensor."),
        ("three outputs", INVALID, "Expected one or two output Tensors, found 3"),
        ("other", INVALID, "No classification inputs found in SignatureDef: "),
        ("nothing", INVALID, 'Expected classification signature outputs to contain at least one of "classes" or "scores". '),
        ("flat", INVALID, "Expected Tensor shape: [batch_size num_classes] but got [2]"),
        ("double", INVALID, "Expected scores Tensor of DT_FLOAT. Got: DT_DOUBLE"),
        ("uneven", INVALID, "Tensors class and score should match in dim_size(1). Got 2 vs. 1"),
        ("regress, no spec", INVALID, "Missing ModelSpec"),
        ("regress, signature", INVALID, "No signature was found with the name: nope"),
        ("regress, empty", INVALID, "Input is empty."),
        ("regress, other", INVALID, "No regression outputs found in SignatureDef: "),
        ("two outputs", INVALID, "Expected one output Tensor."),
        ("matrix", INVALID, "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got [2,2]"),
        ("whole", INVALID, "Expected output Tensor of DT_FLOAT.  Got: DT_INT64"),
        ("short", INVALID, "Input batch size did not match output batch size: 2 vs. 1"),
        ("no task", INVALID, "ModelSpec has no name specified."),
        ("two models", INVALID, "All ModelSpecs in a MultiInferenceRequest must access the same model name."),
        ("nameless", INVALID, "Found ModelSpec with an empty model name."),
        ("same twice", INVALID, "Duplicate evaluation of signature: classify_both"),
        ("multi, signature", INVALID, "Requested signature not found in model graph: nothing"),
        ("multi, empty", INVALID, "Input is empty."),
        ("multi, model", "NOT_FOUND", "Servable not found for request: Latest(nobody)"),
        ("predict task", "UNIMPLEMENTED", "Unsupported signature method_name: tensorflow/serving/predict"),
    ],
)
def test_what_inference_over_examples_refuses_is_told_as_the_reference_tells_it(official, situation, code, message):
    told_code, told = official["inference errors"][situation]

    assert told_code == code
    assert told.startswith(message)


def test_classify_answers_labels_scores_or_both(official):
    results = official["results"]

    assert results["both"] == [
        [[["good", 4.0], ["other", -3.0]], [["none", 5.0], ["other", -4.0]]],
        ["session", 2, "classify_both"],
    ]
    assert results["labels"][0] == [[["good", 0.0], ["other", 0.0]], [["none", 0.0], ["other", 0.0]]]
    assert results["scores"][0] == [[["", 4.0], ["", -3.0]], [["", 5.0], ["", -4.0]]]


def test_the_contexts_features_are_every_examples(official):
    assert official["results"]["context"][0] == [[["same", 0.0], ["other", 0.0]]] * 2


def test_regress_answers_one_number_an_example_from_either_shape(official):
    assert official["results"]["flat"] == [[4.0, 5.0], ["session", 2, "regress_flat"]]
    assert official["results"]["column"] == [[4.0, 5.0], ["session", 2, "regress_column"]]


def test_exports_of_tensorflow_2_are_asked_although_their_method_is_predict(official):
    assert official["results"]["tf2 classify"] == [[[["up", 1.0]], [["down", -1.0]]], ["module", 1, "classified"]]
    assert official["results"]["tf2 regress"] == [[3.0, 4.0], ["module", 1, "counted_features"]]


def test_multi_inference_answers_each_task_in_order(official):
    first, second = official["results"]["multi"]

    assert first == [["session", 2, "classify_both"], "classification_result", official["results"]["both"][0], []]
    assert second == [["session", 2, "regress_column"], "regression_result", [], [4.0, 5.0]]


@pytest.mark.parametrize(("kind", "field"), KINDS.items())
def test_a_tensor_of_each_kind_comes_and_goes(official, kind, field):
    seen = official["tensors"][kind]

    assert seen["same"] == [True, True]
    assert seen["fields"] == [field]
    assert seen["shape"] == [2, 2]


def test_texts_keep_every_byte_and_never_lie_in_tensor_content(official):
    assert official["tensors"]["string"] == [["a\0", "é".encode().decode("latin-1"), "\xff"], False, "a\0"]
    assert official["texts"] == [["a"], 1]


def test_outputs_come_as_tensor_content_when_the_flag_says_so(official):
    assert official["content"] == [base64.b64encode(struct.pack("<f", 3)).decode(), 0]


def test_predict_answers_all_outputs_or_those_asked_for(official):
    assert official["predict"]["two"] == {"sum": [3.0], "product": [2.0]}
    assert official["predict"]["filtered"] == {"product": [2.0]}


def test_a_typed_field_repeats_its_last_value_and_an_empty_one_means_zeros(official):
    assert official["predict"]["repeated"] == {"y": [3.5, 4.0, 4.0]}
    assert official["predict"]["zeros"] == {"y": [3.0, 3.0, 3.0]}


def test_an_absent_input_takes_the_signatures_default(official):
    assert official["predict"]["default"] == {"y": [6.0]}
    assert official["predict"]["no default"] == {"y": [10.0]}


def test_the_answer_names_the_version_and_signature_used(official):
    assert official["predict"]["latest"] == [{"y": [4.0]}, ["session", 2, "serving_default"]]
    assert official["predict"]["chosen"] == [{"y": [3.0]}]
    assert official["predict"]["labelled"] == [{"y": [3.0]}]


def test_serialised_examples_may_be_predicted_on(official):
    assert official["predict"]["examples"] == {"outputs": [4.0]}


def test_a_keras_export_is_served(official):
    assert official["predict"]["keras"] == [[[7.0, 7.0]]]


def test_metadata_tells_every_signature(official):
    methods = official["models"]["methods"]

    assert methods["classify_both"] == "tensorflow/serving/classify"
    assert methods["regress_flat"] == "tensorflow/serving/regress"
    assert methods["serving_default"] == "tensorflow/serving/predict"
    assert official["models"]["inputs"] == {"inputs": [7, "examples:0"]}


def test_status_tells_versions_newest_first(official):
    assert official["models"]["all"] == [[2, 30, 0, ""], [1, 30, 0, ""]]
    assert official["models"]["one"] == [[1, 30, 0, ""]]


@pytest.mark.parametrize(
    ("situation", "code", "message"),
    [
        ("no field", INVALID, "GetModelMetadataRequest must specify at least one metadata_field"),
        ("other field", INVALID, "Metadata field asset is not supported"),
        ("metadata, model", "NOT_FOUND", "Servable not found for request: Latest(nobody)"),
        ("metadata, no spec", INVALID, "Missing ModelSpec"),
        ("status, model", "NOT_FOUND", "Could not find any versions of model nobody"),
        ("status, version", "NOT_FOUND", "Could not find version 99 of model session"),
        ("status, no spec", INVALID, "Missing ModelSpec"),
    ],
)
def test_what_is_not_known_of_a_model_is_told(official, situation, code, message):
    assert official["models"]["errors"][situation] == [code, message]


def test_work_whose_deadline_passed_while_it_waited_is_not_done(official):
    late = official["late"]

    assert late["was busy"], "the calls before it should have kept every thread busy for longer"
    assert late["told"][0] == "DEADLINE_EXCEEDED"
    assert late["count"] == 0
