"""Whole models as SavedModels in the cache: made once by keras-hub's own Python, held to our float32 engine's vectors."""

import hashlib
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from clients.wire.text import TextEncoder
from embedding_service.backend import TrunkSpec
from embedding_service.models.fetch import locked, said_plainly, sha256_of
from perf.peers.environment import CannotInstall, Run, python_of, reason_of, run_command
from perf.systems import reference_vectors
from perf.topologies.plan import CannotStart, Given

ENVIRONMENT: Final = "keras_hub"
DIFFERENCE_FILE: Final = "largest-difference"
_EXPORTER: Final = Path(__file__).with_name("export_whole_model.py")
_NUM_COMPARED: Final = 48
_LONG_EVERY: Final = 16

IntArray = NDArray[np.int32]


def whole_models(given: Given, spec: TrunkSpec, run: Run = run_command) -> Path:
    """A folder with NAME/1 of each head that *given* asks for, made where it is not there yet. *spec* is the trunk's.

    Raises:
        CannotStart: they cannot be made, or the encoder's vectors are not those of our float32 engine; in one line.
        PreparationError: no room, or the trunk cannot be read.
    """
    place = given.cache_dir / "perf" / f"whole-model-{_identity(given, spec)}"
    place.mkdir(parents=True, exist_ok=True)
    with said_plainly(), locked(given.cache_dir / "perf" / "whole-models.lock", "the whole models"):
        names = [head.name for head in given.heads.first(given.num_heads)]
        if missing := [name for name in names if not (place / name / "1").is_dir()]:
            _make(given, spec, place, missing, run)
    return place


def _make(given: Given, spec: TrunkSpec, place: Path, names: Sequence[str], run: Run) -> None:
    try:
        python = python_of(ENVIRONMENT, given.peers_dir, given.say, run)
    except CannotInstall as error:
        raise CannotStart(str(error)) from error
    given.say(f"exporting whole models: {len(names)}")
    with tempfile.TemporaryDirectory() as scratch:
        check = Path(scratch) / "check.npz"
        write_check(check, given.trunk, spec, compared_texts(given.heads.texts))
        command = [str(python), "-P", str(_EXPORTER), "--trunk", str(given.trunk), "--weights", str(given.heads.weights_file)]
        ended = run([*command, "--check", str(check), "--place", str(place), "--heads", *names])
    if ended.status:
        raise CannotStart(f"the whole models cannot be exported: {reason_of(ended.stderr)}")


def compared_texts(texts: Sequence[str]) -> list[str]:
    """Some of *texts*, and among them long ones made of several, so that rows beside these have much padding."""
    some = list(texts[:: max(1, len(texts) // _NUM_COMPARED)])
    for place in range(0, len(some), _LONG_EVERY):
        some[place] = " ".join(texts[place : place + _LONG_EVERY])
    return some


def write_check(path: Path, trunk: Path, spec: TrunkSpec, texts: Sequence[str]) -> None:
    """What the exporter compares with: token ids and mask of *texts*, and their vectors by our float32 engine."""
    encoder = TextEncoder(spec.tokenizer_json, max_tokens=spec.max_tokens)
    token_ids, padding_mask = padded(encoded.ids for encoded in encoder.encode(texts))
    np.savez(path, token_ids=token_ids, padding_mask=padding_mask, vectors=reference_vectors(trunk, texts))


def padded(rows: Iterable[Sequence[int]]) -> tuple[IntArray, IntArray]:
    """Token ids and their mask, int32 [rows, tokens of the longest]; both are 0 where there is padding."""
    rows = list(rows)
    lengths = np.array([len(row) for row in rows])
    padding_mask = (np.arange(lengths.max()) < lengths[:, np.newaxis]).astype(np.int32)
    token_ids = np.zeros_like(padding_mask)
    token_ids[padding_mask.astype(bool)] = np.concatenate([np.asarray(row, np.int32) for row in rows])
    return token_ids, padding_mask


def _identity(given: Given, spec: TrunkSpec) -> str:
    words = f"{spec.fingerprint} {sha256_of(given.heads.weights_file)} {sha256_of(_EXPORTER)}"
    return hashlib.sha256(words.encode()).hexdigest()[:12]
