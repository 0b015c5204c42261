"""What a part may not bring into the process, proven in a fresh interpreter."""

import subprocess
import sys

import pytest

ENGINES = ("torch", "tensorflow", "keras", "transformers", "onnxruntime", "onnx", "openvino", "sklearn", "scipy")
SERVERS = ("fastapi", "starlette", "uvicorn", "pydantic", "prometheus_client")
SERVICES = ("embedding_service", "head_service", "gateway", "perf")

FORBIDDEN = {
    # The base install is all that a caller has.
    "clients": (*ENGINES, *SERVERS, *SERVICES, "tokenizers", "trunkline"),
    "clients.wire.text": (*ENGINES, *SERVERS, *SERVICES, "tokenizers", "trunkline"),
    # What only some deployments want is imported when its setting asks for it.
    "embedding_service.service": (*ENGINES, "redis", "opentelemetry", "zmq"),
    "gateway.app": ENGINES,
    # TensorFlow takes seconds: it is loaded for what is learnt with it, and to export.
    "head_service.training.run": ("torch", "tensorflow", "keras", *SERVERS),
    "head_service.training.brought": ("torch", "tensorflow", "keras", *SERVERS),
    "trunkline": (*ENGINES, *SERVERS, *SERVICES, "tokenizers"),
}


@pytest.mark.parametrize("module", FORBIDDEN)
def test_importing_a_part_brings_in_nothing_it_must_do_without(module):
    script = f"import sys, {module}; print('\\n'.join(name for name in sys.modules if '.' not in name))"
    found = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60)
    assert set(found.stdout.split()).isdisjoint(FORBIDDEN[module])
