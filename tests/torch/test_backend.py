import asyncio
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from transformers import (
    AlbertConfig,
    AutoModel,
    CamembertConfig,
    DistilBertConfig,
    ElectraConfig,
    MPNetConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from clients.wire.text import TextEncoder
from embedding_service.backend import BackendError, Batch, BatchResult, EngineSpec, PassCost, TrunkSpec, View
from embedding_service.backend.load import load_backend
from embedding_service.backend.torch import TorchBackend, attend_group, compiled_or_plain, finish_layer, rows_of
from embedding_service.batching import Batcher, Row
from embedding_service.models.errors import PreparationError
from embedding_service.models.prepare import prepare
from embedding_service.models.quality_texts import QUALITY_TEXTS
from embedding_service.models.torch_engine import RELATIVES, read_shape
from embedding_service.queue import QueueLimits
from tests.embedding_service.test_batching import CountingTelemetry
from tests.tiny_trunk import VOCABULARY, make_tiny_trunk
from trunkline import paths

LAYERS = (-1, -2, -3)
POOLINGS = ("mean", "cls", "max", "mean_max", "sep", "tokens")
ROWS = ((2, 5, 3), (2, 9, 8, 7, 6, 11, 3), (2, 3), (2, 30, 3), tuple(range(2, 40)), (2, 9, 8, 7, 6, 12, 3))
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
RELATIVE_CONFIGS = {
    "albert": AlbertConfig(embedding_size=16, **TINY),
    "camembert": CamembertConfig(**TINY),
    "distilbert": DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=64),
    "electra": ElectraConfig(embedding_size=16, **TINY),
    "mpnet": MPNetConfig(**TINY),
    "roberta": RobertaConfig(type_vocab_size=1, **TINY),
    "xlm-roberta": XLMRobertaConfig(type_vocab_size=1, **TINY),
}


@pytest.fixture(scope="session")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_trunk(tmp_path_factory.mktemp("trunk") / "tiny")


@pytest.fixture(scope="session")
def backend(trunk: Path) -> TorchBackend:
    """The tiny trunk in float32, every layer offered."""
    return backend_of(trunk)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def backend_of(directory: Path, precision: str = "fp32", layers: tuple[int, ...] = LAYERS, **options: object) -> TorchBackend:
    shape = read_shape(directory, "torch-fp32")
    spec = TrunkSpec(
        "tiny", "sha256:" + "0" * 64, shape.width, shape.num_layers, shape.vocab_size, shape.max_positions, View(), "", b""
    )
    engine = EngineSpec("torch", 1.0, PassCost(padding=0.0), 2, layers)
    return TorchBackend(spec, engine, directory, precision=precision, device="cpu", **options)


def make_relative(directory: Path, model_type: str) -> Path:
    """A tiny random model of *model_type*, as transformers saves it, with the tiny trunk's tokenizer."""
    config = RELATIVE_CONFIGS[model_type]
    config.vocab_size, config.max_position_embeddings = len(VOCABULARY), 64
    # Wide weights: with the usual ones all texts look alike, and a fault would hardly show.
    config.initializer_range = 0.3
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(directory)
    tokenizer = make_tiny_trunk(directory / "other") / "tokenizer.json"
    tokenizer.rename(directory / "tokenizer.json")
    return directory


def least_cosine(expected: BatchResult, actual: BatchResult) -> float:
    def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        assert one.shape == other.shape
        assert one.dtype == other.dtype == np.float32
        return np.sum(one * other, -1) / (np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1))

    pairs = zip(expected, actual, strict=True)
    return min(float(cosines(*both).min()) for rows in pairs for both in zip(*rows, strict=True))


def by_transformers(directory: Path, ids: tuple[int, ...], pair_at: int = 0) -> list[np.ndarray]:
    """All hidden states of one text, [embedding layer, layer 1, ...], each [tokens, width]."""
    inputs = {"input_ids": torch.tensor([ids])}
    if pair_at:
        inputs["token_type_ids"] = (torch.arange(len(ids)) >= pair_at).long()[None]
    model = AutoModel.from_pretrained(directory).eval()
    with torch.no_grad():
        return [state[0].numpy() for state in model(**inputs, output_hidden_states=True).hidden_states]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_view_of_ragged_rows_agrees_with_onnx(trunk, cache, pooling, layer):
    onnx = load_backend(prepare(str(trunk), cache_dir=cache, engine="onnx-fp32", layers=LAYERS))
    views = tuple(View(pooling, layer, normalize, dims) for normalize in (True, False) for dims in (0, 5))
    batch = Batch(ROWS, (views,) * len(ROWS))

    expected, actual = onnx.embed(batch), backend_of(trunk).embed(batch)
    onnx.close()

    assert least_cosine(expected, actual) >= 0.9999
    np.testing.assert_allclose(actual[1][2], expected[1][2], atol=1e-3)


def test_each_row_is_read_by_its_own_views(trunk):
    backend = backend_of(trunk)
    mixed = [(View(),), (View("cls", -2), View("tokens")), (View("tokens", -2), View(), View()), (View("max"),), (), (View(),)]
    together = backend.embed(Batch(ROWS, tuple(mixed)))

    for ids, views, vectors in zip(ROWS, mixed, together, strict=True):
        assert len(views) == len(vectors)
        if views:
            assert least_cosine([vectors], backend.embed(Batch((ids,), (views,)))) >= 0.999999


@pytest.mark.parametrize("pair_at", [0, 4])
def test_hidden_states_equal_those_of_transformers(trunk, pair_at):
    ids = (2, 9, 8, 3, 6, 11, 3)
    views = tuple(View("tokens", layer, normalize=False) for layer in LAYERS)
    batch = Batch((*ROWS, ids), (views,) * (len(ROWS) + 1), (*(0 for _ in ROWS), pair_at))

    actual = backend_of(trunk).embed(batch)

    expected = by_transformers(trunk, ids, pair_at)
    for layer, array in zip(LAYERS, actual[-1], strict=True):
        np.testing.assert_allclose(array, expected[layer], atol=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_agrees_with_float32(trunk, precision):
    batch = Batch(ROWS, ((View("mean"), View("cls", -2), View("tokens")),) * len(ROWS))

    assert least_cosine(backend_of(trunk).embed(batch), backend_of(trunk, precision).embed(batch)) >= 0.999


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, len(VOCABULARY) - 1), min_size=1, max_size=20), min_size=1, max_size=8), st.data())
def test_a_row_does_not_depend_on_its_mates(backend, rows, data):
    pairs = tuple(data.draw(st.integers(0, len(ids) - 1)) for ids in rows)
    views = (View(), View("max", -2), View("sep", normalize=False))
    together = backend.embed(Batch(tuple(map(tuple, rows)), (views,) * len(rows), pairs))

    for ids, pair_at, vectors in zip(rows, pairs, together, strict=True):
        (alone,) = backend.embed(Batch((tuple(ids),), (views,), (pair_at,)))
        for one, other in zip(vectors, alone, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=12))
def test_rows_are_laid_out_shortest_first_in_groups_of_one_length(lengths: list[int]) -> None:
    ids = tuple(tuple(range(100 * row, 100 * row + length)) for row, length in enumerate(lengths))

    rows = rows_of(Batch(ids, ((),) * len(ids)))

    assert sorted(lengths) == rows.lengths.tolist()
    assert [token for row in rows.order for token in ids[row]] == rows.ids.tolist()
    assert [place for row in rows.order for place in range(lengths[row])] == rows.positions.tolist()
    groups = rows.groups()
    assert sorted(set(lengths)) == [length for _, _, length in groups]
    assert [start for start, _, _ in groups] == [0, *np.cumsum([count * length for _, count, length in groups])][:-1]
    assert len(rows.ids) == rows.bounds[-1]


def test_attention_is_within_each_row_of_a_group():
    qkv = torch.randn(11, 3, 2, 4, generator=torch.Generator().manual_seed(0))

    both = attend_group(qkv, 1, 2, 5)

    torch.testing.assert_close(both[:5], attend_group(qkv, 1, 1, 5))
    torch.testing.assert_close(both[5:], attend_group(qkv, 6, 1, 5))


def test_attention_over_unlike_rows_at_once_is_given_each_row_and_its_bounds(trunk, monkeypatch):
    """The kernel itself runs on a GPU only: in its place stands one that takes the same arguments, row by row."""

    def by_row(query, key, value, bounds, key_bounds, longest, longest_key):
        assert bounds is key_bounds
        assert bounds.dtype == torch.int32
        assert longest == longest_key == bounds.diff().max()
        spans = [slice(start, end) for start, end in itertools.pairwise(bounds.tolist())]
        rows = [[part[span].transpose(0, 1) for part in (query, key, value)] for span in spans]
        return torch.cat([torch.nn.functional.scaled_dot_product_attention(*row).transpose(0, 1) for row in rows])

    monkeypatch.setattr("embedding_service.backend.torch.varlen_attn", by_row)
    batch = Batch(ROWS, ((View(), View("tokens", -2)),) * len(ROWS), (0, 4, 0, 0, 9, 0))
    expected = backend_of(trunk).embed(batch)
    backend = backend_of(trunk)
    backend._encoder._is_varlen = True

    assert least_cosine(expected, backend.embed(batch)) >= 0.999999


def test_numbers_that_are_not_finite_fail_the_pass(tmp_path):
    directory = make_tiny_trunk(tmp_path / "tiny")
    weights = load_file(directory / "model.safetensors")
    weights["encoder.layer.1.output.dense.bias"][3] = np.nan
    save_file(weights, directory / "model.safetensors")
    backend = backend_of(directory)

    with pytest.raises(BackendError, match="not finite"):
        backend.embed(Batch(ROWS, ((View(dims=2),),) * len(ROWS)))
    below = backend.embed(Batch(ROWS, ((View(layer=-2),),) * len(ROWS)))
    assert np.isfinite(below).all()


@pytest.mark.parametrize("row", [(2, len(VOCABULARY)), (-1,), (), (2,) * 65])
def test_a_row_that_would_read_beyond_a_table_fails_the_pass(trunk, row):
    with pytest.raises(BackendError, match="a row"):
        backend_of(trunk).embed(Batch(((2, 3), row), ((View(),),) * 2))


def test_a_closed_backend_says_so(trunk):
    backend = backend_of(trunk)
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        backend.embed(Batch(ROWS, ((View(),),) * len(ROWS)))


def test_layers_that_cannot_be_compiled_run_one_by_one(caplog):
    def failing(_: Callable[..., object]) -> Callable[..., object]:
        raise RuntimeError("no compiler\nwas found")

    assert compiled_or_plain(finish_layer, lambda finish: None, failing) is finish_layer
    assert "the layers are not compiled: no compiler" in caplog.text


def test_a_layer_can_be_traced_by_the_compiler_with_any_number_of_tokens(trunk):
    traced = []

    def tracer(finish: Callable[..., object]) -> Callable[..., object]:
        def count(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
            traced.append(graph)
            return graph.forward

        return torch.compile(finish, backend=count)

    backend = backend_of(trunk)
    layer = backend._encoder._layers[0]
    samples = [torch.randn(count, 32) for count in (24, 40, 17, 33, 57)]

    def attempt(finish: Callable[..., object]) -> None:
        for sample in samples:
            expected = finish_layer(sample, -sample, layer.rest, 1e-12)
            torch.testing.assert_close(finish(sample, -sample, layer.rest, 1e-12), expected)

    with torch.inference_mode():
        assert compiled_or_plain(finish_layer, attempt, tracer) is not finish_layer
    assert 2 == len(traced), "once for one number, once for all"


def test_every_relative_is_tried() -> None:
    assert set(RELATIVE_CONFIGS) == RELATIVES


@pytest.mark.parametrize("model_type", sorted(RELATIVES))
def test_a_relative_runs_as_transformers_runs_it(tmp_path, model_type):
    directory = make_relative(tmp_path / "relative", model_type)
    rows = tuple(tuple(max(token, 2) for token in ids) for ids in ROWS)
    views = tuple(View("tokens", layer, normalize=False) for layer in LAYERS)

    together = backend_of(directory).embed(Batch(rows, ((*views, View("mean_max", -2)),) * len(rows)))

    for ids, arrays in zip(rows, together, strict=True):
        expected = by_transformers(directory, ids)
        for layer, array in zip(LAYERS, arrays, strict=False):
            np.testing.assert_allclose(array, expected[layer], atol=1e-4)
        both = np.concatenate([expected[-2].mean(0), expected[-2].max(0)])
        np.testing.assert_allclose(arrays[-1], both / np.linalg.norm(both), atol=1e-4)


def test_a_relative_with_segments_is_told_of_pairs(tmp_path):
    directory = make_relative(tmp_path / "relative", "electra")
    view = View("tokens", normalize=False)

    _, (actual,) = backend_of(directory).embed(Batch((ROWS[0], ROWS[1]), ((view,),) * 2, (0, 3)))

    np.testing.assert_allclose(actual, by_transformers(directory, ROWS[1], 3)[-1], atol=1e-4)


def test_a_relative_whose_weights_are_incomplete_is_refused(tmp_path):
    directory = make_relative(tmp_path / "relative", "roberta")
    weights = load_file(directory / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, directory / "model.safetensors", {"format": "pt"})

    with pytest.raises(PreparationError, match=r"the weights lack encoder\.layer\.1"):
        backend_of(directory)


@pytest.mark.parametrize(
    ("engine", "label", "least"), [("torch-fp32", "torch fp32", 0.9999), ("torch-bf16", "torch bf16", 0.999)]
)
def test_preparing_measures_the_agreement_once(trunk, cache, engine, label, least, monkeypatch):
    # Random weights are no ground for labels: bfloat16 changes many of them.
    monkeypatch.setattr("embedding_service.models.build.check_quality", lambda *_: None)
    first = prepare(str(trunk), cache_dir=cache, engine=engine)
    said = []

    second = prepare(str(trunk), cache_dir=cache, engine=engine, progress=said.append)

    assert first == second
    assert [] == said
    assert engine.replace("-", " ") == first.engine.label
    assert least <= first.engine.agreement <= 1.0001
    assert 0.0 == first.engine.pass_cost.padding
    backend = load_backend(first)
    assert (32,) == backend.embed(Batch(ROWS, ((View(),),) * len(ROWS)))[0][0].shape
    backend.close()


@pytest.mark.parametrize(("engine", "label"), [("auto", "torch fp32"), ("torch-bf16", "torch bf16")])
def test_preparing_a_relative_compares_it_with_itself_in_float32(tmp_path, engine, label):
    if engine == "auto" and torch.cuda.is_available():
        label = "torch bf16"
    directory = make_relative(tmp_path / "relative", "distilbert")

    prepared = prepare(str(directory), cache_dir=tmp_path / "cache", engine=engine)

    assert label == prepared.engine.label
    assert 0.999 <= prepared.engine.agreement <= 1.0001
    assert 1.0 == prepared.engine.pass_cost.padding
    assert 32 == prepared.spec.width


def test_auto_keeps_to_the_processor_where_no_gpu_is_found(trunk, cache):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    said = []

    prepared = prepare(str(trunk), cache_dir=cache, engine="auto", progress=said.append)

    assert not prepared.engine_name.startswith("torch")
    assert not any("torch" in line for line in said)


def test_a_relative_is_refused_by_the_engines_that_need_a_graph(tmp_path):
    directory = make_relative(tmp_path / "relative", "roberta")
    with pytest.raises(PreparationError, match="model_type 'roberta'"):
        prepare(str(directory), cache_dir=tmp_path / "cache", engine="onnx-fp32")


async def test_the_batcher_runs_it_from_several_threads(trunk):
    backend = backend_of(trunk)
    batcher = Batcher(backend, QueueLimits(max_batch_tokens=64), CountingTelemetry())
    calls = [[Row(ids, (View(),)) for ids in ROWS[start:] + ROWS[:start]] for start in range(len(ROWS))] * 4

    outcomes = await asyncio.gather(*(batcher.run(rows, deadline=time.monotonic() + 30) for rows in calls))
    await batcher.drain(5)

    alone = {ids: backend.embed(Batch((ids,), ((View(),),)))[0][0] for ids in ROWS}
    for rows, outcome in zip(calls, outcomes, strict=True):
        for row, vectors in zip(rows, outcome.vectors, strict=True):
            np.testing.assert_allclose(vectors[0], alone[row.token_ids], atol=1e-5)


@pytest.mark.parametrize(("engine", "least"), [("torch-fp32", 0.9999), ("torch-bf16", 0.999)])
def test_the_real_encoder_agrees_with_onnx_on_real_sentences(engine, least):
    reference = prepare(None, cache_dir=paths.cache_dir(), engine="onnx-fp32")
    actual = prepare(None, cache_dir=paths.cache_dir(), engine=engine)
    encoder = TextEncoder(actual.spec.tokenizer_json, max_tokens=actual.spec.max_tokens)
    ids = tuple(tuple(encoded.ids) for encoded in encoder.encode(QUALITY_TEXTS[::2]))
    batch = Batch(ids, ((View(),),) * len(ids))

    cosines = least_cosine(*(backend.embed(batch) for backend in (load_backend(reference), load_backend(actual))))

    assert cosines >= least
