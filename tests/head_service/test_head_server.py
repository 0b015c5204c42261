"""Scores without a head server: a version is loaded for them, wherever it lies."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from head_service.errors import ManifestError
from head_service.head_server import loaded
from head_service.object_store import ObjectStore
from head_service.repository import Repository
from tests.head_service.serving.saved_models import WEIGHTS, Linear, save, seal
from tests.head_service.versions_on_disk import FINGERPRINT


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
