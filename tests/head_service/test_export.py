from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from clients.wire.catalogue import Manifest, TrunkRef
from clients.wire.tensors import from_tensor
from clients.wire.tfs import serving_pb2 as pb
from head_service.export import LABELS_PATH, NUM_GOLDEN, WARMUP_PATH, WARMUP_ROWS, export_linear
from head_service.manifest import verify
from head_service.repository import Repository
from head_service.training.linear import LinearHead
from tests.head_service.versions_on_disk import FINGERPRINT

WIDTH = 6
LABELS = ("art", "geld — économie", "sport")
TEMPERATURE = 1.7
TEXTS = [f"text {number}" for number in range(12)]


def inputs() -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=(len(TEXTS), WIDTH)).astype(np.float32)


def head() -> LinearHead:
    random = np.random.default_rng(0)
    weights, bias = random.normal(size=(WIDTH, 3)).astype(np.float32), random.normal(size=3).astype(np.float32)
    return LinearHead(weights, bias, LABELS, 4.0)


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def expected() -> NDArray[Any]:
    made = head()
    return softmax((inputs().astype(np.float64) @ made.weights + made.bias) / TEMPERATURE)


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = Repository(tmp_path_factory.mktemp("exported"))

    def export(directory: Path, number: int) -> None:
        trunk = TrunkRef("tiny", FINGERPRINT, "fake")
        manifest = Manifest(name="news", version=number, labels=LABELS, temperature=TEMPERATURE, width=WIDTH, trunk=trunk)
        export_linear(head(), manifest, inputs(), TEXTS, directory)

    return repository.path("news", repository.publish("news", export, fingerprint=FINGERPRINT))


def test_plain_tensorflow_loads_it_and_scores_as_numpy_does(version: Path) -> None:
    import tensorflow as tf

    answer = tf.saved_model.load(str(version)).signatures["serving_default"](embedding=tf.constant(inputs()))

    assert {"scores", "logits"} == answer.keys()
    np.testing.assert_allclose(answer["scores"].numpy(), expected(), atol=1e-5)
    np.testing.assert_allclose(softmax(answer["logits"].numpy()), expected(), atol=1e-5)


def test_the_files_are_those_of_the_manifest(version: Path) -> None:
    manifest = verify(version)

    assert {"saved_model.pb", LABELS_PATH, WARMUP_PATH} < manifest.files.keys()
    assert LABELS == manifest.labels
    assert manifest.created.endswith("+00:00")


def test_the_labels_stand_one_a_line_in_the_order_of_the_scores(version: Path) -> None:
    assert "".join(f"{label}\n" for label in LABELS) == (version / LABELS_PATH).read_text(encoding="utf-8")


def test_the_golden_examples_are_the_first_texts_with_their_scores(version: Path) -> None:
    golden = verify(version).golden

    assert TEXTS[:NUM_GOLDEN] == [example.text for example in golden]
    np.testing.assert_allclose([example.scores for example in golden], expected()[:NUM_GOLDEN], atol=1e-5)
    assert [LABELS[index] for index in expected()[:NUM_GOLDEN].argmax(axis=1)] == [example.label for example in golden]


def test_the_warm_up_file_is_a_tfrecord_of_predict_requests(version: Path) -> None:
    import tensorflow as tf

    records = [bytes(record.numpy()) for record in tf.data.TFRecordDataset(str(version / WARMUP_PATH))]
    requests = [pb.PredictionLog.FromString(record).predict_log.request for record in records]

    assert [(rows, WIDTH) for rows in WARMUP_ROWS] == [from_tensor(request.inputs["embedding"]).shape for request in requests]
    assert {("news", "serving_default")} == {
        (request.model_spec.name, request.model_spec.signature_name) for request in requests
    }


def test_a_head_published_with_one_held_out_text_has_one_golden_example(tmp_path: Path) -> None:
    trunk = TrunkRef("tiny", FINGERPRINT)
    manifest = Manifest(name="news", version=1, labels=LABELS, width=WIDTH, trunk=trunk)

    export_linear(head(), manifest, inputs()[:1], TEXTS[:1], tmp_path)

    assert 1 == len(verify(tmp_path).golden)
