from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from clients.wire.catalogue import Manifest, TrunkRef
from clients.wire.tensors import from_tensor
from clients.wire.tfs import serving_pb2 as pb
from head_service.export import LABELS_PATH, NUM_GOLDEN, WARMUP_PATH, WARMUP_ROWS, export_linear
from head_service.manifest import verify
from head_service.training.linear import LinearHead

WIDTH = 6
LABELS = ("art", "money", "sport")
FINGERPRINT = "sha256:" + "1" * 64


def random_rows(num_rows: int, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 1, (num_rows, WIDTH)).astype(np.float32)


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    raised: NDArray[np.float64] = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


HEAD = LinearHead(random_rows(len(LABELS), seed=2).T.copy(), np.array([0.5, -1.0, 2.0], np.float32), LABELS, 1.0)


def exported(directory: Path, *, temperature: float = 1.0, num_texts: int = 9) -> Path:
    directory.mkdir()
    trunk = TrunkRef("tiny", FINGERPRINT, "fake")
    manifest = Manifest(name="topic", version=4, labels=LABELS, width=WIDTH, trunk=trunk, temperature=temperature)
    export_linear(HEAD, manifest, random_rows(num_texts), [f"text {n}" for n in range(num_texts)], directory)
    return directory


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("topic") / "4")


def signature(directory: Path) -> Any:
    # The module must outlive its signature, which holds its variables by weak reference only.
    module = tf.saved_model.load(str(directory))
    return lambda rows: module.signatures["serving_default"](embedding=tf.constant(rows))


@pytest.mark.parametrize("num_rows", [1, 33])
def test_plain_tensorflow_gives_the_scores_of_the_arithmetic(version: Path, num_rows: int) -> None:
    rows = random_rows(num_rows, seed=3)
    logits = rows.astype(np.float64) @ HEAD.weights + HEAD.bias

    answer = signature(version)(rows)

    np.testing.assert_allclose(softmax(logits), answer["scores"].numpy(), atol=1e-5)
    np.testing.assert_allclose(logits, answer["logits"].numpy(), atol=1e-5)


def test_the_temperature_is_in_the_scores(tmp_path: Path) -> None:
    rows = random_rows(5, seed=3)

    answer = signature(exported(tmp_path / "1", temperature=2.5))(rows)

    expected = softmax((rows.astype(np.float64) @ HEAD.weights + HEAD.bias) / 2.5)
    np.testing.assert_allclose(expected, answer["scores"].numpy(), atol=1e-5)
    np.testing.assert_allclose(HEAD.scores(rows, 2.5), answer["scores"].numpy(), atol=1e-5)


def test_the_signature_is_the_one_the_manifest_names(version: Path) -> None:
    manifest = verify(version)
    served = tf.saved_model.load(str(version)).signatures["serving_default"]

    (spec,) = served.structured_input_signature[1].values()
    assert {manifest.input} == set(served.structured_input_signature[1])
    assert (tf.float32, [None, WIDTH]) == (spec.dtype, spec.shape.as_list())
    assert {manifest.output, "logits"} == set(served.structured_outputs)


def test_the_manifest_names_every_other_file(version: Path) -> None:
    files = verify(version).files

    assert {"saved_model.pb", "variables/variables.index", LABELS_PATH, WARMUP_PATH} <= files.keys()


def test_the_labels_are_one_a_line_in_the_order_of_the_scores(version: Path) -> None:
    assert list(LABELS) == (version / LABELS_PATH).read_text().splitlines()


def test_golden_examples_are_what_the_version_answers(version: Path) -> None:
    golden = verify(version).golden

    scores = signature(version)(random_rows(9))["scores"].numpy()[:NUM_GOLDEN]
    assert [f"text {n}" for n in range(NUM_GOLDEN)] == [example.text for example in golden]
    np.testing.assert_allclose([example.scores for example in golden], scores, atol=1e-5)
    assert [LABELS[index] for index in scores.argmax(axis=1)] == [example.label for example in golden]


def test_few_held_out_texts_make_few_golden_examples(tmp_path: Path) -> None:
    directory = exported(tmp_path / "1", num_texts=2)

    assert ["text 0", "text 1"] == [example.text for example in verify(directory).golden]


def test_warmup_requests_are_ones_the_version_can_answer(version: Path) -> None:
    records = [record.numpy() for record in tf.data.TFRecordDataset(str(version / WARMUP_PATH))]
    requests = [pb.PredictionLog.FromString(record).predict_log.request for record in records]
    tensors = [from_tensor(request.inputs["embedding"]) for request in requests]

    assert {("topic", "serving_default")} == {(r.model_spec.name, r.model_spec.signature_name) for r in requests}
    assert [(rows, WIDTH) for rows in WARMUP_ROWS] == [tensor.shape for tensor in tensors]
    assert WARMUP_ROWS[-1] == signature(version)(tensors[-1])["scores"].shape[0]
