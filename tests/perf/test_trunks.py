import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from embedding_service.models.prepare import prepare
from perf.trunks import INT8_FILE, LONG_TOKENS, add_int8, built, link_trunk
from tests.tiny_trunk import make_tiny_trunk


def test_a_linked_trunk_has_the_same_files_and_says_it_takes_long_texts(tmp_path: Path) -> None:
    source = make_tiny_trunk(tmp_path / "source")
    (source / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 16}))
    link_trunk(source, tmp_path / "linked")

    assert {path.name for path in source.iterdir()} == {path.name for path in (tmp_path / "linked").iterdir()}
    assert LONG_TOKENS == json.loads((tmp_path / "linked" / "sentence_bert_config.json").read_text())["max_seq_length"]
    assert 16 == json.loads((source / "sentence_bert_config.json").read_text())["max_seq_length"]
    positions = 64
    prepared = [prepare(str(tmp_path / name), cache_dir=tmp_path / "cache", engine="onnx-fp32") for name in ("source", "linked")]
    assert [16, positions] == [found.spec.max_tokens for found in prepared]


def test_the_int8_file_has_the_names_that_others_expect(tmp_path: Path) -> None:
    trunk = make_tiny_trunk(tmp_path / "trunk")
    add_int8(trunk, tmp_path / "int8")
    session = ort.InferenceSession(tmp_path / "int8" / INT8_FILE, providers=["CPUExecutionProvider"])
    ids = np.array([[2, 5, 6, 3]], dtype=np.int64)
    (hidden,) = session.run(["last_hidden_state"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})

    assert [INT8_FILE] == [path.name for path in (tmp_path / "int8").glob("*.onnx")]
    assert (1, 4, 32) == hidden.shape
    assert np.isfinite(hidden).all()
    assert not (tmp_path / "int8" / "config.json").is_symlink()


def test_what_was_not_finished_leaves_nothing(tmp_path: Path) -> None:
    def half() -> None:
        with built(tmp_path / "it") as folder:
            (folder / "half").touch()
            raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        half()
    assert not list(tmp_path.iterdir())
