"""Build a trunk's graph for one engine, measure it against float32, keep the result; or find it kept."""

import os
import shutil
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx

from embedding_service.backend import LONE_THREADS, EngineSpec, PassCost
from embedding_service.backend.load import EngineName, PreparedTrunk, load_backend, num_cores
from embedding_service.models import disk
from embedding_service.models.bert import BertConfig, read_weights
from embedding_service.models.errors import PreparationError
from embedding_service.models.fetch import sha256_of
from embedding_service.models.graph import Dialect, build_graph, quantize_int8
from embedding_service.models.quality import SAME, Quality, check_quality, compare, vectors_of
from embedding_service.models.quality_texts import QUALITY_TEXTS
from embedding_service.models.selftest import openvino_fault
from embedding_service.models.source import TrunkSource
from embedding_service.models.torch_engine import check_installed, concurrency, device, is_torch, load_reference

BUILDING: Final = ".building-"
"""How the names of folders begin whose graph is not complete yet."""

LABELS: Final[dict[EngineName, str]] = {
    "onnx-fp32": "onnxruntime fp32",
    "onnx-int8": "onnxruntime int8",
    "openvino-bf16": "openvino bf16",
    "openvino-fp32": "openvino fp32",
    "openvino-int8": "openvino int8",
    "torch-fp32": "torch fp32",
    "torch-bf16": "torch bf16",
    "torch-fp16": "torch fp16",
}

PASS_COSTS: Final[dict[EngineName, PassCost]] = {
    "onnx-fp32": PassCost(19.0, padding=1.0, cell=0.0008),
    "onnx-int8": PassCost(15.0, padding=1.0, cell=0.0012),
    "openvino-bf16": PassCost(55.0, padding=0.06, cell=0.001),
    "openvino-fp32": PassCost(30.0, padding=0.05, cell=0.0008),
    "openvino-int8": PassCost(35.0, padding=0.05, cell=0.001),
    # Not measured. Of a BERT, over flat tokens; the rows of its relatives are padded to the longest.
    "torch-fp32": PassCost(padding=0.0),
    "torch-bf16": PassCost(padding=0.0),
    "torch-fp16": PassCost(padding=0.0),
}
"""Those of the graphs by `python -m perf.micro.pass_cost`, rounded: of a trunk of width 384 on two cores, taken for all."""

LONE_TOKENS: Final[dict[EngineName, int]] = {"openvino-bf16": 192}
"""`EngineSpec.lone_tokens` of the engines measured (`python -m perf.micro.lone_tokens`, two cores) that gain by it."""


@dataclass(frozen=True, slots=True)
class Report:
    """What is kept beside a graph: what it is of, its SHA-256 ("" for torch engines, which have none), and its quality."""

    trunk: str
    fingerprint: str
    engine: EngineName
    sha256: str
    quality: Quality


def prepare_engine(source: TrunkSource, engine: EngineName) -> PreparedTrunk:
    """*source* ready for *engine*; a second call finds it kept.

    Raises:
        PreparationError: the engine is not installed, fails its self-test or is not near enough to float32.
    """
    check_installed(engine)
    found = read_report(source.folder(engine))
    if found is not None:
        check_quality(engine, LABELS[engine], found.quality)
        return _prepared(source, engine, source.folder(engine), found.quality)
    return _build_and_keep(source, engine)


def _build_and_keep(source: TrunkSource, engine: EngineName) -> PreparedTrunk:
    folder = source.folder(engine)
    source.progress(f"preparing {source.spec.name} for {LABELS[engine]}")
    source.root.mkdir(parents=True, exist_ok=True)
    # Built beside its final place; renamed only when it is complete and has passed.
    with tempfile.TemporaryDirectory(dir=source.root, prefix=BUILDING) as temporary:
        place = Path(temporary) / "graph"
        place.mkdir()
        _build(source, engine, place)
        self_test(engine, place / "graph.onnx")
        quality = _measure(source, engine, place)
        sha256 = "" if is_torch(engine) else sha256_of(place / "graph.onnx")
        _write_report(place, Report(source.spec.name, source.spec.fingerprint, engine, sha256, quality))
        if not is_torch(engine) and (place / "graph.onnx").exists():
            disk.sync(place / "graph.onnx")
        if folder.exists():
            # Something of it is missing or cannot be read: otherwise it had been found.
            shutil.rmtree(folder)
        place.rename(folder)
        disk.sync(folder.parent)
    return _prepared(source, engine, folder, quality)


def self_test(engine: EngineName, graph: Path) -> None:
    """Try an engine whose compiler may end the process in a process of its own.

    Raises:
        PreparationError: it failed.
    """
    if engine.startswith("openvino"):
        fault = openvino_fault(graph, engine)
        if fault:
            raise PreparationError(f"{LABELS[engine]} cannot be used: {fault}; choose another --engine")


def _build(source: TrunkSource, engine: EngineName, place: Path) -> None:
    if is_torch(engine) or not isinstance(source.config, BertConfig):
        return  # PyTorch reads the directory itself
    dialect: Dialect = "onnxruntime" if engine.startswith("onnx") else "flat"
    graph = place / "graph.onnx"
    has_int8_weights = engine == "openvino-int8"
    if dialect == "flat" and not has_int8_weights and _link_sibling(source, engine, graph):
        return
    weights = read_weights(source.files.directory, source.config)
    onnx.save(build_graph(source.config, weights, source.layers, dialect, has_int8_weights=has_int8_weights), graph)
    if engine == "onnx-int8":
        full = graph.rename(place / "full.onnx")
        quantize_int8(str(full), str(graph))
        full.unlink()


def _link_sibling(source: TrunkSource, engine: EngineName, graph: Path) -> bool:
    """Both floating-point precisions of OpenVINO compile the same graph: it lies on the disk once."""
    sibling = source.folder("openvino-fp32" if engine == "openvino-bf16" else "openvino-bf16")
    found = read_report(sibling)
    if found is None or sha256_of(sibling / "graph.onnx") != found.sha256:
        return False
    try:
        os.link(sibling / "graph.onnx", graph)
    except OSError:  # a file system without such links, or a full one: building says which
        return False
    return True


def _measure(source: TrunkSource, engine: EngineName, place: Path) -> Quality:
    if engine == "onnx-fp32":
        return SAME
    source.progress(f"comparing {LABELS[engine]} with float32 on {len(QUALITY_TEXTS)} sentences")
    quality = quality_of(source, _prepared(source, engine, place, SAME))
    check_quality(engine, LABELS[engine], quality)
    return quality


def quality_of(source: TrunkSource, prepared: PreparedTrunk) -> Quality:
    """*prepared* measured against float32 now."""
    if isinstance(source.config, BertConfig):
        reference = load_backend(prepare_engine(source, "onnx-fp32"))
    else:
        reference = load_reference(prepared)
    with closing(reference), closing(load_backend(prepared)) as backend:
        return compare(vectors_of(reference, source.spec), vectors_of(backend, source.spec))


def _write_report(folder: Path, report: Report) -> None:
    facts = {"trunk": report.trunk, "fingerprint": report.fingerprint, "engine": report.engine, "sha256": report.sha256}
    disk.write_report(folder / "report.json", facts | {"quality": report.quality.facts()})


def read_report(folder: Path) -> Report | None:
    """What is said beside a graph; None where there is none, it cannot be read, or the graph is gone."""
    facts = disk.read_report(folder / "report.json")
    try:
        quality = Quality(**facts["quality"])
        words = [str(facts[name]) for name in ("trunk", "fingerprint", "engine", "sha256")]
    except (KeyError, TypeError):
        return None
    if words[2] not in LABELS:
        return None
    report = Report(words[0], words[1], words[2], words[3], quality)
    return report if not report.sha256 or (folder / "graph.onnx").is_file() else None


def _prepared(source: TrunkSource, engine: EngineName, folder: Path, quality: Quality) -> PreparedTrunk:
    if is_torch(engine):
        cost = PASS_COSTS[engine] if isinstance(source.config, BertConfig) else PassCost()
        spec = EngineSpec(LABELS[engine], quality.agreement, cost, concurrency(), source.layers, device())
        return PreparedTrunk(source.spec, spec, engine, source.files.directory)
    cores = num_cores()
    lone_tokens = lone_tokens_on(cores, engine)
    spec = EngineSpec(LABELS[engine], quality.agreement, PASS_COSTS[engine], cores, source.layers, lone_tokens=lone_tokens)
    return PreparedTrunk(source.spec, spec, engine, folder / "graph.onnx")


def lone_tokens_on(num_cores: int, engine: EngineName) -> int:
    """`EngineSpec.lone_tokens`: none on more cores than a pass that is alone takes, since it would leave the others idle."""
    return LONE_TOKENS.get(engine, 0) if num_cores <= LONE_THREADS else 0
