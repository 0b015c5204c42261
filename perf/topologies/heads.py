"""The heads that all plans serve: 32 linear ones, fitted to real data on one trunk, and published.

The first is the demo's head for tweets, fitted to all its training rows; its 1500 held-out rows are the labelled set. The others
are of the demo's three sets in turn, each fitted to another bootstrap sample of the training rows: as many rows, drawn with
replacement (Efron, 1979), so that no two heads are the same. What is made is kept, by trunk and engine, and found again.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from clients.wire.catalogue import Manifest, TrunkRef
from clients.wire.catalogue import View as HeadView
from clients.wire.text import TextEncoder
from embedding_service.backend import Backend, Batch, TrunkSpec, View
from embedding_service.backend.load import PreparedTrunk, load_backend
from embedding_service.models.errors import PreparationError
from embedding_service.models.fetch import locked, said_plainly
from embedding_service.models.prepare import Engine, prepare
from head_service.catalogue import ensure_layout
from head_service.lifecycle import Lifecycle, already_available
from head_service.repository import Repository
from perf.topologies.plan import MOST_HEADS, FloatArray, HeadSet, HeadWeights, Say
from perf.topologies.weights import read_weights, write_weights
from perf.trunks import built
from trunkline.demo_data import DemoHead, prepare_demo_data, read_labelled

FORMAT: Final = 1
"""Of what is kept; raise it when the heads change."""

SETS: Final = ("sentiment", "topic", "newsgroup")
C: Final = 4.0
"""Inverse regularisation of every head: what matters here is that they are real and all plans have the same."""

TRAINING_TOKENS: Final = 128
VECTOR: Final = View("mean", -1, normalize=True)
_BATCH_ROWS: Final = 32
_NUM_GOLDEN: Final = 8
_VERSION: Final = 1


@dataclass(frozen=True, slots=True, eq=False)
class Learnt:
    """One set, as heads learn it: *vectors* float32 [rows, width] of *labels*; *golden* are vectors of held-out texts."""

    vectors: FloatArray
    labels: tuple[str, ...]
    golden: FloatArray
    golden_texts: tuple[str, ...]


def head_names() -> tuple[str, ...]:
    """Of all heads: "sentiment", "topic-02", "newsgroup-03", "sentiment-04", …; what stands before the number is the set."""
    rest = (f"{SETS[place % len(SETS)]}-{place + 1:02}" for place in range(1, MOST_HEADS))
    return (SETS[0], *rest)


def prepare_heads(trunk: Path, *, cache_dir: Path, engine: Engine, say: Say) -> HeadSet:
    """The heads on *trunk*, as *engine* runs it; made at the first call, in a process of its own, and found at the next.

    What is made has TensorFlow and an engine in it, which whoever measures is better off without. Long training texts are cut at
    `TRAINING_TOKENS`, which is a matter of the fitting alone: what is served later is read as far as the trunk reads.

    Raises:
        PreparationError: the trunk or the data cannot be had, or the heads cannot be made; in one sentence.
    """
    place = place_of(prepare(str(trunk), cache_dir=cache_dir, engine=engine), cache_dir)
    if not (place / "heads").is_dir():
        command = [sys.executable, "-m", "perf.topologies.heads", "--trunk", str(trunk), "--cache-dir", str(cache_dir)]
        _run([*command, "--engine", engine], say)
    return head_set(place / "heads", _demo_heads(cache_dir, say)["sentiment"].test_csv)


def place_of(prepared: PreparedTrunk, cache_dir: Path) -> Path:
    """Where the vectors of *prepared*, and heads fitted to them, are kept."""
    fingerprint = prepared.spec.fingerprint.removeprefix("sha256:")[:16]
    return cache_dir / "perf" / f"plans-{FORMAT}" / f"{fingerprint}-{prepared.engine_name}"


def head_set(folder: Path, test_csv: Path) -> HeadSet:
    """What `make_heads` left in *folder*, beside the labelled set."""
    weights = folder / "weights.npz"
    texts, truth = read_labelled(test_csv)
    return HeadSet(read_weights(weights), folder / "repository", weights, tuple(texts), tuple(truth))


def _demo_heads(cache_dir: Path, say: Say) -> Mapping[str, DemoHead]:
    return {head.name: head for head in prepare_demo_data(cache_dir, say)}


def make_heads(trunk: Path, *, cache_dir: Path, engine: Engine, say: Say) -> None:
    """What `prepare_heads` does at the first call, here."""
    demo = _demo_heads(cache_dir, say)
    prepared = prepare(str(trunk), cache_dir=cache_dir, engine=engine)
    place = place_of(prepared, cache_dir)
    with said_plainly(), locked(cache_dir / "perf" / "plans.lock", "the heads"):
        if (place / "heads").is_dir():
            return
        place.mkdir(parents=True, exist_ok=True)
        learnt = _learnt(prepared, demo, place, say)
        with built(place / "heads") as folder:
            say(f"fitting {MOST_HEADS} heads")
            heads = fit_heads(learnt)
            write_weights(heads, folder / "weights.npz")
            say(f"publishing {MOST_HEADS} heads")
            publish_heads(folder / "repository", heads, prepared.spec, learnt)


def _learnt(prepared: PreparedTrunk, demo: Mapping[str, DemoHead], place: Path, say: Say) -> dict[str, Learnt]:
    with closing(load_backend(prepared)) as backend:
        return {name: _set(backend, demo[name], place, say) for name in SETS}


def _set(backend: Backend, head: DemoHead, place: Path, say: Say) -> Learnt:
    """Vectors that were computed before are read again."""
    texts, labels = read_labelled(head.train_csv)
    golden = tuple(read_labelled(head.test_csv)[0][:_NUM_GOLDEN])
    kept = place / f"vectors-{head.name}.npy"
    if not kept.is_file():
        say(f"embedding {len(texts)} training texts of {head.name}")
        partial = kept.with_name(f".{kept.stem}.part.npy")
        np.save(partial, embedded(backend, texts), allow_pickle=False)
        partial.replace(kept)
    vectors: FloatArray = np.load(kept, allow_pickle=False)
    return Learnt(vectors, tuple(labels), embedded(backend, golden), golden)


def embedded(backend: Backend, texts: Sequence[str]) -> FloatArray:
    """Of *texts*, cut at `TRAINING_TOKENS`: float32 [texts, width], of length 1. Texts of about one length share a pass."""
    trunk = backend.trunk
    encoder = TextEncoder(trunk.tokenizer_json, max_tokens=min(TRAINING_TOKENS, trunk.max_tokens), prompt=trunk.prompt)
    rows = [tuple(encoded.ids) for encoded in encoder.encode(texts)]
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    vectors = np.empty((len(rows), trunk.width), np.float32)

    def embed(places: list[int]) -> None:
        batch = Batch(tuple(rows[row] for row in places), ((VECTOR,),) * len(places))
        vectors[places] = np.stack([vector for (vector,) in backend.embed(batch)])

    with ThreadPoolExecutor(backend.engine.concurrency) as pool:
        list(pool.map(embed, (order[start : start + _BATCH_ROWS] for start in range(0, len(order), _BATCH_ROWS))))
    return vectors


def fit_heads(learnt: Mapping[str, Learnt]) -> tuple[HeadWeights, ...]:
    """All heads, the first of all rows of its set, every other of a sample that its place draws."""
    return tuple(_fit(name, learnt[name.partition("-")[0]], place) for place, name in enumerate(head_names()))


def _fit(name: str, of: Learnt, place: int) -> HeadWeights:
    from head_service.training.linear import solve_quickly  # noqa: PLC0415 (scikit-learn: a second)
    from head_service.training.targets import single_label  # noqa: PLC0415

    rows = sample(len(of.labels), place) if place else np.arange(len(of.labels))
    known = sorted(set(of.labels))
    # The standardisation is folded into the weights: the head's logits are vector @ kernel + bias.
    head = solve_quickly(of.vectors[rows], single_label([of.labels[row] for row in rows], known), C)
    return HeadWeights(name, head.labels, head.kernel, head.bias)


def sample(count: int, seed: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """Numbers of *count* rows, drawn with replacement from as many."""
    return np.random.default_rng(seed).integers(0, count, count)


def publish_heads(root: Path, heads: Sequence[HeadWeights], trunk: TrunkSpec, learnt: Mapping[str, Learnt]) -> None:
    """*heads* in the new repository *root*, live as soon as a head server has loaded them."""
    from head_service.export import export_head  # noqa: PLC0415 (TensorFlow: seconds)
    from head_service.training.linear_head import LinearHead  # noqa: PLC0415

    ensure_layout(root)
    repository = Repository(root)
    for head in heads:
        of = learnt[head.name.partition("-")[0]]

        def export(directory: Path, version: int, head: HeadWeights = head, of: Learnt = of) -> None:
            ref = TrunkRef(trunk.name, trunk.fingerprint)
            manifest = Manifest(
                name=head.name, version=version, labels=head.labels, width=trunk.width, trunk=ref, view=HeadView()
            )
            export_head(LinearHead(head.kernel, head.bias, head.labels), manifest, of.golden, list(of.golden_texts), directory)

        repository.publish(head.name, export, fingerprint=trunk.fingerprint)
    _promote(repository, heads)


def _promote(repository: Repository, heads: Sequence[HeadWeights]) -> None:
    lifecycle = Lifecycle(repository, already_available)
    for head in heads:
        lifecycle.promote(head.name, _VERSION)


def deployed(heads: HeadSet, count: int, *, bundled: bool, say: Say) -> Path:
    """A repository of the first *count* heads alone, what a deployment of so many has; made at the first call.

    With *bundled* their bundle is there too, as `trunkline up` makes it once there are two of them.

    Raises:
        PreparationError: it cannot be made.
    """
    bundled = bundled and count > 1
    target = heads.repository.parent.parent / "deployed" / f"{count}{'-bundled' if bundled else ''}"
    target.parent.mkdir(exist_ok=True)
    with said_plainly(), locked(target.parent / "made.lock", "the repository"):
        if not target.is_dir():
            say(f"making a repository of {count} {'heads with their bundle' if bundled else 'head' if count == 1 else 'heads'}")
            with built(target) as root:
                _fill(root, heads, count)
                if bundled:
                    _run([sys.executable, "-m", "head_service.bundling", "--repository", str(root)], lambda _: None)
    return target


def _fill(root: Path, heads: HeadSet, count: int) -> None:
    ensure_layout(root)
    for head in heads.first(count):
        shutil.copytree(heads.repository / head.name / str(_VERSION), root / head.name / str(_VERSION))
    _promote(Repository(root), heads.first(count))


def _run(command: Sequence[str], say: Callable[[str], None]) -> None:
    """Run *command* to its end, telling what it prints.

    Raises:
        PreparationError: it failed; the last line it printed.
    """
    last = "it said nothing"
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip():
                last = line.rstrip()
                say(last)
    if process.returncode:
        raise PreparationError(f"{command[2]} failed: {last}")


def main() -> int:
    """The command line: makes the heads; the exit status."""
    parser = argparse.ArgumentParser("python -m perf.topologies.heads", description="Make the heads that all plans serve.")
    parser.add_argument("--trunk", type=Path, required=True)
    parser.add_argument("--cache-dir", type=Path, required=True)
    parser.add_argument("--engine", default="auto")
    asked = parser.parse_args()
    try:
        make_heads(asked.trunk, cache_dir=asked.cache_dir, engine=asked.engine, say=print)
    except PreparationError as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
