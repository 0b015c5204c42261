"""`python -m perf.micro.gpu_encoder`: how much of a GPU's matrix rate the torch engine turns into tokens. In one go.

First the rate of a large matrix product is measured: the ceiling. Then, for BERT-base (random weights) and MiniLM-L6 (real
ones where they are at hand), each of several lengths and budgets of tokens a pass is run in each of these ways, one after
another: our backend as it is, compiled, and compiled with two threads feeding it; `transformers` on padded rows, all in one
pass; and the same 32 rows a pass, longest first, as sentence-transformers does by default. Each way starts from token ids in
host memory and ends with pooled float32 vectors there. Time is wall time, the median of three windows.

Operations a token, forward only: layers * 24 * width^2 + 4 * length * width * layers.
"""

import argparse
import functools
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.numpy import save_file
from torch.nn import functional

from embedding_service.backend import Batch, EngineSpec, FloatArray, PassCost, TrunkSpec, View
from embedding_service.backend.torch import DTYPES, Precision, TorchBackend
from embedding_service.models.bert import expected_shapes, read_config

VOCABULARY: Final = 30_522
RAGGED: Final = (16, 256)
LENGTHS: Final[tuple[int | tuple[int, int], ...]] = (32, 128, 512, RAGGED)
BUDGETS: Final = (0, 4_096, 16_384, 65_536)
"""Tokens of a pass; 0: a single row."""
SENTENCE_TRANSFORMERS_ROWS: Final = 32
NUM_WINDOWS: Final = 3
NUM_BATCHES: Final = 4
VIEWS: Final = tuple(View(pooling) for pooling in ("mean", "cls", "max", "mean_max", "sep", "tokens"))

Rows = tuple[tuple[int, ...], ...]
Run = Callable[[Rows], None]
Way = Literal["ours", "ours, compiled", "ours, compiled, 2 threads", "transformers, one pass", "transformers, 32 rows a pass"]


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers of a BERT that operations are counted from; its feed-forward part is four times as wide."""

    name: str
    num_layers: int
    width: int
    num_heads: int


SHAPES: Final = (Shape("BERT-base", 12, 768, 12), Shape("MiniLM-L6", 6, 384, 12))


@dataclass(frozen=True, slots=True)
class Line:
    """One way of running one kind of batch; *share* is of the measured matrix rate."""

    model: str
    lengths: str
    tokens: int
    rows: int
    way: Way
    tokens_per_second: float
    ms_per_pass: float
    tflops: float
    share: float


def flops(shape: Shape, lengths: Sequence[int]) -> float:
    """Of one forward pass over rows of *lengths*, nothing padded."""
    dense = 24 * shape.width**2 * sum(lengths)
    attention = 4 * shape.width * sum(length * length for length in lengths)
    return float(shape.num_layers * (dense + attention))


def matrix_tflops(device: str, dtype: Any, size: int, repeats: int = 20) -> float:
    """The rate of the product of two random matrices of *size* x *size*, one transposed as a layer's weights are."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = []
    for number in range(repeats + 3):
        started = time.perf_counter()
        functional.linear(left, right)
        synchronize(device)
        if number >= 3:
            seconds.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(seconds) / 1e12


def synchronize(device: str) -> None:
    """Wait until the device has nothing left to do."""
    if device == "cuda":
        torch.cuda.synchronize()


def write_model(directory: Path, shape: Shape) -> Path:
    """A BERT of *shape* with random weights, in the new *directory*."""
    directory.mkdir(parents=True)
    config = {"model_type": "bert", "hidden_size": shape.width, "num_hidden_layers": shape.num_layers}
    config |= {"num_attention_heads": shape.num_heads, "intermediate_size": 4 * shape.width}
    config |= {"max_position_embeddings": 512, "vocab_size": VOCABULARY}
    (directory / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    weights = {}
    for name, expected in expected_shapes(read_config(directory)).items():
        scale = 1.0 if name.endswith("LayerNorm.weight") else 0.0
        weights[name] = scale + 0.02 * rng.standard_normal(expected, dtype=np.float32)
    save_file(weights, directory / "model.safetensors")
    return directory


def batches(lengths: int | tuple[int, int], budget: int, count: int) -> list[Rows]:
    """*count* batches of random ids of about *budget* tokens, or of one row where that is 0."""
    rng = np.random.default_rng(1)

    def batch() -> Iterator[tuple[int, ...]]:
        num_tokens = 0
        while not num_tokens or num_tokens < budget:
            length = lengths if isinstance(lengths, int) else int(rng.integers(lengths[0], lengths[1] + 1))
            yield tuple(rng.integers(1_000, VOCABULARY, length).tolist())
            num_tokens += length

    return [tuple(batch()) for _ in range(count)]


def make_backend(directory: Path, precision: Precision, device: str, *, compiles: bool = False) -> TorchBackend:
    """Our backend on the BERT of *directory*."""
    config = read_config(directory)
    identity = "sha256:" + "0" * 64
    trunk = TrunkSpec("measured", identity, config.width, config.num_layers, config.vocab_size, 512, View(), "", b"")
    engine = EngineSpec(f"torch {precision}", 1.0, PassCost(padding=0.0), 2, (-1,))
    return TorchBackend(trunk, engine, directory, precision=precision, device=device, compiles=compiles)


def padded_encoder(directory: Path, dtype: Any, device: str, max_rows: int | None) -> Run | None:
    """What sentence-transformers does with token ids, *max_rows* a pass; None where transformers is not installed."""
    try:
        from transformers import BertModel  # noqa: PLC0415 (may not be there)
        from transformers.utils import logging  # noqa: PLC0415
    except ImportError:
        return None
    logging.disable_progress_bar()
    model = BertModel.from_pretrained(directory, add_pooling_layer=False, local_files_only=True, dtype=dtype).to(device).eval()

    def run(rows: Rows) -> None:
        ordered = sorted(rows, key=len, reverse=True)
        size = max_rows or len(ordered)
        vectors = [_padded_pass(model, ordered[start : start + size], device) for start in range(0, len(ordered), size)]
        torch.cat(vectors).float().cpu().numpy()

    return run


def _padded_pass(model: Any, rows: Sequence[tuple[int, ...]], device: str) -> Any:
    longest = len(rows[0])
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows]).to(device)
    mask = (torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]).long().to(device)
    with torch.inference_mode():
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).to(states.dtype)
        return functional.normalize((states * weights).sum(1) / weights.sum(1), dim=1)


def seconds_per_pass(run: Run, prepared: Sequence[Rows], window_seconds: float, num_threads: int) -> float:
    """The median of `NUM_WINDOWS` windows; with several threads, wall time by passes of all of them."""
    for rows in prepared[:2]:
        run(rows)
    return statistics.median(_window(run, prepared, window_seconds, num_threads) for _ in range(NUM_WINDOWS))


def _window(run: Run, prepared: Sequence[Rows], window_seconds: float, num_threads: int) -> float:
    counts = [0] * num_threads
    started = time.perf_counter()

    def work(number: int) -> None:
        # Whole rounds, so that every batch is run equally often.
        while not counts[number] or time.perf_counter() < started + window_seconds:
            for rows in prepared:
                run(rows)
            counts[number] += len(prepared)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (time.perf_counter() - started) / sum(counts)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured. In a quick run the models have two layers and a quarter of the width, and all else is small too."""

    device: str
    precision: Precision
    lengths: tuple[int | tuple[int, int], ...]
    budgets: tuple[int, ...]
    window_seconds: float
    is_quick: bool
    matrix_size: int
    compiles: bool
    max_seconds: float


@contextmanager
def ways_of(directory: Path, plan: Plan) -> Iterator[dict[Way, tuple[Run, int]]]:
    """Each way of running a batch, and with how many threads; and our backends, closed at the end."""
    ours = {"ours": make_backend(directory, plan.precision, plan.device)}
    if plan.compiles:
        ours["ours, compiled"] = make_backend(directory, plan.precision, plan.device, compiles=True)
    ways: dict[Way, tuple[Run, int]] = {}
    for name, num_threads in (("ours", 1), ("ours, compiled", 1), ("ours, compiled, 2 threads", 2)):
        if (backend := ours.get(name.removesuffix(", 2 threads"))) is not None:
            ways[_way(name)] = functools.partial(_embed, backend), num_threads
    for name, max_rows in (("transformers, one pass", None), ("transformers, 32 rows a pass", SENTENCE_TRANSFORMERS_ROWS)):
        if (run := padded_encoder(directory, DTYPES[plan.precision], plan.device, max_rows)) is not None:
            ways[_way(name)] = run, 1
    try:
        yield ways
    finally:
        for backend in ours.values():
            backend.close()


def _way(name: str) -> Way:
    found: Way = next(way for way in get_args(Way) if way == name)
    return found


def _embed(backend: TorchBackend, rows: Rows) -> None:
    backend.embed(Batch(rows, ((backend.trunk.default_view,),) * len(rows)))


def least_cosine(directory: Path, plan: Plan) -> dict[str, float]:
    """Over every pooling of ragged rows: our backend, and compiled, beside float32 on the CPU. Speed means nothing without it."""
    (rows,) = batches((3, 90), 600, 1)
    batch = Batch(rows, (VIEWS,) * len(rows), tuple(len(row) // 2 for row in rows))

    def vectors(precision: Precision, device: str, *, compiles: bool) -> list[FloatArray]:
        backend = make_backend(directory, precision, device, compiles=compiles)
        result = backend.embed(batch)
        backend.close()
        return [array.reshape(-1, array.shape[-1]) for row in result for array in row]

    expected = vectors("fp32", "cpu", compiles=False)
    least = {}
    for name, compiles in (("ours", False), ("ours, compiled", True))[: 1 + plan.compiles]:
        actual = vectors(plan.precision, plan.device, compiles=compiles)
        cosines = [np.einsum("ij,ij->i", *both) for both in zip(expected, actual, strict=True)]
        # mean_max and the others all have length 1, so the products are cosines.
        least[name] = float(min(values.min() for values in cosines))
    return least


def measure(shape: Shape, directory: Path, plan: Plan, ceiling: float, stop: float) -> Iterator[Line]:
    """Every length and budget in every way, until *stop* (seconds of `time.monotonic`)."""
    with ways_of(directory, plan) as ways:
        for lengths in plan.lengths:
            for budget in plan.budgets:
                prepared = batches(lengths, budget, NUM_BATCHES)
                for way, (run, num_threads) in ways.items():
                    if time.monotonic() > stop:
                        return
                    seconds = seconds_per_pass(run, prepared, plan.window_seconds, num_threads)
                    yield _line(shape, lengths, prepared, way, seconds, ceiling)


def _line(
    shape: Shape, lengths: int | tuple[int, int], prepared: Sequence[Rows], way: Way, seconds: float, ceiling: float
) -> Line:
    tokens = statistics.mean(sum(map(len, rows)) for rows in prepared)
    tflops = statistics.mean(flops(shape, [len(row) for row in rows]) for rows in prepared) / seconds / 1e12
    return Line(
        model=shape.name,
        lengths=str(lengths) if isinstance(lengths, int) else f"{lengths[0]}-{lengths[1]}",
        tokens=round(tokens),
        rows=round(statistics.mean(map(len, prepared))),
        way=way,
        tokens_per_second=tokens / seconds,
        ms_per_pass=seconds * 1000,
        tflops=tflops,
        share=tflops / ceiling,
    )


def as_table(lines: Sequence[Line], title: str) -> Table:
    """*lines* for people."""
    table = Table(title=title, title_justify="left")
    for heading in ("model", "lengths", "tokens", "rows", "way"):
        table.add_column(heading)
    for heading in ("ms a pass", "k tokens/s", "TFLOP/s", "of the matrix rate"):
        table.add_column(heading, justify="right")
    for line in lines:
        measured = (f"{line.ms_per_pass:.2f}", f"{line.tokens_per_second / 1000:.1f}", f"{line.tflops:.2f}", f"{line.share:.1%}")
        table.add_row(line.model, line.lengths, str(line.tokens), str(line.rows), line.way, *measured)
    return table


def plan_of(asked: argparse.Namespace) -> Plan:
    """What the command line asks for."""
    compiles = asked.device == "cuda" if asked.compile is None else asked.compile
    if asked.quick:
        return Plan(asked.device, asked.precision, (32, RAGGED), (0, 256), 0.01, True, 256, compiles, asked.max_seconds)
    return Plan(asked.device, asked.precision, LENGTHS, BUDGETS, 0.3, False, 8_192, compiles, asked.max_seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m perf.micro.gpu_encoder", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--precision", choices=get_args(Precision), default="bf16")
    parser.add_argument("--quick", action="store_true", help="small models and batches: does it run?")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default: on a GPU")
    parser.add_argument("--minilm", type=Path, default=_cached_minilm(), help="the directory of all-MiniLM-L6-v2")
    parser.add_argument("--max-seconds", type=float, default=540, help="what is not measured by then is left out")
    parser.add_argument("--json", type=Path, help="write all numbers here")
    asked = parser.parse_args(arguments)
    plan, stop = plan_of(asked), time.monotonic() + asked.max_seconds
    console = Console(width=140)
    name = torch.cuda.get_device_name() if plan.device == "cuda" else "CPU, one thread a pass"
    if plan.device == "cpu":
        torch.set_num_threads(1)
    ceiling = matrix_tflops(plan.device, DTYPES[plan.precision], plan.matrix_size)
    console.print(f"{name}, PyTorch {torch.__version__}, {plan.precision}: a matrix product runs at {ceiling:.2f} TFLOP/s")
    lines: list[Line] = []
    agreement: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="trunkline-micro-") as folder:
        for number, shape in enumerate(SHAPES):
            measured, directory = _model(shape, Path(folder), plan, asked.minilm)
            agreement[shape.name] = least_cosine(directory, plan)
            console.print(f"{directory.name}: least cosine to float32 on the CPU {agreement[shape.name]}")
            # What one model leaves of the time, the next may use.
            share = (stop - time.monotonic()) / (len(SHAPES) - number)
            of_model = list(measure(measured, directory, plan, ceiling, time.monotonic() + share))
            console.print(as_table(of_model, f"{shape.name}, {plan.precision}"))
            lines += of_model
    if asked.json:
        facts = {"device": name, "torch": torch.__version__, "precision": plan.precision, "matrix_tflops": ceiling}
        facts |= {"least_cosine": agreement, "lines": [asdict(line) for line in lines]}
        asked.json.write_text(json.dumps(facts, indent=1))


def _model(shape: Shape, folder: Path, plan: Plan, minilm: Path | None) -> tuple[Shape, Path]:
    if plan.is_quick:
        shape = Shape(shape.name, 2, shape.width // 4, shape.num_heads)
    elif shape.name == "MiniLM-L6" and minilm is not None and (minilm / "model.safetensors").is_file():
        return shape, minilm
    return shape, write_model(folder / f"{shape.name}-random", shape)


def _cached_minilm() -> Path | None:
    cache = Path(os.environ.get("TRUNKLINE_CACHE_DIR") or Path.home() / ".cache" / "trunkline")
    found = cache / "trunks" / "all-MiniLM-L6-v2"
    return found if found.is_dir() else None


if __name__ == "__main__":
    main()
