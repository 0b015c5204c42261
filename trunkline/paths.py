"""Where things are kept on this machine: TRUNKLINE_HOME for what must stay, TRUNKLINE_CACHE_DIR for what can be made again.

TRUNKLINE_REPOSITORY may put the head versions elsewhere.
"""

import os
from pathlib import Path

from platformdirs import user_cache_path, user_data_path


def home() -> Path:
    """Trained heads, the catalogue, logs and the record of the running stack."""
    return Path(os.environ.get("TRUNKLINE_HOME") or user_data_path("trunkline"))


def cache_dir() -> Path:
    """Downloaded packages, prepared graphs, training embeddings."""
    return Path(os.environ.get("TRUNKLINE_CACHE_DIR") or user_cache_path("trunkline"))


def repository() -> str:
    """Where the head versions are: a directory, or s3://bucket/prefix."""
    return os.environ.get("TRUNKLINE_REPOSITORY") or str(home() / "repository")
