"""BERT written down plainly, one text at a time, in float64: what the graphs are compared with."""

import math

import numpy as np


def _norm(x, w, name, epsilon):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * w[f"{name}.weight"] + w[f"{name}.bias"]


def _linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def _attention(x, w, prefix, heads):
    query, key, value = (_linear(x, w, f"{prefix}.self.{part}") for part in ("query", "key", "value"))
    size = x.shape[1] // heads
    mixed = []
    for start in range(0, x.shape[1], size):
        part = slice(start, start + size)
        scores = np.exp(query[:, part] @ key[:, part].T / math.sqrt(size))
        mixed.append(scores / scores.sum(-1, keepdims=True) @ value[:, part])
    return np.concatenate(mixed, axis=1)


def hidden_states(config, weights, ids, pair_at=0):
    """[embedding layer, layer 1, ...], each float64 [tokens, width]."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    x = w["embeddings.word_embeddings.weight"][list(ids)] + w["embeddings.position_embeddings.weight"][: len(ids)]
    segments = [int(0 < pair_at <= place) for place in range(len(ids))]
    x = _norm(x + w["embeddings.token_type_embeddings.weight"][segments], w, "embeddings.LayerNorm", config.epsilon)
    states = [x]
    for number in range(config.num_layers):
        name = f"encoder.layer.{number}"
        context = _linear(_attention(x, w, f"{name}.attention", config.num_heads), w, f"{name}.attention.output.dense")
        x = _norm(x + context, w, f"{name}.attention.output.LayerNorm", config.epsilon)
        inner = _linear(x, w, f"{name}.intermediate.dense")
        inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
        x = _norm(x + _linear(inner, w, f"{name}.output.dense"), w, f"{name}.output.LayerNorm", config.epsilon)
        states.append(x)
    return states
