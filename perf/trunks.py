"""The directories that what is measured is given: one trunk for all, so that all compute the same tokens."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from embedding_service.models.bert import read_config, read_weights
from embedding_service.models.fetch import fetch
from embedding_service.models.graph import build_graph, quantize_int8

LONG_TOKENS: Final = 512
"""MIX has texts of up to as many; the default trunk says 256 of itself, though its positions reach this far."""

INT8_FILE: Final = "model_quantized.onnx"
_LENGTH_FILE: Final = "sentence_bert_config.json"
_OURS: Final = "hidden_{}"
_STANDARD: Final = "last_hidden_state"
"""How our graphs name a layer, and how the exporters of others, and so their runners, name the last one."""


def long_trunk(cache_dir: Path) -> Path:
    """The default trunk's files in a directory that says it takes texts of `LONG_TOKENS`; made at the first call.

    Raises:
        PreparationError: the default trunk cannot be had.
    """
    source = fetch(None, cache_dir=cache_dir, progress=print).directory
    return _made(cache_dir / "perf" / f"{source.name}-{LONG_TOKENS}", lambda place: link_trunk(source, place))


def int8_trunk(trunk: Path, cache_dir: Path) -> Path:
    """*trunk* with a dynamic-int8 ONNX file beside it, for servers that run such; made at the first call.

    The graph is our own for ONNX Runtime, fused and quantised, under the names that others expect: inputs input_ids and
    attention_mask int64 [batch, seq], output last_hidden_state float32 [batch, seq, width].
    """
    return _made(cache_dir / "perf" / f"{trunk.name}-int8", lambda place: add_int8(trunk, place))


def link_trunk(source: Path, place: Path) -> None:
    """Make *place* a trunk whose files are those of *source*, but that says it takes `LONG_TOKENS`."""
    place.mkdir(exist_ok=True)
    for path in source.iterdir():
        if path.name != _LENGTH_FILE:
            (place / path.name).symlink_to(path.resolve())
    (place / _LENGTH_FILE).write_text(json.dumps({"max_seq_length": LONG_TOKENS, "do_lower_case": False}))


def add_int8(trunk: Path, place: Path) -> None:
    """Make *place* a copy of *trunk* with `INT8_FILE` in it: whoever runs it may write beside it."""
    shutil.copytree(trunk, place, dirs_exist_ok=True)
    config = read_config(trunk)
    model = build_graph(config, read_weights(trunk, config), (-1,), "onnxruntime")
    _count_positions(model.graph)
    ours = _OURS.format(config.num_layers)
    for node in model.graph.node:
        node.output[:] = [_STANDARD if name == ours else name for name in node.output]
    model.graph.output[0].name = _STANDARD
    full = place / "full.onnx"
    full.write_bytes(model.SerializeToString())
    quantize_int8(str(full), str(place / INT8_FILE))
    full.unlink()


def _count_positions(graph: onnx.GraphProto) -> None:
    """Let *graph* make its input position_ids itself, those of single texts: 2 * place (see `models.graph`)."""
    numbers = {"zero": 0, "two": 2, "axis": 0}
    graph.initializer.extend(
        numpy_helper.from_array(np.array([value] if name == "axis" else value, dtype=np.int64), f"counted_{name}")
        for name, value in numbers.items()
    )
    counting = [
        helper.make_node("Shape", ["input_ids"], ["counted_shape"], start=1, end=2),
        helper.make_node("Squeeze", ["counted_shape"], ["counted_length"]),
        helper.make_node("Mul", ["counted_length", "counted_two"], ["counted_end"]),
        helper.make_node("Range", ["counted_zero", "counted_end", "counted_two"], ["counted_row"]),
        helper.make_node("Unsqueeze", ["counted_row", "counted_axis"], ["position_ids"]),
    ]
    nodes, inputs = [*counting, *graph.node], [given for given in graph.input if given.name != "position_ids"]
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    graph.input.extend(inputs)


def _made(target: Path, fill: Callable[[Path], None]) -> Path:
    if not target.is_dir():
        with built(target) as place:
            fill(place)
    return target


@contextmanager
def built(target: Path) -> Iterator[Path]:
    """A new folder beside the place of *target*, which becomes *target* when all went well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".building-") as scratch:
        folder = Path(scratch) / target.name
        folder.mkdir()
        yield folder
        folder.rename(target)
