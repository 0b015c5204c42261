"""Make a trunk ready to be served: find it, and prepare it for the engine asked for, or for the one that is best here."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Final, Literal

from embedding_service.backend.load import EngineName, PreparedTrunk, load_backend
from embedding_service.models.build import BUILDING, LABELS, prepare_engine, self_test
from embedding_service.models.choice import NEARLY, Candidate, pick, processor, processor_flags, texts_per_second
from embedding_service.models.disk import read_report, write_report
from embedding_service.models.errors import PreparationError
from embedding_service.models.fetch import Progress, fetch, locked, remove_unfinished, said_plainly
from embedding_service.models.source import TrunkSource, read_source
from embedding_service.models.torch_engine import EncoderShape, choose, read_shape

Engine = Literal[
    "auto", "onnx-fp32", "onnx-int8", "openvino-bf16", "openvino-fp32", "openvino-int8", "torch-fp32", "torch-bf16", "torch-fp16"
]

_BF16_FLAGS: Final = frozenset({"avx512_bf16", "amx_bf16"})


def prepare(
    model: str | None,
    *,
    cache_dir: Path,
    engine: Engine,
    layers: Sequence[int] = (-1,),
    measure_again: bool = False,
    progress: Progress = lambda _: None,
) -> PreparedTrunk:
    """Make *model* (see `fetch`) ready for *engine*, in *cache_dir*; a second call finds everything there.

    *auto* is torch-bf16 where PyTorch is installed and finds a GPU that computes in bfloat16. Elsewhere it measures the
    engines of this processor once and takes the fastest that is near enough to float32 (`quality.NEEDED`), or of those within
    a fifth of it the most exact. int8 is not among them: it changes labels (decision 28), and onnx-int8 scales activations over
    a whole batch, so that a text's vector depends on who came with it. What was chosen is kept; *measure_again* forgets it.
    *layers* may count from 0, the embedding layer, or back from -1.

    Raises:
        PreparationError: one sentence says what to do.
    """
    source = find_source(model, cache_dir=cache_dir, engine=engine, layers=layers, progress=progress)
    with said_plainly(), locked(cache_dir / "graphs.lock"):
        remove_unfinished(source.root, BUILDING)
        if measure_again:
            _choice_file(source).unlink(missing_ok=True)
        return _choose(source) if engine == "auto" else prepare_engine(source, engine)


def find_source(model: str | None, *, cache_dir: Path, engine: Engine, layers: Sequence[int], progress: Progress) -> TrunkSource:
    """*model*'s files, fetched where need be, and read; see `prepare`."""
    files = fetch(model, cache_dir=cache_dir, progress=progress)
    return read_source(files, read_shape(files.directory, engine), layers, cache_dir / "graphs", progress)


def _choose(source: TrunkSource) -> PreparedTrunk:
    """Decide for *auto* and tell why."""
    if (found := _choose_torch(source) or _chosen_before(source)) is not None:
        return found
    candidates = [candidate for engine in _engines_here() if (candidate := _try(source, engine)) is not None]
    chosen = pick(candidates)
    speeds = ", ".join(f"{LABELS[one.engine]} {one.texts_per_second:.0f}" for one in candidates)
    source.progress(f"engine: {LABELS[chosen.engine]}; texts/s here: {speeds} (within {NEARLY - 1:.0%} the more exact is taken)")
    _remember(source, chosen.engine)
    return prepare_engine(source, chosen.engine)


def _engines_here() -> list[EngineName]:
    """The engines of the CPU that may be worth trying on this processor. The last one always works."""
    engines: list[EngineName] = ["openvino-bf16"] if _BF16_FLAGS & processor_flags() else []
    return [*engines, "openvino-fp32", "onnx-fp32"]


def _try(source: TrunkSource, engine: EngineName) -> Candidate | None:
    try:
        prepared = prepare_engine(source, engine)
        with closing(load_backend(prepared)) as backend:
            return Candidate(engine, texts_per_second(backend, source.spec), prepared.engine.agreement)
    except PreparationError as error:
        if engine == "onnx-fp32":
            raise
        source.progress(f"not {LABELS[engine]}: {error}")
        return None


def _choice_file(source: TrunkSource) -> Path:
    return source.folder("onnx-fp32").with_suffix(".auto.json")


def _remember(source: TrunkSource, engine: EngineName) -> None:
    write_report(_choice_file(source), {"processor": processor(), "engine": engine})


def _chosen_before(source: TrunkSource) -> PreparedTrunk | None:
    """What was chosen on this processor at an earlier start."""
    facts = read_report(_choice_file(source))
    engine = next((name for name in _engines_here() if name == facts.get("engine")), None)
    if engine is None or facts.get("processor") != processor():
        return None
    prepared = prepare_engine(source, engine)
    # The cache may have come from elsewhere, and the engine's library be another than last time.
    self_test(engine, prepared.graph)
    source.progress(f"engine: {LABELS[engine]}, as measured on this processor before")
    return prepared


def _choose_torch(source: TrunkSource) -> PreparedTrunk | None:
    choice = choose(source.config)
    if choice is None:
        return None
    engine, reason = choice
    try:
        chosen = prepare_engine(source, engine)
    except PreparationError as error:
        if isinstance(source.config, EncoderShape):
            raise
        source.progress(f"not {LABELS[engine]}: {error}")
        return None
    source.progress(f"engine: {LABELS[engine]}, since {reason}")
    return chosen
