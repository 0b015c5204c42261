import hashlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from clients.wire.catalogue import Manifest, Task, TrunkRef, View
from clients.wire.tensors import from_tensor
from clients.wire.tfs import inference_pb2
from head_service.errors import ManifestError
from head_service.export import LABELS_PATH, WARMUP_TOKENS, export_head
from head_service.exporting import NUM_GOLDEN, WARMUP_ROWS
from head_service.manifest import WARMUP_PATH, verify
from head_service.serving.servable import Servable
from head_service.training.features import Features, TokenFeatures, inputs_of
from head_service.training.heads import TOKEN_TYPES, Head, HeadSpec, HeadType, scores_of
from head_service.training.linear_head import LinearHead
from head_service.training.network import NetworkHead, initial_weights

WIDTH = 6
LABELS = ("art", "money", "sport")
FINGERPRINT = "sha256:" + "1" * 64
TYPES: tuple[HeadType, ...] = ("linear", "mix", "mlp", "fasttext", "attention", "textcnn")


def random_rows(num_rows: int, seed: int = 1, width: int = WIDTH) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 1, (num_rows, width)).astype(np.float32)


LINEAR = LinearHead(random_rows(len(LABELS), seed=2).T.copy(), np.array([0.5, -1.0, 2.0], np.float32), LABELS)


def head_of(head_type: HeadType, task: Task = "single_label") -> NetworkHead:
    """A head with random weights, standardisation included."""
    spec = HeadSpec(head_type, WIDTH, 2 if head_type == "mix" else 1)
    random = np.random.default_rng(4)
    weights = initial_weights(spec, 5, len(LABELS), random)
    weights |= {"shift": random_rows(1, 7)[0], "scale": np.abs(random_rows(1, 8)[0]) + np.float32(0.5)}
    return NetworkHead(spec, task, LABELS, {name: array + np.float32(0.01) for name, array in weights.items()})


def features_for(head: Head, num_texts: int = 9) -> Features:
    if not head.spec.reads_tokens:
        return random_rows(num_texts, seed=3)
    lengths = np.random.default_rng(5).integers(1, 12, num_texts)
    return TokenFeatures.of([random_rows(int(length), seed) for seed, length in enumerate(lengths)])


def manifest_for(head: Head, **fields: Any) -> Manifest:
    tokens = head.spec.reads_tokens
    whole = Manifest(
        name="topic",
        version=4,
        task=head.task,
        labels=head.labels,
        width=WIDTH,
        trunk=TrunkRef("tiny", FINGERPRINT, "fake"),
        view=View("tokens", normalize=False) if tokens else View(),
        head_type=head.head_type,
        input="tokens" if tokens else "embedding",
        mask_input="mask" if tokens else "",
    )
    return msgspec.structs.replace(whole, **fields)


def exported(directory: Path, head: Head = LINEAR, *, num_texts: int = 9, **fields: Any) -> Path:
    directory.mkdir(parents=True)
    texts = [f"text {n}" for n in range(num_texts)]
    export_head(head, manifest_for(head, **fields), features_for(head, num_texts), texts, directory)
    return directory


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("topic") / "4")


def answered(directory: Path, *inputs: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """What plain TensorFlow makes of it."""
    # The module must outlive its signature, which holds its variables by weak reference only.
    module = tf.saved_model.load(str(directory))
    named = dict(zip(("tokens", "mask") if len(inputs) > 1 else ("embedding",), map(tf.constant, inputs), strict=True))
    return {name: value.numpy() for name, value in module.signatures["serving_default"](**named).items()}


@pytest.mark.parametrize("head_type", TYPES)
def test_what_is_exported_gives_the_scores_of_training(tmp_path: Path, head_type: HeadType) -> None:
    head = head_of(head_type)
    directory = exported(tmp_path / "1", head, temperature=2.5)
    features = features_for(head)
    inputs = inputs_of(features, np.arange(9))
    expected = scores_of(head.logits(features), head.task, 2.5)

    plain = answered(directory, *inputs)
    servable = Servable("topic", 4, directory)
    names = ("tokens", "mask") if head.spec.reads_tokens else ("embedding",)
    served = servable.run("", dict(zip(names, inputs, strict=True)), ("scores",))
    servable.close()

    np.testing.assert_allclose(expected, plain["scores"], atol=1e-5)
    np.testing.assert_allclose(expected, served["scores"], atol=1e-5)
    np.testing.assert_allclose(head.logits(features) / 2.5, plain["logits"], atol=1e-5)


@pytest.mark.parametrize("task", ["multi_label", "regression"])
def test_other_tasks_have_scores_of_their_own_kind(tmp_path: Path, task: Task) -> None:
    head = head_of("mlp", task)

    answer = answered(exported(tmp_path / "1", head, temperature=2.0), features_for(head))  # type: ignore[arg-type]

    np.testing.assert_allclose(scores_of(head.logits(features_for(head)), task, 2.0), answer["scores"], atol=1e-5)


def test_sigmoids_that_are_scaled_to_sum_to_one_are_exported_as_such(tmp_path: Path) -> None:
    head = LinearHead(LINEAR.kernel, LINEAR.bias, LABELS, one_vs_rest=True)
    rows = random_rows(9)
    sigmoids = 1 / (1 + np.exp(-(rows @ head.kernel + head.bias)))

    answer = answered(exported(tmp_path / "1", head), rows)

    np.testing.assert_allclose(sigmoids / sigmoids.sum(axis=1, keepdims=True), answer["scores"], atol=1e-5)


@pytest.mark.parametrize("head_type", TYPES)
def test_the_same_weights_are_the_same_file(tmp_path: Path, head_type: HeadType) -> None:
    name = "variables/variables.data-00000-of-00001"
    first, second = (exported(tmp_path / number / "1", head_of(head_type)) / name for number in ("one", "two"))

    assert hashlib.sha256(first.read_bytes()).digest() == hashlib.sha256(second.read_bytes()).digest()


@pytest.mark.parametrize("num_rows", [1, 33])
def test_plain_tensorflow_gives_the_scores_of_the_arithmetic(version: Path, num_rows: int) -> None:
    rows = random_rows(num_rows, seed=3)
    logits = rows.astype(np.float64) @ LINEAR.kernel + LINEAR.bias
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))

    answer = answered(version, rows)

    np.testing.assert_allclose(raised / raised.sum(axis=1, keepdims=True), answer["scores"], atol=1e-5)
    np.testing.assert_allclose(logits, answer["logits"], atol=1e-5)


@pytest.mark.parametrize("head_type", ["linear", "textcnn"])
def test_the_signature_is_the_one_the_manifest_names(tmp_path: Path, head_type: HeadType) -> None:
    directory = exported(tmp_path / "1", head_of(head_type))
    manifest = verify(directory)
    served = tf.saved_model.load(str(directory)).signatures["serving_default"]
    specs = {name: (spec.dtype, spec.shape.as_list()) for name, spec in served.structured_input_signature[1].items()}

    if head_type in TOKEN_TYPES:
        expected = {manifest.input: (tf.float32, [None, None, WIDTH]), manifest.mask_input: (tf.float32, [None, None])}
    else:
        expected = {manifest.input: (tf.float32, [None, WIDTH])}
    assert expected == specs
    assert {manifest.output, "logits"} == set(served.structured_outputs)


def test_the_manifest_names_every_other_file(version: Path) -> None:
    files = verify(version).files

    assert {"saved_model.pb", "variables/variables.index", LABELS_PATH, WARMUP_PATH} <= files.keys()


def test_the_labels_are_one_a_line_in_the_order_of_the_scores(version: Path) -> None:
    assert list(LABELS) == (version / LABELS_PATH).read_text().splitlines()


@pytest.mark.parametrize("head_type", ["linear", "attention"])
def test_golden_examples_are_what_the_version_answers(tmp_path: Path, head_type: HeadType) -> None:
    head = head_of(head_type)
    directory = exported(tmp_path / "1", head)
    golden = verify(directory).golden

    scores = answered(directory, *inputs_of(features_for(head), np.arange(NUM_GOLDEN)))["scores"]
    assert [f"text {n}" for n in range(NUM_GOLDEN)] == [example.text for example in golden]
    np.testing.assert_allclose([example.scores for example in golden], scores, atol=1e-5)
    assert [LABELS[index] for index in scores.argmax(axis=1)] == [example.label for example in golden]


def test_few_held_out_texts_make_few_golden_examples(tmp_path: Path) -> None:
    directory = exported(tmp_path / "1", num_texts=2)

    assert ["text 0", "text 1"] == [example.text for example in verify(directory).golden]


@pytest.mark.parametrize("head_type", ["linear", "fasttext"])
def test_warmup_requests_are_of_several_sizes_and_ones_the_version_can_answer(tmp_path: Path, head_type: HeadType) -> None:
    directory = exported(tmp_path / "1", head_of(head_type))
    records = [record.numpy() for record in tf.data.TFRecordDataset(str(directory / WARMUP_PATH))]
    requests = [inference_pb2.PredictionLog.FromString(record).predict_log.request for record in records]
    manifest = verify(directory)
    shapes = [from_tensor(request.inputs[manifest.input]).shape for request in requests]

    assert {("topic", "serving_default")} == {(r.model_spec.name, r.model_spec.signature_name) for r in requests}
    if head_type in TOKEN_TYPES:
        assert [(*size, WIDTH) for size in zip(WARMUP_ROWS, WARMUP_TOKENS, strict=True)] == shapes
        masks = [from_tensor(request.inputs[manifest.mask_input]) for request in requests]
        assert list(zip(WARMUP_ROWS, WARMUP_TOKENS, strict=True)) == [mask.shape for mask in masks]
    else:
        assert [(rows, WIDTH) for rows in WARMUP_ROWS] == shapes
    Servable("topic", 4, directory).close()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"labels": ("art", "sport", "money")}, "labels"),
        ({"task": "multi_label"}, "task"),
        ({"width": WIDTH + 1}, "width"),
        ({"head_type": "mlp"}, "head_type"),
        ({"mask_input": "mask"}, "mask_input"),
    ],
)
def test_a_manifest_of_another_head_is_refused(tmp_path: Path, fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ManifestError, match=f"not of this head: {named}"):
        exported(tmp_path / "1", **fields)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    head = LinearHead(LINEAR.kernel * np.float32("nan"), LINEAR.bias, LABELS)

    with pytest.raises(ManifestError, match="not finite"):
        exported(tmp_path / "1", head)
    assert [] == list((tmp_path / "1").iterdir())
