"""The habits of the whole repository, held by tests."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("clients", "embedding_service", "gateway", "head_service", "perf", "trunkline")
SOURCES = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if not path.name.endswith("_pb2.py")]

HEAVY = {
    "torch": (
        "embedding_service/backend/torch.py",
        "perf/micro/gpu_encoder.py",
        "perf/finetune.py",
        "perf/topologies/serve_torch.py",
    ),
    "transformers": (
        "embedding_service/backend/torch.py",
        "perf/micro/gpu_encoder.py",
        "perf/finetune.py",
        "perf/topologies/serve_torch.py",
    ),
    "tensorflow": (
        "head_service/export.py",
        "head_service/lean_tensorflow.py",
        "head_service/serving/",
        "head_service/training/quiet_tensorflow.py",
        "perf/micro/head_call.py",
        "perf/micro/linear_head.py",
        "perf/topologies/export_whole_model.py",
    ),
    "onnxruntime": ("embedding_service/backend/", "embedding_service/models/", "perf/measuring/limit.py"),
    "openvino": ("embedding_service/backend/", "embedding_service/models/", "perf/measuring/limit.py"),
    "onnx": ("embedding_service/models/", "perf/measuring/limit.py", "perf/trunks.py"),
    "pyarrow": ("embedding_service/models/",),
    "sklearn": ("head_service/training/", "perf/micro/pass_cost.py"),
    "matplotlib": ("head_service/training/report/", "perf/reporting/figures.py"),
    "tensorflow_serving": (),
    "pickle": (),
    "zmq": ("embedding_service/zmq_edge.py",),
}
"""Where each of these may be imported at all."""

MAY_IMPORT = {
    "clients": {"clients"},
    "embedding_service": {"embedding_service", "clients"},
    "gateway": {"gateway", "clients"},
    "head_service": {"head_service", "clients"},
    "perf": {"perf", "clients", "embedding_service", "head_service", "trunkline"},
    "trunkline": set(PACKAGES) - {"perf", "gateway"},
}
"""Which of our packages each may import. The front door starts the gateway as a process and imports nothing of it."""

MAY_IMPORT_TOO = {"perf/micro/gateway_paths.py": {"gateway"}}
"""What the gateway does itself can be timed in its own process alone."""


def imported(path: Path) -> set[str]:
    """All module names that *path* imports, at any depth of its code."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_libraries_and_packages_are_imported_only_where_they_belong(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    roots = {module.split(".")[0] for module in imported(path)}

    for library, places in HEAVY.items():
        assert library not in roots or name.startswith(places)
    assert roots & set(PACKAGES) <= MAY_IMPORT[name.split("/")[0]] | MAY_IMPORT_TOO.get(name, set())


def test_the_embedding_service_knows_the_clients_by_their_wire_only() -> None:
    for path in (ROOT / "embedding_service").rglob("*.py"):
        ours = {module for module in imported(path) if module.split(".")[0] == "clients"}
        assert all(module.startswith("clients.wire") for module in ours), path


@pytest.mark.parametrize("heart", ["gateway/pipeline.py", "embedding_service/infer.py", "embedding_service/queue.py"])
def test_the_hearts_know_no_transport(heart: str) -> None:
    roots = {module.split(".")[0] for module in imported(ROOT / heart)}

    assert not roots & {"fastapi", "starlette", "grpc", "uvicorn", "httpx"}


LOCKS = sorted(path for path in (ROOT / "requirements").glob("*.txt") if not path.name.startswith("overrides"))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_locks_have_hashes_and_no_addresses_and_no_cuda(lock: Path) -> None:
    text = lock.read_text()
    pins = [line for line in text.splitlines() if line and not line.startswith((" ", "#"))]

    assert pins
    assert text.count("--hash=sha256:") >= len(pins)
    assert "://" not in text
    for pin in pins:
        name = pin.split("==")[0]
        assert name not in {"torch", "triton", "openvino-telemetry"} or "sys_platform == 'never'" in pin
        assert not name.startswith("nvidia-")
        assert name != "tensorflow" or "sys_platform != 'linux'" in pin


def test_the_quickstart_environment_has_neither_torch_nor_cuda_nor_two_tensorflows() -> None:
    from importlib.metadata import distributions

    names = {(found.name or "").lower() for found in distributions()}

    assert not names & {"torch", "transformers", "tensorflow", "openvino-telemetry"}
    assert not any(name.startswith(("nvidia-", "triton")) for name in names)


def test_the_compose_file_is_read_by_the_real_docker_compose() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.compose"], cwd=ROOT, capture_output=True, text=True, timeout=90, check=False
    )

    assert ended.stdout == ""
    assert ended.returncode == 0


def test_only_one_place_asks_the_standard_library_for_a_normal_form() -> None:
    """It takes minutes over a letter with a million marks; `clients.wire.normal_form` does not."""
    packages = ("clients", "embedding_service", "gateway", "head_service", "perf", "trunkline")
    files = (path for package in packages for path in (ROOT / package).rglob("*.py"))
    asking = [path.relative_to(ROOT).as_posix() for path in files if "unicodedata.normalize(" in path.read_text(encoding="utf-8")]

    assert ["clients/wire/normal_form.py"] == asking


def test_nothing_is_left_for_later() -> None:
    marks = ("TO" + "DO", "FIX" + "ME", "XX" + "X")
    for path in SOURCES:
        assert not any(mark in path.read_text() for mark in marks), path


def test_compose_publishes_to_this_host_alone_and_never_what_has_no_keys() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    published = re.findall(r'ports: \["([^"]+)"', text)

    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert "ports" not in text.partition("tensorflow/serving")[2].partition("\n\n")[0]


@pytest.mark.parametrize("image", ["embedding", "gateway", "heads"])
def test_images_listen_for_others_only_when_told_how(image: str) -> None:
    text = (ROOT / "deploy" / f"{image}.Dockerfile").read_text()

    assert "0.0.0.0" in text
    assert f"_{'KEYS_FILE'}" in text
    assert "--insecure" not in text
