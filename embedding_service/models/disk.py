"""What is kept on the disk: written so that a loss of power leaves it whole or not there, and read as what may be neither."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_report(path: Path, facts: Mapping[str, Any]) -> None:
    """*facts* as JSON at *path*, on the disk with its name when this returns."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(facts, indent=1))
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def read_report(path: Path) -> Mapping[str, Any]:
    """What `write_report` wrote; {} where there is nothing, or something else."""
    try:
        facts = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def sync(path: Path) -> None:
    """Return once the bytes of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
