"""What a BERT directory says: its configuration, checked, and its weights as numpy arrays."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from embedding_service.backend import FloatArray
from embedding_service.models.errors import PreparationError
from embedding_service.models.fetch import read_json

Weights = dict[str, FloatArray]

_ONLY: Final = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
_DECLARED: Final = {"model_type": "", "hidden_act": "gelu", "position_embedding_type": "absolute"}


@dataclass(frozen=True, slots=True)
class BertConfig:
    """The numbers of a BERT encoder."""

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    inner_width: int
    max_positions: int
    epsilon: float


def read_config(directory: Path) -> BertConfig:
    """Read config.json; keys that do not shape the arithmetic are not looked at.

    Raises:
        PreparationError: it is not a BERT of the kind we build.
    """
    raw = read_json(directory / "config.json")
    for key, only in _ONLY.items():
        value = raw.get(key, _DECLARED[key])
        if value != only:
            raise PreparationError(
                f"this model has {key} {value!r}, not {only!r}; choose a BERT with absolute positions and gelu"
            )
    if raw.get("is_decoder"):
        raise PreparationError("this model is a decoder; choose a BERT encoder")
    config = BertConfig(
        vocab_size=_positive(raw, "vocab_size"),
        width=_positive(raw, "hidden_size"),
        num_layers=_positive(raw, "num_hidden_layers"),
        num_heads=_positive(raw, "num_attention_heads"),
        inner_width=_positive(raw, "intermediate_size"),
        max_positions=_positive(raw, "max_position_embeddings"),
        epsilon=_epsilon(raw),
    )
    if config.width % config.num_heads:
        raise PreparationError("hidden_size is not a multiple of num_attention_heads in config.json; choose another model")
    return config


def _positive(raw: dict[str, object], key: str) -> int:
    value = raw.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise PreparationError(f"config.json has no usable {key}; choose a complete BERT directory")
    return value


def _epsilon(raw: dict[str, object]) -> float:
    value = raw.get("layer_norm_eps", 1e-12)
    if not isinstance(value, float) or not 0 < value < 1:
        raise PreparationError("config.json has no usable layer_norm_eps; choose a complete BERT directory")
    return value


def read_weights(directory: Path, config: BertConfig) -> Weights:
    """Read the encoder's arrays from model.safetensors as float32, by their names without "bert.".

    Linear weights are [out, in], as they are stored.

    Raises:
        PreparationError: one is missing or has another shape than *config* says.
    """
    try:
        stored = load_file(directory / "model.safetensors")
    except (SafetensorError, TypeError, KeyError) as error:
        raise PreparationError(f"{directory / 'model.safetensors'} cannot be read: {error}; fetch the model again") from error
    by_name = {name.removeprefix("bert."): array for name, array in stored.items()}
    return {name: _weight(by_name, name, shape) for name, shape in expected_shapes(config).items()}


def _weight(stored: dict[str, np.ndarray], name: str, shape: tuple[int, ...]) -> FloatArray:
    array = stored.get(name)
    if array is None:
        raise PreparationError(f"the weights lack {name}: this is not a BERT; choose another model")
    if array.shape != shape:
        raise PreparationError(f"{name} is {array.shape}, not {shape} as config.json says; fetch the model again")
    return np.ascontiguousarray(array, dtype=np.float32)


def expected_shapes(config: BertConfig) -> dict[str, tuple[int, ...]]:
    """Every array of the encoder, the pooler left out, by name."""
    width = config.width
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config.vocab_size, width),
        "embeddings.position_embeddings.weight": (config.max_positions, width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
    }
    shapes["embeddings.token_type_embeddings.weight"] = (2, width)
    for layer in range(config.num_layers):
        shapes |= {f"encoder.layer.{layer}.{name}": shape for name, shape in _layer_shapes(config).items()}
    return shapes


def _layer_shapes(config: BertConfig) -> dict[str, tuple[int, ...]]:
    width, inner = config.width, config.inner_width
    linear = {f"attention.self.{part}": (width, width) for part in ("query", "key", "value")}
    linear |= {"attention.output.dense": (width, width), "intermediate.dense": (inner, width), "output.dense": (width, inner)}
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in linear.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in linear.items()}
    for norm in ("attention.output.LayerNorm", "output.LayerNorm"):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    return shapes
