"""What was measured on: the kind of machine, the packages, the commit. Nothing here tells which machine of its kind it was."""

import os
import platform
import re
import subprocess
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import psutil

from perf.results import Machine

FEATURES: Final = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "i8mm",
    "bf16",
)
PACKAGES: Final = (
    "trunkline",
    "onnxruntime",
    "openvino",
    "tensorflow-cpu",
    "tensorflow",
    "tokenizers",
    "numpy",
    "grpcio",
    "protobuf",
    "fastapi",
    "uvicorn",
    "uvloop",
    "httptools",
    "msgspec",
    "keras",
    "keras-hub",
)
UNKNOWN: Final = "unknown"


def machine() -> Machine:
    """This one."""
    about = cpu_of(Path("/proc/cpuinfo").read_text())
    return Machine(
        cpu=about[0],
        num_cores=len(os.sched_getaffinity(0)),
        memory_bytes=psutil.virtual_memory().total,
        features=about[1],
        kernel=release_of(platform.release()),
        python=platform.python_version(),
    )


def release_of(kernel: str) -> str:
    """The number alone: what a distributor puts behind it may name a machine's owner."""
    found = re.match(r"[\d.]+", kernel)
    return found[0].rstrip(".") if found else ""


def cpu_of(cpuinfo: str) -> tuple[str, tuple[str, ...]]:
    """The first processor's name in /proc/cpuinfo, and those of `FEATURES` that it has."""
    first: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        first.setdefault(key.strip(), value.strip())
    has = set((first.get("flags") or first.get("Features") or "").split())
    return first.get("model name", platform.machine()), tuple(name for name in FEATURES if name in has)


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Of *packages*, those that are installed here."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit(directory: Path = Path(__file__).parent) -> str:
    """The commit that *directory* is checked out at, "+" after it where tracked files differ; "unknown" outside a checkout."""
    try:
        return commit_of(_git(directory, "rev-parse", "--short=12", "HEAD"), _git(directory, "status", "--porcelain", "-uno"))
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN


def commit_of(head: str, changes: str) -> str:
    """What git's *head* and list of *changes* say together."""
    return head + "+" * bool(changes)


def _git(directory: Path, *arguments: str) -> str:
    command: Sequence[str] = ["git", "-C", str(directory), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()
