"""A trunk run by PyTorch, on a GPU or the CPU, from the model's directory as it is: no graph is made beforehand.

A BERT is run by our own forward pass over flat tokens, the rows one after another, so nothing is ever padded. Its relatives
(RoBERTa, DistilBERT, MPNet, ...) are run by `transformers`, padded. Pooling happens where the pass does, in float32: of a
pooled view only the vectors leave the device.
"""

import contextlib
import inspect
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from embedding_service.backend import BackendError, Batch, BatchResult, EngineSpec, FloatArray, Pooling, TrunkSpec, View
from embedding_service.backend.load import PreparedTrunk
from embedding_service.backend.pooling import rows_by_view
from embedding_service.models.bert import BertConfig, Weights, read_config, read_weights
from embedding_service.models.errors import PreparationError
from embedding_service.models.fetch import read_json
from embedding_service.models.torch_engine import position_offset

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # PyTorch before 2.10
    varlen_attn = None

_log = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16", "fp16"]
Ints = NDArray[np.int32]

DTYPES: Final[Mapping[Precision, Any]] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_PRECISIONS: Final[Mapping[str, Precision]] = {"torch-fp32": "fp32", "torch-bf16": "bf16", "torch-fp16": "fp16"}
_LEAST_CAPABILITY: Final = (8, 0)
"""Ampere: the first GPUs with bfloat16 matrix units, and the first that flash attention runs on."""


def gpu_name() -> str:
    """The GPU a trunk would run on, in its maker's words; "" where there is none that computes in bfloat16."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < _LEAST_CAPABILITY:
        return ""
    return str(torch.cuda.get_device_name())


def default_device() -> str:
    """The device a backend is made on: "cuda" wherever there is any GPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_torch(prepared: PreparedTrunk) -> "TorchBackend":
    """The backend of a trunk prepared for one of the torch engines, on a GPU where there is one."""
    device = default_device()
    return TorchBackend(
        prepared.spec,
        prepared.engine,
        prepared.graph,
        precision=_PRECISIONS[prepared.engine_name],
        device=device,
        # On the CPU there is little to fuse and a compiler need not be there.
        compiles=device == "cuda",
    )


class TorchBackend:
    """See `embedding_service.backend.Backend`. On a GPU each caller's thread has a stream; on the CPU it computes by itself.

    *directory* holds config.json and model.safetensors. *compiles*: whether the stages of a layer that follow attention are
    fused by `torch.compile`, which takes some seconds here and saves passes over memory; where compiling fails, that is
    said in the log and the stages run one by one.

    Raises:
        PreparationError: the directory is not of a model we run, or `transformers` is needed and not installed.
    """

    def __init__(
        self,
        trunk: TrunkSpec,
        engine: EngineSpec,
        directory: Path,
        *,
        precision: Precision,
        device: str,
        compiles: bool = False,
    ) -> None:
        self.trunk = trunk
        self.engine = engine
        self.device = torch.device(device)
        # First: what is compiled is compiled for the number of threads set there.
        self._lane = _Lane(self.device)
        self._encoder: _Encoder | None = _read_encoder(directory, self.device, DTYPES[precision], compiles=compiles)
        if self.device.type == "cuda":
            # The weights were copied on the default stream; the lanes' own streams do not wait for that one.
            torch.cuda.synchronize(self.device)

    def embed(self, batch: Batch) -> BatchResult:
        """See `embedding_service.backend.Backend`."""
        if self._encoder is None:
            raise BackendError("the backend is closed")
        rows = rows_of(batch)
        _check(rows, self.trunk.vocab_size, self._encoder.max_positions)
        views = rows_by_view([batch.views[number] for number in rows.order])
        tops = {view.layer: self.trunk.num_layers + 1 + view.layer for view in views}
        try:
            with torch.inference_mode(), self._lane.stream():
                bounds, hidden = self._encoder.hidden(rows, frozenset(tops.values()))
                readings = [_read(hidden[tops[view.layer]], rows, bounds, view, places) for view, places in views.items()]
                arrays = _fetch([part for reading in readings for part in reading])
        except Exception as error:  # PyTorch raises RuntimeError, transformers whatever it likes
            raise BackendError(f"PyTorch failed: {str(error).partition(chr(10))[0]}") from error
        results: BatchResult = [[_NOTHING] * len(row) for row in batch.views]
        for (view, places), vectors, is_finite in zip(views.items(), arrays[::2], arrays[1::2], strict=True):
            if not is_finite.all():
                raise BackendError("the forward pass gave numbers that are not finite")
            lengths = [int(rows.lengths[row]) for row, _ in places]
            for (row, index), vector in zip(places, _split(vectors, view, lengths), strict=True):
                results[rows.order[row]][index] = vector
        return results

    def close(self) -> None:
        """See `embedding_service.backend.Backend`."""
        self._encoder = None


_NOTHING: Final[FloatArray] = np.empty(0, dtype=np.float32)


class _Lane(threading.local):
    """What a thread that runs passes has to itself. Made anew in each thread, on its first pass."""

    def __init__(self, device: Any) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        if self._stream is None:
            # The batcher runs a pass a core; threads of PyTorch's own would only get in each other's way.
            torch.set_num_threads(1)

    def stream(self) -> Any:
        return contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch's rows, shortest first, so that those of one length stand together.

    *order[i]* is the batch's number of row i, int64 [rows]; *lengths* [rows]; *ids* and *segments* [tokens], rows one after
    another; *bounds* [rows + 1], where each begins, and the end.
    """

    order: NDArray[np.int64]
    lengths: Ints
    ids: Ints
    segments: Ints
    bounds: Ints

    @property
    def positions(self) -> Ints:
        """Each token's place in its row, [tokens]."""
        return np.arange(len(self.ids), dtype=np.int32) - np.repeat(self.bounds[:-1], self.lengths)

    def groups(self) -> list[tuple[int, int, int]]:
        """Rows of one length: (first token, number of rows, their length), in order."""
        lengths, firsts, counts = np.unique(self.lengths, return_index=True, return_counts=True)
        starts = self.bounds[firsts]
        return list(zip(starts.tolist(), counts.tolist(), lengths.tolist(), strict=True))


def rows_of(batch: Batch) -> Rows:
    """Lay out *batch*."""
    counts = np.fromiter(map(len, batch.token_ids), dtype=np.int32, count=len(batch.token_ids))
    order = np.argsort(counts, kind="stable")
    lengths = counts[order]
    bounds = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=bounds[1:])
    ids = np.fromiter(chain.from_iterable(batch.token_ids[row] for row in order), dtype=np.int32, count=int(bounds[-1]))
    segments = np.zeros(len(ids), dtype=np.int32)
    if any(batch.pair_at):
        for row, number in enumerate(order):
            if begins := batch.pair_at[number]:
                segments[bounds[row] + begins : bounds[row + 1]] = 1
    return Rows(order, lengths, ids, segments, bounds)


def _check(rows: Rows, vocab_size: int, max_positions: int) -> None:
    """On a GPU, reading a table beyond its end would end all work of the process, not this pass alone."""
    if rows.lengths[-1] > max_positions:
        raise BackendError(f"a row has more than the {max_positions} tokens this trunk has positions for")
    if rows.lengths[0] < 1 or rows.ids.min() < 0 or rows.ids.max() >= vocab_size:
        raise BackendError("a row is empty or has a token id that is not in the trunk's vocabulary")


class _Encoder(Protocol):
    """From token ids to hidden states, on one device."""

    @property
    def max_positions(self) -> int:
        """Tokens the longest row may have."""
        ...

    def hidden(self, rows: Rows, layers: frozenset[int]) -> tuple[Tensor, dict[int, Tensor]]:
        """`Rows.bounds`, int32 on the device; and of each of *layers*, 0 the embedding layer, its states [tokens, width]."""
        ...


def _read_encoder(directory: Path, device: Any, dtype: Any, *, compiles: bool) -> _Encoder:
    if read_json(directory / "config.json").get("model_type") != "bert":
        return _Relative(directory, device, dtype)
    config = read_config(directory)
    return _FlatBert(config, read_weights(directory, config), device, dtype, compiles=compiles)


def _stage(arrays: Sequence[Ints], device: Any) -> list[Tensor]:
    """*arrays* on *device* by a single copy, which is not waited for."""
    packed = torch.from_numpy(np.concatenate(arrays))
    if device.type == "cuda":
        packed = packed.pin_memory().to(device, non_blocking=True)
    return list(packed.split([len(array) for array in arrays]))


def _fetch(parts: Sequence[Tensor]) -> list[FloatArray]:
    """*parts*, float32, as arrays that own their memory, by a single copy. The one place where a pass waits for a GPU."""
    packed = torch.cat([part.reshape(-1) for part in parts])
    if packed.is_cuda:
        pinned = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
        pinned.copy_(packed, non_blocking=True)
        torch.cuda.current_stream(packed.device).synchronize()
        packed = pinned
    flat: FloatArray = packed.numpy()
    ends = np.cumsum([part.numel() for part in parts])
    return [piece.reshape(part.shape).copy() for piece, part in zip(np.split(flat, ends[:-1]), parts, strict=True)]


def _split(vectors: FloatArray, view: View, lengths: Sequence[int]) -> Sequence[FloatArray]:
    if view.pooling != "tokens":
        return list(vectors)
    return [rows.copy() for rows in np.split(vectors, np.cumsum(lengths)[:-1])]


def _read(states: Tensor, rows: Rows, bounds: Tensor, view: View, places: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """The rows of *places* read by *view*, float32 [any, width'], and whether they are finite, float32 [1]."""
    numbers = [row for row, _ in places]
    is_all = numbers == list(range(len(rows.lengths)))
    if view.pooling == "tokens":
        spans = [states[rows.bounds[row] : rows.bounds[row + 1]] for row in numbers]
        vectors = (states if is_all else torch.cat(spans)).float()
    else:
        vectors = _POOLS[view.pooling](states, bounds)
        if not is_all:
            vectors = vectors[_stage([np.array(numbers, dtype=np.int32)], states.device)[0]]
    is_finite = torch.isfinite(vectors).all().float().reshape(1)
    if view.dims:
        vectors = vectors[:, : view.dims]
    return (functional.normalize(vectors, dim=1, eps=1e-12) if view.normalize else vectors), is_finite


_Pool = Callable[[Tensor, Tensor], Tensor]


def _mean(states: Tensor, bounds: Tensor) -> Tensor:
    return _reduce(states, bounds, "mean")


def _maximum(states: Tensor, bounds: Tensor) -> Tensor:
    return _reduce(states, bounds, "max")


def _reduce(states: Tensor, bounds: Tensor, how: str) -> Tensor:
    # *unsafe* leaves out a check of the lengths, for which the host would wait for the device.
    return torch.segment_reduce(states.float(), how, lengths=bounds.diff(), axis=0, unsafe=True)


def _first(states: Tensor, bounds: Tensor) -> Tensor:
    return states.index_select(0, bounds[:-1]).float()


def _last(states: Tensor, bounds: Tensor) -> Tensor:
    return states.index_select(0, bounds[1:] - 1).float()


def _mean_max(states: Tensor, bounds: Tensor) -> Tensor:
    return torch.cat([_mean(states, bounds), _maximum(states, bounds)], dim=1)


_POOLS: Final[dict[Pooling, _Pool]] = {
    "mean": _mean,
    "cls": _first,
    "max": _maximum,
    "mean_max": _mean_max,
    "sep": _last,
}


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer's weights: *qkv* projects to query, key and value at once; *rest* is what `finish_layer` takes."""

    qkv: Tensor
    qkv_bias: Tensor
    rest: tuple[Tensor, ...]


_REST: Final = ("attention.output.dense", "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm")

_Finish = Callable[[Tensor, Tensor, tuple[Tensor, ...], float], Tensor]


def finish_layer(hidden: Tensor, context: Tensor, rest: tuple[Tensor, ...], epsilon: float) -> Tensor:
    """What follows attention in a layer: *hidden* went into it, *context* came out, both [tokens, width].

    The statistics of LayerNorm are float32 whatever the dtype: PyTorch accumulates so.
    """
    mix, mix_bias, norm1, norm1_bias, up, up_bias, down, down_bias, norm2, norm2_bias = rest
    width = (hidden.shape[1],)
    hidden = functional.layer_norm(hidden + functional.linear(context, mix, mix_bias), width, norm1, norm1_bias, epsilon)
    inner = functional.gelu(functional.linear(hidden, up, up_bias))
    return functional.layer_norm(hidden + functional.linear(inner, down, down_bias), width, norm2, norm2_bias, epsilon)


class _FlatBert:
    """BERT over flat tokens."""

    def __init__(self, config: BertConfig, weights: Weights, device: Any, dtype: Any, *, compiles: bool) -> None:
        def tensor(array: FloatArray) -> Tensor:
            return torch.from_numpy(array).to(device=device, dtype=dtype)

        self.max_positions = config.max_positions
        self._config = config
        self._device = device
        self._words = tensor(weights["embeddings.word_embeddings.weight"])
        # A token's position and segment choose one row of this table: segment 0's positions, then segment 1's.
        positions = weights["embeddings.position_embeddings.weight"]
        self._places = tensor(np.concatenate([positions + row for row in weights["embeddings.token_type_embeddings.weight"]]))
        self._norm = [tensor(weights[f"embeddings.LayerNorm.{part}"]) for part in ("weight", "bias")]
        self._layers = [_layer(weights, f"encoder.layer.{number}", tensor) for number in range(config.num_layers)]
        size = config.width // config.num_heads
        self._is_varlen = has_varlen(device, dtype, size)
        self._finish: _Finish = self._compiled() if compiles else finish_layer

    def hidden(self, rows: Rows, layers: frozenset[int]) -> tuple[Tensor, dict[int, Tensor]]:
        config = self._config
        ids, places, bounds = _stage([rows.ids, rows.positions + config.max_positions * rows.segments, rows.bounds], self._device)
        attend = self._attention(rows, bounds)
        embedded = self._words.index_select(0, ids) + self._places.index_select(0, places)
        # A single token would be compiled for anew.
        finish = self._finish if len(rows.ids) > 1 else finish_layer
        states = {0: functional.layer_norm(embedded, (config.width,), *self._norm, config.epsilon)}
        for number, layer in enumerate(self._layers[: max(layers)]):
            hidden = states[number] if number in layers else states.pop(number)
            context = attend(functional.linear(hidden, layer.qkv, layer.qkv_bias))
            states[number + 1] = finish(hidden, context, layer.rest, config.epsilon)
        return bounds, states

    def _attention(self, rows: Rows, bounds: Tensor) -> Callable[[Tensor], Tensor]:
        """From query, key and value side by side, [tokens, 3 * width], to the context, [tokens, width]."""
        shape = (len(rows.ids), 3, self._config.num_heads, self._config.width // self._config.num_heads)
        longest, groups = int(rows.lengths[-1]), [] if self._is_varlen else rows.groups()

        def varlen(qkv: Tensor) -> Tensor:
            query, key, value = qkv.view(shape).unbind(1)
            return varlen_attn(query, key, value, bounds, bounds, longest, longest).reshape(len(rows.ids), -1)

        def grouped(qkv: Tensor) -> Tensor:
            return torch.cat([attend_group(qkv.view(shape), *group) for group in groups])

        return varlen if self._is_varlen else grouped

    def _compiled(self) -> _Finish:
        config = self._config

        def attempt(finish: _Finish) -> None:
            # Two numbers of tokens: from the second on that number is a variable of what was compiled.
            for count in (24, 40):
                sample = torch.randn(count, config.width, device=self._device, dtype=self._words.dtype)
                finish(sample, -sample, self._layers[0].rest, config.epsilon)

        # As in a pass: what was compiled for tensors of another mode would not be used there.
        with torch.inference_mode():
            return compiled_or_plain(finish_layer, attempt)


def compiled_or_plain(finish: _Finish, attempt: Callable[[_Finish], None], compiler: Callable[..., Any] | None = None) -> _Finish:
    """*finish* compiled, if *attempt* with it succeeds; else *finish* itself, said in the log."""
    try:
        compiled: _Finish = (compiler or torch.compile)(finish)
        attempt(compiled)
    except Exception as error:  # compilers, linkers and drivers fail in their own ways
        _log.warning("the layers are not compiled: %s; each pass takes longer", str(error).strip().partition("\n")[0])
        return finish
    return compiled


def has_varlen(device: Any, dtype: Any, head_size: int) -> bool:
    """Whether PyTorch's attention over rows of unlike lengths runs here: flash attention, so a GPU and 16-bit numbers."""
    if varlen_attn is None or device.type != "cuda" or dtype == torch.float32 or head_size % 8 or head_size > 256:
        return False
    return bool(torch.cuda.get_device_capability(device) >= _LEAST_CAPABILITY)


def attend_group(qkv: Tensor, start: int, num_rows: int, length: int) -> Tensor:
    """Attention of *num_rows* rows of one *length* that begin at token *start* of *qkv*, [tokens, 3, heads, size].

    Returns [num_rows * length, heads * size].
    """
    part = qkv[start : start + num_rows * length].unflatten(0, (num_rows, length))
    query, key, value = part.permute(2, 0, 3, 1, 4)
    mixed = functional.scaled_dot_product_attention(query, key, value)
    return mixed.transpose(1, 2).reshape(num_rows * length, -1)


def _layer(weights: Weights, name: str, tensor: Callable[[FloatArray], Tensor]) -> _Layer:
    def of(*parts: str) -> list[FloatArray]:
        return [weights[f"{name}.{part}"] for part in parts]

    names = [f"attention.self.{part}" for part in ("query", "key", "value")]
    rest = of(*chain.from_iterable((f"{part}.weight", f"{part}.bias") for part in _REST))
    return _Layer(
        qkv=tensor(np.concatenate(of(*(f"{part}.weight" for part in names)))),
        qkv_bias=tensor(np.concatenate(of(*(f"{part}.bias" for part in names)))),
        rest=tuple(tensor(array) for array in rest),
    )


class _Relative:
    """A BERT-like encoder as `transformers` runs it, each row padded to the longest."""

    def __init__(self, directory: Path, device: Any, dtype: Any) -> None:
        self._device = device
        self._model = _pretrained(directory, dtype).to(device).eval()
        config = self._model.config
        self._pad_id = config.pad_token_id or 0
        takes_segments = "token_type_ids" in inspect.signature(self._model.forward).parameters
        self._has_segments = takes_segments and getattr(config, "type_vocab_size", 0) > 1
        self.max_positions = config.max_position_embeddings - position_offset(config.model_type, self._pad_id)
        # In some versions of transformers a pass that gathers all layers swaps methods of the one model meanwhile.
        self._lock = threading.Lock()

    def hidden(self, rows: Rows, layers: frozenset[int]) -> tuple[Tensor, dict[int, Tensor]]:
        mask = np.arange(rows.lengths[-1]) < rows.lengths[:, None]
        ids, segments = np.full(mask.shape, self._pad_id, dtype=np.int32), np.zeros(mask.shape, dtype=np.int32)
        ids[mask], segments[mask] = rows.ids, rows.segments
        flat = [array.reshape(-1).astype(np.int32) for array in (ids, mask, segments)]
        *staged, places, bounds = _stage([*flat, np.flatnonzero(mask).astype(np.int32), rows.bounds], self._device)
        names = ("input_ids", "attention_mask", "token_type_ids")
        inputs = {name: part.view(mask.shape) for name, part in zip(names, staged, strict=True)}
        if not self._has_segments:
            del inputs["token_type_ids"]
        states = self._states(inputs, layers)
        return bounds, {layer: state.reshape(-1, state.shape[-1]).index_select(0, places) for layer, state in states.items()}

    def _states(self, inputs: dict[str, Tensor], layers: frozenset[int]) -> dict[int, Tensor]:
        inputs = {name: part.long() for name, part in inputs.items()}
        top = self._model.config.num_hidden_layers
        if layers == {top}:
            return {top: self._model(**inputs).last_hidden_state}
        with self._lock:
            output = self._model(**inputs, output_hidden_states=True)
        return {layer: output.last_hidden_state if layer == top else output.hidden_states[layer] for layer in layers}


def _pretrained(directory: Path, dtype: Any) -> Any:
    try:
        from transformers import AutoModel  # noqa: PLC0415 (slow, and a BERT does without it)
        from transformers.utils import logging as their_logging  # noqa: PLC0415
    except ImportError as error:
        raise PreparationError("this model needs transformers: pip install 'trunkline[embedding-gpu]'") from error
    their_logging.disable_progress_bar()
    their_logging.set_verbosity_error()
    model, found = AutoModel.from_pretrained(
        directory,
        trust_remote_code=False,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        dtype=dtype,
    )
    # What is missing is filled with random numbers; of the pooler we read nothing.
    missing = sorted(name for name in found["missing_keys"] if "pooler" not in name)
    if missing:
        raise PreparationError(f"the weights lack {missing[0]}; fetch the model again, or choose another")
    return model
