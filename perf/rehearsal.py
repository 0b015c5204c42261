"""A trainer that trains nothing: small versions with true manifests, and pauses in which a process can be killed.

For `python -m head_service.control worker --trainer perf.rehearsal:train`. An order's *seed* is how many milliseconds it takes;
its head type is what happens: `linear` goes well, the others are in `_misbehave` and `_end`.
"""

import os
import signal
import time
from pathlib import Path
from typing import Final

import msgspec

from clients.wire.catalogue import MANIFEST_PATH, Manifest, Metrics, TrunkRef, encode
from head_service.control.words import Outcome, RunContext, RunResult, TrainingOrder
from head_service.errors import DataError
from head_service.lifecycle import Lifecycle, already_available
from head_service.manifest import hash_files
from head_service.training.dataset import read_dataset

TRUNK: Final = TrunkRef("rehearsed", "sha256:" + "0" * 64)
STEPS: Final = 20


def train(order: TrainingOrder, run: RunContext) -> Outcome:
    """See `head_service.control.words.Trainer`."""
    if run.published is not None:
        return _end(order, run, run.published)
    data = read_dataset(run.data, run.text_column, run.label_column)
    for step in range(STEPS):
        run.progress("embedding", step, STEPS)
        time.sleep(order.seed / 1000 / STEPS)
    run.say(f"fitting on {len(data.texts)} texts")
    _misbehave(order, run)
    labels = tuple(sorted(set(data.labels)))
    metrics = Metrics(0.9, 0.9, len(data.texts), 1, data.digest())
    version = run.repository.publish(
        order.head, lambda directory, number: _export(directory, order, number, labels, metrics), fingerprint=TRUNK.fingerprint
    )
    time.sleep(order.seed / 1000 / STEPS)
    return _end(order, run, version)


def _misbehave(order: TrainingOrder, run: RunContext) -> None:
    if order.head_type == "failing":
        raise DataError("the rehearsal is to fail")
    if order.head_type == "faulty":
        raise ValueError("a text that nobody may read")
    if order.head_type == "crashing":
        os.kill(os.getpid(), signal.SIGKILL)
    if order.head_type == "deaf":
        time.sleep(3_600)
    while order.head_type == "endless":
        run.progress("waiting", 0, 0)
        time.sleep(0.01)


def _end(order: TrainingOrder, run: RunContext, version: int) -> Outcome:
    if order.head_type == "refused":
        return Outcome(kind="refused", message="it is worse than the live one", result=RunResult(version=version))
    if order.publish == "live":
        Lifecycle(run.repository, already_available).promote(order.head, version)
    result = RunResult(version=version, is_live=order.publish == "live", metrics={"accuracy": 0.9})
    return Outcome(kind="succeeded", message=f"version {version}", result=result)


def _export(directory: Path, order: TrainingOrder, version: int, labels: tuple[str, ...], metrics: Metrics) -> None:
    (directory / "assets.extra").mkdir()
    (directory / "saved_model.pb").write_bytes(b"no graph, a rehearsal")
    manifest = Manifest(name=order.head, version=version, labels=labels, width=4, trunk=TRUNK, metrics=metrics)
    whole = msgspec.structs.replace(manifest, files=hash_files(directory))
    (directory / MANIFEST_PATH).write_bytes(encode(whole))
