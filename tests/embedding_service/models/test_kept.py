import pytest

from embedding_service.models.errors import PreparationError
from embedding_service.models.kept import compare_engines, faults, kept_graphs, remove_old
from embedding_service.models.prepare import prepare
from tests.tiny_trunk import make_tiny_trunk


@pytest.fixture
def cache(tmp_path):
    prepare(str(make_tiny_trunk(tmp_path / "tiny")), cache_dir=tmp_path / "cache", engine="onnx-fp32")
    return tmp_path / "cache"


def test_what_was_prepared_is_listed_with_its_size_and_quality(cache):
    [graph] = kept_graphs(cache)

    assert ("tiny", "onnxruntime fp32", True) == (graph.report.trunk, graph.label, graph.is_current)
    assert graph.size_bytes > (graph.folder / "graph.onnx").stat().st_size
    assert 1.0 == graph.report.quality.agreement


def test_a_cache_that_is_not_there_is_empty(tmp_path):
    assert [] == kept_graphs(tmp_path / "absent")
    assert 0 == remove_old(tmp_path / "absent")


def test_a_damaged_graph_is_found(cache):
    [graph] = kept_graphs(cache)
    assert ["" == fault for _, fault in faults([graph])] == [True]
    with (graph.folder / "graph.onnx").open("r+b") as file:
        file.seek(100)
        file.write(b"\0\1\2\3")

    [(_, fault)] = faults(kept_graphs(cache))

    assert "not those that were measured" in fault


@pytest.mark.parametrize("report", [b"", b"\xff", b'{"engine": "of tomorrow"}'])
def test_a_report_that_cannot_be_read_is_no_graph_and_is_removed_with_what_is_old(cache, report):
    [graph] = kept_graphs(cache)
    (graph.folder / "report.json").write_bytes(report)

    assert [] == kept_graphs(cache)
    assert 0 < remove_old(cache)
    assert not graph.folder.exists()


def test_a_graph_of_an_engine_that_is_not_known_here_is_not_listed(cache):
    [graph] = kept_graphs(cache)
    path = graph.folder / "report.json"
    path.write_text(path.read_text().replace("onnx-fp32", "onnx-fp8"))

    assert [] == kept_graphs(cache)


def test_old_versions_and_leftovers_are_removed_and_nothing_else(cache):
    [graph] = kept_graphs(cache)
    (graph.folder.parent / ".building-killed").mkdir()
    (graph.folder.parent / ".building-killed" / "half").write_bytes(b"x" * 100)
    old = graph.folder.with_name(graph.folder.name[:-1] + "1")
    old.mkdir()
    (old / "graph.onnx").write_bytes(b"x" * 50)

    half_a_trunk = cache / "trunks" / ".unpacking-killed"
    half_a_trunk.mkdir(parents=True)
    (half_a_trunk / "half").write_bytes(b"x" * 7)

    assert 157 == remove_old(cache)
    assert not half_a_trunk.exists()
    assert [graph] == kept_graphs(cache)
    assert not old.exists()


def test_engines_are_compared_by_measuring_and_a_refused_one_says_why(tmp_path, monkeypatch):
    trunk = str(make_tiny_trunk(tmp_path / "tiny"))
    monkeypatch.setattr("embedding_service.models.build.openvino_fault", lambda *_: "no such instruction")

    full, refused = compare_engines(trunk, ["onnx-fp32", "openvino-fp32"], cache_dir=tmp_path, progress=lambda _: None)

    assert full.quality is not None
    assert (1.0, 1.0) == (round(full.quality.agreement, 4), full.quality.labels)
    assert full.texts_per_second > 0
    assert full.size_bytes > 0
    assert refused.quality is None
    assert "no such instruction" in refused.refused


def test_a_trunk_that_is_not_there_ends_the_comparison(tmp_path):
    with pytest.raises(PreparationError, match="there is no directory"):
        list(compare_engines(str(tmp_path / "absent"), ["onnx-fp32"], cache_dir=tmp_path, progress=lambda _: None))
