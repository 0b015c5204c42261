"""A BERT checkpoint as numbers: its shape from config.json, its weights from safetensors. No code of a model is ever run."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from embedding_service.backend import View
from embedding_service.models.errors import PreparationError

Weights = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class BertShape:
    """The numbers of config.json that the forward pass depends on."""

    width: int
    num_layers: int
    num_heads: int
    vocab_size: int
    max_positions: int
    epsilon: float


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A trunk as it was published: float32 *weights* by their Hugging Face names, without the prefix "bert."."""

    shape: BertShape
    weights: Weights
    default_view: View
    max_tokens: int
    tokenizer_json: bytes


def read_checkpoint(directory: Path) -> Checkpoint:
    """Read *directory*.

    Raises:
        PreparationError: it is not a BERT encoder this service can run; the message says why.
    """
    shape = _shape(_json(directory / "config.json"))
    return Checkpoint(
        shape,
        _weights(directory / "model.safetensors"),
        _default_view(directory),
        _max_tokens(directory, shape),
        (directory / "tokenizer.json").read_bytes(),
    )


def _shape(config: dict[str, Any]) -> BertShape:
    """Only what is named here is read, and a value that would mean another computation is refused."""
    expected = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
    for key, value in expected.items():
        if config.get(key, value) != value or (key == "model_type" and key not in config):
            raise PreparationError(f"this is not a BERT encoder that can be run here: its {key} is not {value!r}")
    try:
        return BertShape(
            width=int(config["hidden_size"]),
            num_layers=int(config["num_hidden_layers"]),
            num_heads=int(config["num_attention_heads"]),
            vocab_size=int(config["vocab_size"]),
            max_positions=int(config["max_position_embeddings"]),
            epsilon=float(config.get("layer_norm_eps", 1e-12)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise PreparationError(f"config.json lacks or garbles {error}") from None


def _weights(path: Path) -> Weights:
    try:
        loaded = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise PreparationError(f"{path.name} cannot be read: {error}") from None
    floats = {name: value for name, value in loaded.items() if np.issubdtype(value.dtype, np.floating)}
    return {name.removeprefix("bert."): value.astype(np.float32) for name, value in floats.items()}


def _default_view(directory: Path) -> View:
    """sentence-transformers' own pooling where the directory states it, mean otherwise."""
    pooling = _json(directory / "1_Pooling" / "config.json")
    if pooling.get("pooling_mode_cls_token"):
        return View("cls")
    return View("max") if pooling.get("pooling_mode_max_tokens") else View("mean")


def _max_tokens(directory: Path, shape: BertShape) -> int:
    stated = _json(directory / "sentence_bert_config.json").get("max_seq_length")
    return min(int(stated), shape.max_positions) if stated else shape.max_positions


def _json(path: Path) -> dict[str, Any]:
    """The object in *path*; empty when there is no such file."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:
        raise PreparationError(f"{path.name} is not JSON") from None
    return content if isinstance(content, dict) else {}
