import csv
import sys
from pathlib import Path

import numpy as np
import pytest

from embedding_service.backend.fake import FakeBackend, checksum_vector
from embedding_service.models.errors import PreparationError
from head_service.catalogue import read_catalogue
from head_service.repository import Repository
from perf.topologies import heads as made
from perf.topologies.heads import (
    TRAINING_TOKENS,
    Learnt,
    deployed,
    embedded,
    fit_heads,
    head_names,
    head_set,
    publish_heads,
    sample,
)
from perf.topologies.plan import MOST_HEADS
from perf.topologies.weights import write_weights
from tests.tiny_trunk import make_tiny_trunk

WIDTH = 8


def learnt(*labels: str) -> Learnt:
    """Rows that are easily told apart: each label's lie around a corner."""
    drawn = np.random.default_rng(len(labels))
    rows = tuple(labels[number % len(labels)] for number in range(60))
    corners = np.eye(len(labels), WIDTH)
    vectors = np.array([corners[labels.index(row)] for row in rows]) + drawn.normal(0, 0.05, (60, WIDTH))
    return Learnt(vectors.astype(np.float32), rows, vectors[:3].astype(np.float32), ("a", "b", "c"))


LEARNT = {"sentiment": learnt("good", "bad"), "topic": learnt("x", "y", "z"), "newsgroup": learnt("p", "q", "r", "s")}


def test_the_first_head_is_the_demos_and_the_sets_take_turns() -> None:
    names = head_names()

    assert ("sentiment", "topic-02", "newsgroup-03", "sentiment-04", "topic-05") == names[:5]
    assert MOST_HEADS == len(set(names))


def test_a_sample_is_of_as_many_rows_and_the_same_every_time() -> None:
    rows = sample(1_000, 1)

    np.testing.assert_array_equal(rows, sample(1_000, 1))
    assert not np.array_equal(rows, sample(1_000, 2))
    assert 1_000 == len(rows)
    assert 0 <= rows.min() <= rows.max() < 1_000
    assert 550 < len(np.unique(rows)) < 700, "about 1 - 1/e of the rows are in it"


def test_every_head_has_learnt_its_set_and_no_two_are_the_same() -> None:
    heads = fit_heads(LEARNT)

    assert list(head_names()) == [head.name for head in heads]
    for head in heads:
        of = LEARNT[head.name.partition("-")[0]]
        found = [head.labels[place] for place in (of.vectors @ head.kernel + head.bias).argmax(axis=1)]
        assert list(of.labels) == found
    assert MOST_HEADS == len({head.kernel.tobytes() for head in heads})


def test_vectors_are_in_the_order_of_their_texts_which_are_cut(tmp_path: Path) -> None:
    tokenizer = (make_tiny_trunk(tmp_path / "tiny") / "tokenizer.json").read_bytes()
    backend = FakeBackend(tokenizer, max_tokens=512, concurrency=2)
    texts = [" ".join("a" * (1 + number * 7 % 50)) for number in range(70)] + ["b " * 400]
    vectors = embedded(backend, texts)

    lengths = {row: len(row) for batch in backend.batches for row in batch.token_ids}
    assert TRAINING_TOKENS == max(lengths.values())
    by_length = {length: checksum_vector(row) for row, length in lengths.items()}
    for text, vector in zip(texts[:70], vectors, strict=False):
        np.testing.assert_array_equal(by_length[len(text.split()) + 2], vector)


def test_a_deployment_has_the_first_heads_alone_and_serves_what_was_fitted(tmp_path: Path) -> None:
    folder = tmp_path / "heads"
    folder.mkdir()
    fitted = fit_heads(LEARNT)[:3]
    write_weights(fitted, folder / "weights.npz")
    publish_heads(folder / "repository", fitted, FakeBackend().trunk, LEARNT)
    with (tmp_path / "test.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), ("fine", "good"), ("dull", "bad")])
    found = head_set(folder, tmp_path / "test.csv")
    said: list[str] = []
    two = deployed(found, 2, bundled=False, say=said.append)

    assert (("fine", "dull"), ("good", "bad")) == (found.texts, found.truth)
    assert {head.name for head in fitted} == read_catalogue(found.repository).heads.keys()
    catalogue = read_catalogue(two)
    assert {"sentiment", "topic-02"} == catalogue.heads.keys()
    manifest = Repository(two).verify("topic-02", catalogue.heads["topic-02"].stable)
    assert (("x", "y", "z"), FakeBackend().trunk.fingerprint) == (manifest.labels, manifest.trunk.fingerprint)
    assert two == deployed(found, 2, bundled=False, say=said.append)
    assert ["making a repository of 2 heads"] == said, "the second time it is found"


def test_what_a_command_says_is_told_and_why_it_failed() -> None:
    said: list[str] = []
    failing = [sys.executable, "-c", "print('fitting'); print(); print('no room'); raise SystemExit(1)"]

    with pytest.raises(PreparationError, match="no room"):
        made._run(failing, said.append)
    assert ["fitting", "no room"] == said
