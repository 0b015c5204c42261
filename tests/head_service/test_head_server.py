"""What the head server is asked for, and how; and scores without one: a version is loaded for them, wherever it lies."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients.wire.catalogue import Manifest, TrunkRef
from clients.wire.credentials import Credentials
from clients.wire.metadata import MODEL_SERVICE, PREDICTION_SERVICE
from clients.wire.tensors import fill_tensor
from clients.wire.tfs import serving_pb2 as pb
from head_service.bundling import asking
from head_service.errors import ManifestError
from head_service.head_server import loaded, wait_until_available
from head_service.object_store import ObjectStore
from head_service.repository import Repository
from tests.clients.fakes import serving
from tests.head_service.serving.saved_models import WEIGHTS, Linear, save, seal
from tests.head_service.versions_on_disk import FINGERPRINT

SPAM = Manifest(name="spam", version=1, labels=("ham", "spam"), width=4, trunk=TrunkRef("tiny", FINGERPRINT))


async def test_whoever_waits_for_a_version_or_has_it_scored_shows_the_key(tmp_path: Path) -> None:
    seen: list[str] = []

    async def status(_: bytes, context: Any) -> bytes:
        seen.append(dict(context.invocation_metadata())["authorization"])
        answer = pb.GetModelStatusResponse()
        answer.model_version_status.add(version=1, state=30)
        return answer.SerializeToString()

    async def predict(data: bytes, context: Any) -> bytes:
        seen.append(dict(context.invocation_metadata())["authorization"])
        answer = pb.PredictResponse()
        answer.model_spec.CopyFrom(pb.PredictRequest.FromString(data).model_spec)
        fill_tensor(answer.outputs["scores"], np.ones((1, 2), np.float32))
        return answer.SerializeToString()

    def ask(address: str) -> None:
        shown = Credentials("tlk_heads")
        wait_until_available(address, "spam", 1, credentials=shown)
        with asking(address, Repository(tmp_path), shown) as asked:
            asked(SPAM, np.ones((1, 4), np.float32))

    handlers = {f"/{MODEL_SERVICE}/GetModelStatus": status, f"/{PREDICTION_SERVICE}/Predict": predict}
    async with serving(handlers) as address:
        await asyncio.to_thread(ask, address)

    assert ["Bearer tlk_heads"] * 2 == seen


def export(directory: Path, version: int) -> None:
    save(Linear(WEIGHTS), directory)
    seal(directory, "spam", version)


def test_a_version_in_an_object_store_is_scored_by_a_copy_that_is_what_its_manifest_says(
    s3: Callable[..., ObjectStore], tmp_path: Path
) -> None:
    store = s3()
    inputs = {"embedding": np.eye(4, dtype=np.float32)}
    near, far = Repository(tmp_path), Repository(store)
    for repository in (near, far):
        repository.publish("spam", export, fingerprint=FINGERPRINT)

    there, here = (loaded(repository, repository.manifest("spam", 1), inputs) for repository in (far, near))

    assert there.shape == (4, 2)
    assert there.tolist() == here.tolist()

    graph = "spam/1/saved_model.pb"
    store.write(graph, b"other", before=store.read(graph))
    with pytest.raises(ManifestError, match=r"changed saved_model\.pb"):
        loaded(far, far.manifest("spam", 1), inputs)
