"""A trunk's files, read: what every engine's graph is made from, and what the trunk is whatever engine runs it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clients.wire.text import TextEncoder
from embedding_service.backend import TrunkSpec, View
from embedding_service.backend.load import EngineName
from embedding_service.models.bert import BertConfig
from embedding_service.models.errors import PreparationError
from embedding_service.models.fetch import Progress, TrunkFiles, said_plainly, sha256_of
from embedding_service.models.fingerprint import fingerprint
from embedding_service.models.graph import GRAPH_VERSION
from embedding_service.models.sentence_transformers import max_tokens_of, normalizes, pooling_of, prompt_of, prompts_of
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
        # Of config.json the fingerprint says nothing: into how many heads the weights are cut is not to be seen of them.
        shape = hashlib.sha256(repr(self.config).encode()).hexdigest()[:8]
        return self.root / f"{self.spec.fingerprint[7:23]}-{where}-layers{layers}-{shape}-v{GRAPH_VERSION}"


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
    view = View(pooling_of(directory), layers[0], normalizes(directory))
    max_tokens = max_tokens_of(directory, config.max_positions)
    _check_tokenizer(tokenizer_json, max_tokens)
    weights = sha256_of(directory / "model.safetensors")
    prompt = prompt_of(directory)
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
        prompts=prompts_of(directory),
        tokenizer_json=tokenizer_json,
    )


def _check_tokenizer(tokenizer_json: bytes, max_tokens: int) -> None:
    try:
        TextEncoder(tokenizer_json, max_tokens=max_tokens)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise PreparationError(f"tokenizer.json is not a BERT's: {error}; choose another model") from error
