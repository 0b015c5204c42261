"""Regenerate the stubs beside the .proto files, or with `--check` fail when they are not what the .proto files say."""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROTOS = (
    "clients/wire/embedding.proto",
    "clients/wire/tfs/tensor.proto",
    "clients/wire/tfs/serving.proto",
    "clients/wire/tfs/inference.proto",
    "clients/wire/tfs/server.proto",
)
SUFFIXES = ("_pb2.py", "_pb2.pyi")


def generate(out: Path) -> None:
    """Write the message stubs of all PROTOS below *out*."""
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"--proto_path={ROOT}",
            # By path: the environment's programs are not on PATH unless it was activated.
            f"--plugin=protoc-gen-mypy={Path(sys.executable).with_name('protoc-gen-mypy')}",
            f"--python_out={out}",
            f"--mypy_out=quiet:{out}",
            *PROTOS,
        ],
        check=True,
        cwd=ROOT,
    )


def generated_names() -> list[str]:
    """The stubs' paths, relative to the repository root."""
    return [proto.removesuffix(".proto") + suffix for proto in PROTOS for suffix in SUFFIXES]


def drifted() -> list[str]:
    """The stubs that differ from what their .proto files would generate."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        return [
            name
            for name in generated_names()
            if not (ROOT / name).exists() or (ROOT / name).read_bytes() != (Path(scratch) / name).read_bytes()
        ]


def main() -> int:
    """Exit status: 0 when all is as it should be, 1 after naming the drifted stubs."""
    if "--check" not in sys.argv[1:]:
        generate(ROOT)
        return 0
    names = drifted()
    for name in names:
        print(f"{name} is not what its .proto says: run `python -m clients.wire.generate`")
    return 1 if names else 0


if __name__ == "__main__":
    raise SystemExit(main())
