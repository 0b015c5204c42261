import os
from pathlib import Path

import pytest

from head_service.without_keras import without_keras

LEGACY = "TF_USE_LEGACY_KERAS"


def test_keras_is_looked_for_where_it_is_not_and_the_setting_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LEGACY, raising=False)
    with without_keras():
        assert "1" == os.environ[LEGACY]

    assert LEGACY not in os.environ


def test_who_said_which_keras_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LEGACY, "0")
    with without_keras():
        assert "0" == os.environ[LEGACY]

    assert "0" == os.environ[LEGACY]


def test_where_the_old_keras_is_installed_it_is_not_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(LEGACY, raising=False)
    (tmp_path / "tf_keras").mkdir()
    (tmp_path / "tf_keras" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with without_keras():
        assert LEGACY not in os.environ
