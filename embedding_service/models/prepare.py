"""Make a trunk ready for an engine: find it, build its graph, measure it against float32, keep the result."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
import onnx

from clients.wire.text import TextEncoder
from embedding_service.backend import Backend, Batch, EngineSpec, FloatArray, Pooling, TrunkSpec, View
from embedding_service.backend.load import EngineName, PreparedTrunk, load_backend, num_cores
from embedding_service.models.bert import BertConfig, read_weights
from embedding_service.models.errors import PreparationError
from embedding_service.models.fetch import (
    Progress,
    TrunkFiles,
    fetch,
    locked,
    read_json,
    said_plainly,
    sha256_of,
)
from embedding_service.models.fingerprint import fingerprint
from embedding_service.models.graph import GRAPH_VERSION, Dialect, build_graph, quantize_int8
from embedding_service.models.quality_texts import QUALITY_TEXTS
from embedding_service.models.selftest import openvino_fault
from embedding_service.models.torch_engine import (
    EncoderShape,
    check_installed,
    choose,
    concurrency,
    device,
    is_torch,
    load_reference,
    read_shape,
)

Engine = Literal["auto", "onnx-fp32", "onnx-int8", "openvino-bf16", "openvino-fp32", "torch-fp32", "torch-bf16", "torch-fp16"]

LABELS: Final[dict[EngineName, str]] = {
    "onnx-fp32": "onnxruntime fp32",
    "onnx-int8": "onnxruntime int8",
    "openvino-bf16": "openvino bf16",
    "openvino-fp32": "openvino fp32",
    "torch-fp32": "torch fp32",
    "torch-bf16": "torch bf16",
    "torch-fp16": "torch fp16",
}
PADDING_COST: Final[dict[EngineName, float]] = {
    "onnx-fp32": 1.0,
    "onnx-int8": 1.0,
    "openvino-bf16": 0.25,
    "openvino-fp32": 0.25,
    # Of a BERT, over flat tokens; the rows of its relatives are padded to the longest.
    "torch-fp32": 0.0,
    "torch-bf16": 0.0,
    "torch-fp16": 0.0,
}
LEAST_AGREEMENT: Final[dict[EngineName, float]] = {
    "onnx-fp32": 0.9999,
    "onnx-int8": 0.985,
    "openvino-bf16": 0.999,
    "openvino-fp32": 0.9999,
    "torch-fp32": 0.9999,
    "torch-bf16": 0.999,
    "torch-fp16": 0.999,
}
_BF16_FLAGS: Final = frozenset({"avx512_bf16", "amx_bf16"})


@dataclass(frozen=True, slots=True)
class _Source:
    """A trunk's files, read: what every engine's graph is made from."""

    files: TrunkFiles
    config: BertConfig | EncoderShape
    spec: TrunkSpec
    layers: tuple[int, ...]
    root: Path
    progress: Progress

    def folder(self, engine: EngineName) -> Path:
        """Where this trunk's graph for *engine* is kept; the name says all that the graph depends on."""
        layers = "_".join(map(str, self.layers))
        # A GPU's arithmetic is not the processor's: what was measured on the one says nothing of the other.
        where = f"{engine}-{device()}" if is_torch(engine) else engine
        return self.root / f"{self.spec.fingerprint[7:23]}-{where}-layers{layers}-v{GRAPH_VERSION}"


def prepare(
    model: str | None, *, cache_dir: Path, engine: Engine, layers: Sequence[int] = (-1,), progress: Progress = lambda _: None
) -> PreparedTrunk:
    """Make *model* (see `fetch`) ready for *engine*, in *cache_dir*; a second call finds everything there.

    *auto* is torch-bf16 where PyTorch is installed and finds a GPU that computes in bfloat16; else openvino-bf16 where the
    processor does and a self-test passes; else onnx-fp32. It is never onnx-int8: that scales activations over a whole batch,
    so a text's vector would depend on who came with it.
    *layers* may count from 0, the embedding layer, or back from -1.

    Raises:
        PreparationError: one sentence says what to do.
    """
    files = fetch(model, cache_dir=cache_dir, progress=progress)
    source = _read(files, read_shape(files.directory, engine), layers, cache_dir / "graphs", progress)
    with said_plainly(), locked(cache_dir / "graphs.lock"):
        return _choose(source) if engine == "auto" else _prepare(source, engine)


def _read(files: TrunkFiles, config: BertConfig | EncoderShape, layers: Sequence[int], root: Path, progress: Progress) -> _Source:
    resolved = _resolve_layers(layers, config.num_layers)
    with said_plainly():
        spec = _spec(files, config, resolved)
    return _Source(files, config, spec, resolved, root, progress)


def _resolve_layers(layers: Sequence[int], num_layers: int) -> tuple[int, ...]:
    negative = {layer if layer < 0 else layer - num_layers - 1 for layer in layers}
    if not negative or min(negative) < -num_layers - 1 or max(negative) >= 0:
        raise PreparationError(f"this trunk has the layers {-num_layers - 1} to -1; choose --layers among them")
    return tuple(sorted(negative, reverse=True))


def _spec(files: TrunkFiles, config: BertConfig | EncoderShape, layers: tuple[int, ...]) -> TrunkSpec:
    directory = files.directory
    tokenizer_json = (directory / "tokenizer.json").read_bytes()
    view = View(_pooling(directory), layers[0], _normalizes(directory))
    max_tokens = _max_tokens(directory, config)
    _check_tokenizer(tokenizer_json, max_tokens)
    weights = sha256_of(directory / "model.safetensors")
    prompt = _prompt(directory)
    identity = fingerprint(weights_sha256=weights, tokenizer_json=tokenizer_json, view=view, prompt=prompt, max_tokens=max_tokens)
    return TrunkSpec(
        name=files.name,
        fingerprint=identity,
        width=config.width,
        num_layers=config.num_layers,
        vocab_size=config.vocab_size,
        max_tokens=max_tokens,
        default_view=view,
        prompt=prompt,
        tokenizer_json=tokenizer_json,
    )


def _check_tokenizer(tokenizer_json: bytes, max_tokens: int) -> None:
    try:
        TextEncoder(tokenizer_json, max_tokens=max_tokens)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise PreparationError(f"tokenizer.json is not a BERT's: {error}; choose another model") from error


def _pooling(directory: Path) -> Pooling:
    modes = read_json(directory / "1_Pooling" / "config.json")
    names: dict[str, Pooling] = {
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_cls_token": "cls",
        "pooling_mode_max_tokens": "max",
    }
    chosen = [key for key, value in modes.items() if key.startswith("pooling_mode_") and value is True]
    if not chosen:
        return "mean"
    if len(chosen) > 1 or chosen[0] not in names:
        raise PreparationError(f"this trunk pools by {' and '.join(chosen)}; choose one that pools by mean, cls or max")
    return names[chosen[0]]


def _normalizes(directory: Path) -> bool:
    modules = directory / "modules.json"
    return not modules.is_file() or "models.Normalize" in modules.read_text()


def _max_tokens(directory: Path, config: BertConfig | EncoderShape) -> int:
    value = read_json(directory / "sentence_bert_config.json").get("max_seq_length", 256)
    wanted = value if isinstance(value, int) and value > 2 else 256
    return min(wanted, config.max_positions)


def _prompt(directory: Path) -> str:
    """What is put before every text by default, as Sentence Transformers has it; "" where nothing is."""
    settings = read_json(directory / "config_sentence_transformers.json")
    name = settings.get("default_prompt_name")
    if name is None:
        return ""
    prompts = settings.get("prompts")
    prompt = prompts.get(name) if isinstance(prompts, dict) and isinstance(name, str) else None
    if not isinstance(prompt, str):
        raise PreparationError(
            "default_prompt_name is not among the prompts in config_sentence_transformers.json; correct it there"
        )
    return prompt


def _choose(source: _Source) -> PreparedTrunk:
    """Decide for *auto*, tell why, and fall back where bfloat16 does not hold what it promises."""
    if (found := _choose_torch(source)) is not None:
        return found
    if not _BF16_FLAGS & processor_flags():
        return _fall_back(source, "this processor does not compute in bfloat16")
    try:
        chosen = _prepare(source, "openvino-bf16", is_tested=False)
    except PreparationError as error:
        return _fall_back(source, str(error))
    source.progress("engine: openvino bf16, since the processor computes in bfloat16 and the self-test passed")
    return chosen


def _choose_torch(source: _Source) -> PreparedTrunk | None:
    choice = choose(source.config)
    if choice is None:
        return None
    engine, reason = choice
    try:
        chosen = _prepare(source, engine)
    except PreparationError as error:
        if isinstance(source.config, EncoderShape):
            raise
        source.progress(f"not {LABELS[engine]}: {error}")
        return None
    source.progress(f"engine: {LABELS[engine]}, since {reason}")
    return chosen


def _fall_back(source: _Source, reason: str) -> PreparedTrunk:
    source.progress(f"engine: onnxruntime fp32, since {reason}")
    chosen = _prepare(source, "onnx-fp32")
    _record(source.folder("onnx-fp32"), {"agreement": chosen.engine.agreement, "chosen_since": reason})
    return chosen


def processor_flags() -> frozenset[str]:
    """What this processor says it can do; empty where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split() for line in lines if line.startswith("flags")), ()))


def _prepare(source: _Source, engine: EngineName, *, is_tested: bool = True) -> PreparedTrunk:
    check_installed(engine)
    folder = source.folder(engine)
    found = _recorded(source, engine)
    if found is not None and (is_tested or not openvino_fault(found.graph)):
        return found
    source.progress(f"preparing {source.spec.name} for {LABELS[engine]}")
    source.root.mkdir(parents=True, exist_ok=True)
    # Built beside its final place; renamed only when it is complete and has passed.
    with tempfile.TemporaryDirectory(dir=source.root, prefix=".building-") as temporary:
        place = Path(temporary) / "graph"
        place.mkdir()
        _build(source, engine, place)
        if not is_tested and (fault := openvino_fault(place / "graph.onnx")):
            raise PreparationError(fault)
        agreement = _measure(source, engine, place)
        _record(place, {"agreement": agreement})
        if not folder.exists():
            place.rename(folder)
    return _prepared(source, engine, folder, agreement)


def _build(source: _Source, engine: EngineName, place: Path) -> None:
    if is_torch(engine) or not isinstance(source.config, BertConfig):
        return  # PyTorch reads the directory itself
    weights = read_weights(source.files.directory, source.config)
    dialect: Dialect = "onnxruntime" if engine.startswith("onnx") else "flat"
    graph = place / "graph.onnx"
    onnx.save(build_graph(source.config, weights, source.layers, dialect), graph)
    if engine == "onnx-int8":
        full = graph.rename(place / "full.onnx")
        quantize_int8(str(full), str(graph))
        full.unlink()


def _measure(source: _Source, engine: EngineName, place: Path) -> float:
    """The mean cosine to float32 over our own sentences."""
    if engine == "onnx-fp32":
        return 1.0
    source.progress(f"comparing {LABELS[engine]} with float32 on {len(QUALITY_TEXTS)} sentences")
    if isinstance(source.config, BertConfig):
        reference = load_backend(_prepare(source, "onnx-fp32"))
    else:
        reference = load_reference(_prepared(source, engine, place, 0.0))
    expected = _vectors(reference, source.spec)
    actual = _vectors(load_backend(_prepared(source, engine, place, 0.0)), source.spec)
    agreement = float(np.einsum("ij,ij->i", expected, actual).mean())
    check_agreement(engine, agreement)
    return agreement


def check_agreement(engine: EngineName, agreement: float) -> None:
    """Refuse an engine whose vectors are not float32's.

    Raises:
        PreparationError: *agreement*, a mean cosine, is below what *engine* must reach.
    """
    least = LEAST_AGREEMENT[engine]
    if not agreement >= least:
        raise PreparationError(
            f"{LABELS[engine]} agrees with float32 to {agreement:.4f} only, less than {least}; use --engine onnx-fp32"
        )


def _vectors(backend: Backend, spec: TrunkSpec) -> FloatArray:
    encoded = TextEncoder(spec.tokenizer_json, max_tokens=spec.max_tokens, prompt=spec.prompt).encode(QUALITY_TEXTS)
    view = replace(spec.default_view, normalize=True)
    vectors = []
    try:
        for start in range(0, len(encoded), 8):
            ids = tuple(tuple(item.ids) for item in encoded[start : start + 8])
            vectors += [row[0] for row in backend.embed(Batch(ids, ((view,),) * len(ids)))]
    finally:
        backend.close()
    return np.stack(vectors)


def _record(folder: Path, facts: dict[str, float | str]) -> None:
    temporary = folder / "report.tmp"
    temporary.write_text(json.dumps(facts, indent=1))
    temporary.replace(folder / "report.json")


def _recorded(source: _Source, engine: EngineName) -> PreparedTrunk | None:
    folder = source.folder(engine)
    agreement = read_json(folder / "report.json").get("agreement")
    if not isinstance(agreement, float) or not (is_torch(engine) or (folder / "graph.onnx").is_file()):
        return None
    check_agreement(engine, agreement)
    return _prepared(source, engine, folder, agreement)


def _prepared(source: _Source, engine: EngineName, folder: Path, agreement: float) -> PreparedTrunk:
    if is_torch(engine):
        padding_cost = PADDING_COST[engine] if isinstance(source.config, BertConfig) else 1.0
        spec = EngineSpec(LABELS[engine], agreement, padding_cost, concurrency(), source.layers, device())
        return PreparedTrunk(source.spec, spec, engine, source.files.directory)
    spec = EngineSpec(LABELS[engine], agreement, PADDING_COST[engine], num_cores(), source.layers)
    return PreparedTrunk(source.spec, spec, engine, folder / "graph.onnx")
