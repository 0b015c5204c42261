"""Tries OpenVINO in a process of its own: on some processors its compiler ends the process, and that must not be ours."""

import subprocess
import sys
from pathlib import Path
from typing import Final

TIMEOUT_SECONDS: Final = 120.0


def openvino_fault(graph: Path, engine: str, *, timeout: float = TIMEOUT_SECONDS, module: str = __name__) -> str:
    """Compile *graph* as *engine* does and run it once, elsewhere. "" when that went well, else why not, in a few words."""
    command = [sys.executable, "-m", module, str(graph), engine]
    try:
        ended = subprocess.run(command, capture_output=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return f"its self-test did not end in {timeout:.0f} s"
    if ended.returncode < 0:
        return f"its self-test was ended by signal {-ended.returncode}"
    return "" if ended.returncode == 0 else f"its self-test failed with status {ended.returncode}"


def main() -> int:
    """Exit status 0 when the graph named on the command line gives finite numbers."""
    import numpy as np  # noqa: PLC0415 (only the child needs them)

    from embedding_service.backend.openvino import PRECISIONS, compile_graph  # noqa: PLC0415
    from embedding_service.backend.pooling import flattened  # noqa: PLC0415

    request = compile_graph(Path(sys.argv[1]), PRECISIONS[sys.argv[2]], 1).create_infer_request()
    for length in (4, 9):
        inputs, _ = flattened([(1,) * length, (1, 1)])
        outputs = request.infer(inputs)
        if not all(np.isfinite(array).all() for array in outputs.values()):
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
