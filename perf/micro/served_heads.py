"""A head server of its own for the measurements of serving: linear heads of the usual width, made without training."""

import asyncio
import contextlib
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from clients.wire.catalogue import MANIFEST_PATH, Manifest, TrunkRef, encode
from clients.wire.tfs import serving_pb2 as pb
from head_service.manifest import hash_files

WIDTH: Final = 384
LABELS: Final = ("no", "yes")
INPUT: Final = "embedding"
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


def stage(model: Path, folder: Path, name: str, version: int) -> Path:
    """Copy *model* into *folder* under a name that no server looks at, and write its manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    staged = folder / f".tmp-{version}"
    shutil.copytree(model, staged)
    trunk = TrunkRef("none", f"sha256:{'0' * 64}")
    manifest = Manifest(name=name, version=version, labels=LABELS, width=WIDTH, trunk=trunk)
    (staged / MANIFEST_PATH).write_bytes(encode(msgspec.structs.replace(manifest, files=hash_files(staged))))
    return staged


async def _export(model: Path) -> None:
    """In a process of its own: TensorFlow takes seconds to load, and its memory slows what is measured beside it."""
    command = [sys.executable, "-m", "perf.micro.linear_head", str(model)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE)
    _, said = await process.communicate()
    if process.returncode:
        raise SystemExit(f"no head could be made: {said.decode(errors='replace').strip().splitlines()[-1]}")


@contextlib.asynccontextmanager
async def served(*names: str, flags: tuple[str, ...] = ()) -> AsyncIterator[ServedHeads]:
    """A head server in a process of its own with version 1 of the heads *names*.

    Raises:
        SystemExit: it could not be started.
    """
    with tempfile.TemporaryDirectory() as scratch:
        base, model = Path(scratch) / "heads", Path(scratch) / "model"
        await _export(model)
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
