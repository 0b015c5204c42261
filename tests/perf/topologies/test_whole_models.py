from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from embedding_service.backend import TrunkSpec
from embedding_service.models.prepare import find_source
from perf.peers.environment import Ended
from perf.topologies.plan import CannotStart, Given
from perf.topologies.whole_models import compared_texts, padded, whole_models
from tests.perf.topologies.weighted import head, head_set
from tests.tiny_trunk import make_tiny_trunk

TEXTS = ("a b c", "d e", "f", "g h i j k")


class Exporter:
    """Keeps the commands it is given; the one that exports makes the folders of its heads, or fails with *stderr*."""

    def __init__(self, stderr: str = "") -> None:
        self._stderr = stderr
        self.exported: list[str] = []
        self.checks: list[dict[str, np.ndarray]] = []

    def __call__(self, command: Sequence[str]) -> Ended:
        if "venv" in command:
            Path(command[-1]).mkdir(parents=True)
        if "--heads" not in command:
            return Ended(0, "")
        with np.load(command[command.index("--check") + 1], allow_pickle=False) as check:
            self.checks.append(dict(check))
        if self._stderr:
            return Ended(1, self._stderr)
        names = command[command.index("--heads") + 1 :]
        for name in names:
            (Path(command[command.index("--place") + 1]) / name / "1").mkdir(parents=True)
        self.exported += names
        return Ended(0, "")


def given(tmp_path: Path, num_heads: int) -> Given:
    trunk = tmp_path / "tiny"
    if not trunk.is_dir():
        make_tiny_trunk(trunk)
        (tmp_path / "weights.npz").write_bytes(b"weights")
    heads = head_set(*(head(name, "x", "y", width=32) for name in ("one", "two", "three")), texts=TEXTS, root=tmp_path)
    return Given(trunk, heads, num_heads, tmp_path / "cache", tmp_path / "peers", tmp_path / "logs", say=lambda _: None)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_CACHE_DIR", str(tmp_path / "cache"))


def spec_of(it: Given) -> TrunkSpec:
    return find_source(str(it.trunk), cache_dir=it.cache_dir, engine="onnx-fp32", layers=(-1,), progress=it.say).spec


def test_only_models_that_are_not_there_yet_are_exported(tmp_path: Path) -> None:
    exporter = Exporter()
    for num_heads in (1, 3, 3):
        it = given(tmp_path, num_heads)
        place = whole_models(it, spec_of(it), exporter)

    assert ["one", "two", "three"] == exporter.exported
    assert (place / "three" / "1").is_dir()


def test_other_weights_are_other_models(tmp_path: Path) -> None:
    it, exporter = given(tmp_path, 1), Exporter()
    first = whole_models(it, spec_of(it), exporter)
    it.heads.weights_file.write_bytes(b"others")

    assert first != whole_models(it, spec_of(it), exporter)


def test_the_exporter_is_given_vectors_of_length_1_of_padded_texts(tmp_path: Path) -> None:
    it, exporter = given(tmp_path, 1), Exporter()
    whole_models(it, spec_of(it), exporter)
    [check] = exporter.checks

    assert check["token_ids"].shape == check["padding_mask"].shape
    assert (len(TEXTS), 32) == check["vectors"].shape
    assert np.linalg.norm(check["vectors"], axis=1) == pytest.approx(1, abs=1e-5)
    assert 0 == check["padding_mask"].min()


def test_an_export_that_is_refused_is_told_in_one_line(tmp_path: Path) -> None:
    it = given(tmp_path, 1)
    with pytest.raises(CannotStart, match=r"^the whole models cannot be exported: the vectors differ by up to 0\.2$"):
        whole_models(it, spec_of(it), Exporter("Warning: slow\nthe vectors differ by up to 0.2\n"))


def test_an_environment_that_cannot_be_made_is_told_in_one_line(tmp_path: Path) -> None:
    it = given(tmp_path, 1)
    with pytest.raises(CannotStart, match="keras_hub cannot be installed: No matching distribution"):
        whole_models(it, spec_of(it), lambda _: Ended(1, "ERROR: No matching distribution\n"))


def test_rows_are_padded_to_the_longest() -> None:
    token_ids, padding_mask = padded([[1, 2, 3], [0], [4, 5]])

    assert [[1, 2, 3], [0, 0, 0], [4, 5, 0]] == token_ids.tolist()
    assert [[1, 1, 1], [1, 0, 0], [1, 1, 0]] == padding_mask.tolist()
    assert np.int32 == token_ids.dtype == padding_mask.dtype


def test_long_texts_stand_among_those_that_are_compared() -> None:
    chosen = compared_texts([f"text {number}" for number in range(1_500)])

    assert 40 < len(chosen) < 60
    assert 3 <= sum(len(text) > 100 for text in chosen) < 10
