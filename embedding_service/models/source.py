"""A trunk's files, read: what every engine's graph is made from, and what the trunk is whatever engine runs it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clients.wire.text import TextEncoder
from embedding_service.backend import Pooling, TrunkSpec, View
from embedding_service.backend.load import EngineName
from embedding_service.models.bert import BertConfig
from embedding_service.models.errors import PreparationError
from embedding_service.models.fetch import Progress, TrunkFiles, read_json, said_plainly, sha256_of
from embedding_service.models.fingerprint import fingerprint
from embedding_service.models.graph import GRAPH_VERSION
from embedding_service.models.torch_engine import EncoderShape, device, is_torch


@dataclass(frozen=True, slots=True)
class TrunkSource:
    """See the module. *root* is where graphs are kept."""

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


def read_source(
    files: TrunkFiles, config: BertConfig | EncoderShape, layers: Sequence[int], root: Path, progress: Progress
) -> TrunkSource:
    """Read *files*; *layers* may count from 0, the embedding layer, or back from -1.

    Raises:
        PreparationError: they are not those of a trunk we can serve.
    """
    resolved = _resolve_layers(layers, config.num_layers)
    with said_plainly():
        spec = _spec(files, config, resolved)
    return TrunkSource(files, config, spec, resolved, root, progress)


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
        prompts=_prompts(directory),
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
    name = read_json(directory / "config_sentence_transformers.json").get("default_prompt_name")
    if name is None:
        return ""
    prompt = _prompts(directory).get(name) if isinstance(name, str) else None
    if prompt is None:
        raise PreparationError(
            "default_prompt_name is not among the prompts in config_sentence_transformers.json; correct it there"
        )
    return prompt


def _prompts(directory: Path) -> dict[str, str]:
    prompts = read_json(directory / "config_sentence_transformers.json").get("prompts")
    if not isinstance(prompts, dict):
        return {}
    return {name: text for name, text in prompts.items() if isinstance(name, str) and isinstance(text, str)}
