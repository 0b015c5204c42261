"""`python -m tests.compose`: have the real `docker-compose config` read docker-compose.yml. No engine is needed for that."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    command = [
        str(Path(sys.executable).parent / "docker-compose"),
        "--file",
        str(ROOT / "docker-compose.yml"),
        "--profile",
        "cache",
        "--profile",
        "control",
    ]
    ended = subprocess.run([*command, "config", "--quiet"], capture_output=True, text=True, timeout=60, check=False)
    if ended.returncode:
        print(f"docker-compose.yml: {ended.stderr.strip()}")
    return ended.returncode


if __name__ == "__main__":
    sys.exit(main())
