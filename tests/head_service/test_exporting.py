import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from clients.wire.catalogue import MANIFEST_PATH, Manifest
from clients.wire.tfs import server_pb2
from head_service import exporting
from head_service.errors import ManifestError
from head_service.export import export_head
from head_service.exporting import Order, carry_out, exporting_beside, order_of
from head_service.manifest import verify
from head_service.training.features import Features
from head_service.training.heads import Head
from head_service.training.linear import fit_linear
from head_service.training.linear_head import LinearHead
from head_service.training.targets import single_label
from tests.head_service.test_export import LABELS, LINEAR, WIDTH, features_for, head_of, manifest_for, random_rows

WEIGHTS = "variables/variables.data-00000-of-00001"
TEXTS = [f"text {n}" for n in range(60)]
ROWS = random_rows(60, seed=3)
NONE: Sequence[Sequence[int]] | None = None
IN_WINDOWS = [range(place, place + 9) for place in range(0, 54, 9)]


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def without_time(directory: Path) -> Manifest:
    return msgspec.structs.replace(verify(directory), created="", files={})


ONE_VS_REST = replace(LINEAR, one_vs_rest=True)
SEVERAL = replace(LINEAR, task="multi_label")
NUMBER = LinearHead(LINEAR.kernel[:, :1].copy(), LINEAR.bias[:1].copy(), ("value",), "regression")


def computed(directory: Path) -> list[list[tuple[str, list[str]]]]:
    """Operations and their inputs, of the graph and of each of its functions, whose names differ by a number that counts up."""
    [meta_graph] = server_pb2.SavedModel.FromString((directory / "saved_model.pb").read_bytes()).meta_graphs
    graph = meta_graph.graph_def
    nodes = [graph.node, *(function.node_def for function in graph.library.function)]
    return sorted([(node.op, list(node.input)) for node in some] for some in nodes)


@pytest.mark.parametrize("head", [LINEAR, ONE_VS_REST, SEVERAL, NUMBER], ids=["linear", "one vs rest", "several", "number"])
def test_what_is_exported_beside_is_what_would_be_exported_here(tmp_path: Path, head: LinearHead) -> None:
    beside, here = folder(tmp_path / "beside"), folder(tmp_path / "here")
    manifest = manifest_for(head, temperature=1.5)
    with exporting_beside() as export:
        export(head, manifest, ROWS, TEXTS, beside, NONE)
        process = export.process  # type: ignore[attr-defined]

    export_head(head, manifest, ROWS, TEXTS, here)
    assert 0 == process.returncode
    assert computed(here) == computed(beside)
    assert (here / WEIGHTS).read_bytes() == (beside / WEIGHTS).read_bytes()
    assert without_time(here) == without_time(beside)
    assert verify(here).files.keys() == verify(beside).files.keys()
    warm_up = "assets.extra/tf_serving_warmup_requests"
    assert (here / warm_up).read_bytes() == (beside / warm_up).read_bytes()


@pytest.mark.parametrize("one_vs_rest", [False, True])
@pytest.mark.parametrize("rows", [NONE, IN_WINDOWS], ids=["cut", "windows"])
def test_an_order_holds_all_that_an_export_looks_at(
    tmp_path: Path, rows: Sequence[Sequence[int]] | None, one_vs_rest: bool
) -> None:
    head = replace(LINEAR, one_vs_rest=one_vs_rest)
    ordered, direct = folder(tmp_path / "ordered"), folder(tmp_path / "direct")
    manifest = manifest_for(head, long_text="mean" if rows else "cut")
    sent = msgspec.msgpack.encode(order_of(head, manifest, ROWS, TEXTS, ordered, rows))

    carry_out(msgspec.msgpack.decode(sent, type=Order))
    export_head(head, manifest, ROWS, TEXTS, direct, rows)

    assert (direct / WEIGHTS).read_bytes() == (ordered / WEIGHTS).read_bytes()
    assert without_time(direct) == without_time(ordered)


def test_a_head_that_was_fitted_is_exported_beside_whatever_the_users_folder_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("csv", "numpy", "head_service"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('this is not ours')\n")
    directory = folder(tmp_path / "1")
    labels = [LABELS[n % len(LABELS)] for n in range(len(ROWS))]
    head = fit_linear(ROWS, single_label(labels, LABELS)).head
    caplog.set_level(logging.INFO, exporting.__name__)
    monkeypatch.chdir(tmp_path)
    with exporting_beside() as export:
        export(head, manifest_for(head), ROWS, TEXTS, directory, NONE)

    assert 0 == export.process.returncode  # type: ignore[attr-defined]
    assert not caplog.messages
    assert LABELS == verify(directory).labels


def test_a_process_that_is_stuck_has_ended_before_its_folder_is_emptied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(exporting, "EXPORT_SECONDS", 0.0)
    caplog.set_level(logging.INFO, exporting.__name__)
    ended: list[bool] = []
    with exporting_beside() as export:
        process = export.process  # type: ignore[attr-defined]
        monkeypatch.setattr(exporting, "_empty", lambda _: ended.append(process.returncode is not None))
        export(LINEAR, manifest_for(LINEAR), ROWS, TEXTS, folder(tmp_path / "1"), NONE)

    assert [True] == ended
    [said] = caplog.messages
    assert "is exported here" in said


def test_an_export_that_failed_beside_is_made_here_in_an_empty_folder(tmp_path: Path) -> None:
    directory = folder(tmp_path / "1")
    with exporting_beside() as export:
        export.process.kill()  # type: ignore[attr-defined]
        folder(directory / "variables")
        (directory / "half").write_text("what it left")
        export(LINEAR, manifest_for(LINEAR), ROWS, TEXTS, directory, NONE)

    assert not (directory / "half").exists()
    assert LABELS == verify(directory).labels


def test_what_is_wrong_with_a_head_is_told_as_here(tmp_path: Path) -> None:
    directory = folder(tmp_path / "1")
    broken = LinearHead(np.full((WIDTH, 3), np.nan, np.float32), LINEAR.bias, LABELS)
    with exporting_beside() as export, pytest.raises(ManifestError, match="weights that are not finite"):
        export(broken, manifest_for(broken), ROWS, TEXTS, directory, NONE)

    assert not (directory / MANIFEST_PATH).exists()


def test_a_head_of_another_type_is_exported_here(tmp_path: Path) -> None:
    directory = folder(tmp_path / "1")
    head = head_of("mlp")
    with exporting_beside() as export:
        export(head, manifest_for(head), features_for(head), TEXTS[:9], directory, NONE)
        assert export.process.returncode is None  # type: ignore[attr-defined]

    assert "mlp" == verify(directory).head_type


def test_a_machine_without_room_for_a_process_exports_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    with exporting_beside() as export:
        assert exporting.export_here is export


def test_the_process_is_gone_when_nothing_was_exported() -> None:
    with exporting_beside() as export:
        process = export.process  # type: ignore[attr-defined]

    assert process.returncode is not None


def test_the_arrays_that_are_sent_are_of_float32() -> None:
    wide: Features = ROWS.astype(np.float64)
    head: Head = LINEAR
    assert isinstance(head, LinearHead)
    assert isinstance(wide, np.ndarray)

    assert ROWS[:32].tobytes() == order_of(head, manifest_for(head), wide, TEXTS, Path("x"), NONE).features
