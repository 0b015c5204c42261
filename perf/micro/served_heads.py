"""A head server of its own for the measurements of serving: linear heads of the usual width, made without training."""

import asyncio
import contextlib
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import tensorflow as tf

from clients.wire.catalogue import MANIFEST_PATH, Manifest, TrunkRef, encode
from clients.wire.tensors import to_tensor
from clients.wire.tfs import inference_pb2
from clients.wire.tfs import serving_pb2 as pb
from head_service.manifest import WARMUP_PATH, hash_files

WIDTH: Final = 384
LABELS: Final = ("no", "yes")
INPUT: Final = "embedding"
WARMUP_ROWS: Final = (1, 8, 32)
READY_SECONDS: Final = 120.0


@dataclass(frozen=True, slots=True)
class ServedHeads:
    """A running head server, and where its versions come from."""

    address: str
    pid: int
    base: Path
    model: Path

    def stage(self, name: str, version: int) -> Path:
        """Write a version of head *name* beside the others, all but its last rename."""
        return stage(self.model, self.base / name, name, version)


class _Linear(tf.Module):  # type: ignore[misc]  # TensorFlow is published without types
    def __init__(self) -> None:
        super().__init__()
        self.weights = tf.Variable(np.random.default_rng(0).standard_normal((WIDTH, len(LABELS))).astype(np.float32))
        self.bias = tf.Variable(np.zeros(len(LABELS), np.float32))

    @tf.function(input_signature=[tf.TensorSpec([None, WIDTH], tf.float32, name=INPUT)])  # type: ignore[untyped-decorator]
    def predict(self, embedding: Any) -> dict[str, Any]:
        logits = tf.matmul(embedding, self.weights) + self.bias
        return {"scores": tf.nn.softmax(logits), "logits": logits}


def export(directory: Path) -> None:
    """Write a linear head without its manifest, with the warm-up that heads have."""
    module = _Linear()
    tf.saved_model.save(module, str(directory), signatures={"serving_default": module.predict})
    (directory / WARMUP_PATH).parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(directory / WARMUP_PATH)) as writer:
        for rows in WARMUP_ROWS:
            request = pb.PredictRequest(inputs={INPUT: to_tensor(np.zeros((rows, WIDTH), np.float32))})
            writer.write(inference_pb2.PredictionLog(predict_log=pb.PredictLog(request=request)).SerializeToString())


def stage(model: Path, folder: Path, name: str, version: int) -> Path:
    """Copy *model* into *folder* under a name that no server looks at, and write its manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    staged = folder / f".tmp-{version}"
    shutil.copytree(model, staged)
    trunk = TrunkRef("none", f"sha256:{'0' * 64}")
    manifest = Manifest(name=name, version=version, labels=LABELS, width=WIDTH, trunk=trunk)
    (staged / MANIFEST_PATH).write_bytes(encode(msgspec.structs.replace(manifest, files=hash_files(staged))))
    return staged


@contextlib.asynccontextmanager
async def served(*names: str, flags: tuple[str, ...] = ()) -> AsyncIterator[ServedHeads]:
    """A head server in a process of its own with version 1 of the heads *names*."""
    with tempfile.TemporaryDirectory() as scratch:
        base, model = Path(scratch) / "heads", Path(scratch) / "model"
        await asyncio.to_thread(export, model)
        config = pb.ModelServerConfig()
        for name in names:
            stage(model, base / name, name, 1).rename(base / name / "1")
            config.model_config_list.config.add(name=name, base_path=str(base / name))
        (base / "models.config").write_text(str(config))
        given = ["--port=0", "--rest_api_port=0", f"--model_config_file={base / 'models.config'}", "--allow_foreign_models=false"]
        given += ["--file_system_poll_wait_seconds=0.1", "--enable_serialization_as_tensor_content", *flags]
        command = [sys.executable, "-m", "head_service.serving", *given]
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        assert process.stdout is not None
        try:
            line = (await asyncio.wait_for(process.stdout.readline(), READY_SECONDS)).decode()
            if not line.startswith("serving "):
                raise SystemExit("the head server did not start")
            yield ServedHeads(line.split("grpc=")[1].split()[0], process.pid, base, model)
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()
