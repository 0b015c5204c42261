"""TensorFlow without Keras, which it otherwise loads at once: a good third of its seconds, and nothing here uses it."""

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from typing import Final

_LEGACY: Final = "TF_USE_LEGACY_KERAS"


@contextlib.contextmanager
def without_keras() -> Iterator[None]:
    """For the import of TensorFlow: it looks for the old Keras, which is not installed, and goes on without any.

    `tf.keras` still loads Keras on first use, since the setting is as it was by then. Who set it keeps it. Where the old Keras
    is installed nothing is done: it would be loaded, and `tf.keras` would be the old one.
    """
    if importlib.util.find_spec("tf_keras") is not None:
        yield
        return
    before = os.environ.get(_LEGACY)
    os.environ[_LEGACY] = before or "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_LEGACY]
        else:
            os.environ[_LEGACY] = before
