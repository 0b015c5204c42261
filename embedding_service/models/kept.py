"""What is prepared and kept on this machine: list it, check it, compare engines, and throw old versions away."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from embedding_service.backend.load import EngineName, load_backend
from embedding_service.models.build import LABELS, Report, prepare_engine, quality_of, read_report
from embedding_service.models.choice import texts_per_second
from embedding_service.models.errors import PreparationError
from embedding_service.models.fetch import UNPACKING, Progress, locked, said_plainly, sha256_of
from embedding_service.models.graph import GRAPH_VERSION
from embedding_service.models.prepare import find_source
from embedding_service.models.quality import Quality


@dataclass(frozen=True, slots=True)
class KeptGraph:
    """A prepared trunk in the cache. *is_current*: this version of the service would use it."""

    folder: Path
    report: Report
    size_bytes: int
    is_current: bool

    @property
    def label(self) -> str:
        """The engine, as it is called elsewhere."""
        return LABELS[self.report.engine]


@dataclass(frozen=True, slots=True)
class Compared:
    """One engine of a trunk, measured now: or, in *refused*, why it cannot be used."""

    label: str
    size_bytes: int = 0
    texts_per_second: float = 0.0
    quality: Quality | None = None
    refused: str = ""


def kept_graphs(cache_dir: Path) -> list[KeptGraph]:
    """All prepared trunks, by name."""
    root = cache_dir / "graphs"
    folders = sorted(root.iterdir()) if root.is_dir() else []
    found = [
        KeptGraph(folder, report, _size(folder), folder.name.endswith(f"-v{GRAPH_VERSION}"))
        for folder in folders
        if folder.is_dir() and not folder.name.startswith(".") and (report := read_report(folder)) is not None
    ]
    return sorted(found, key=lambda graph: (graph.report.trunk, graph.report.fingerprint, graph.label))


def faults(graphs: Sequence[KeptGraph]) -> Iterator[tuple[KeptGraph, str]]:
    """Each of *graphs* with what is wrong with it: "" when its bytes are those that were measured."""
    for graph in graphs:
        expected = graph.report.sha256
        is_same = not expected or sha256_of(graph.folder / "graph.onnx") == expected
        yield graph, "" if is_same else "its bytes are not those that were measured; remove it and prepare it again"


def compare_engines(
    model: str | None, engines: Sequence[EngineName], *, cache_dir: Path, progress: Progress
) -> Iterator[Compared]:
    """Prepare *model* for each of *engines*, and measure size, speed on this machine and nearness to float32.

    Raises:
        PreparationError: the trunk itself cannot be had; an engine's own fault is in its row.
    """
    for engine in engines:
        source = find_source(model, cache_dir=cache_dir, engine=engine, layers=(-1,), progress=progress)
        try:
            with said_plainly(), locked(cache_dir / "graphs.lock"):
                prepared = prepare_engine(source, engine)
                quality = quality_of(source, prepared)
                with closing(load_backend(prepared)) as backend:
                    speed = texts_per_second(backend, source.spec)
        except PreparationError as error:
            yield Compared(LABELS[engine], refused=str(error))
        else:
            yield Compared(LABELS[engine], prepared.graph.stat().st_size, speed, quality)


def remove_old(cache_dir: Path) -> int:
    """Remove graphs no version of today would use, and what a killed preparation left; returns the bytes set free."""
    freed = 0
    if (cache_dir / "trunks").is_dir():
        with said_plainly(), locked(cache_dir / "trunks.lock"):
            freed = sum(map(_removed, list((cache_dir / "trunks").glob(f"{UNPACKING}*"))))
    root = cache_dir / "graphs"
    if not root.is_dir():
        return freed
    with said_plainly(), locked(cache_dir / "graphs.lock"):
        for folder in root.iterdir():
            is_current = folder.name.endswith(f"-v{GRAPH_VERSION}") and read_report(folder) is not None
            if folder.is_dir() and not is_current:
                freed += _removed(folder)
    return freed


def _removed(folder: Path) -> int:
    """Remove it; the bytes set free."""
    size = _size(folder)
    shutil.rmtree(folder)
    return size


def _size(folder: Path) -> int:
    """Bytes of its files, a file with several names counted in each of its folders."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
