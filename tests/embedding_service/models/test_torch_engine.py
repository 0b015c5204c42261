"""What is decided about the torch engines where PyTorch is not installed; where it is, see tests/torch."""

import json
import sys

import pytest

from embedding_service.models.bert import BertConfig
from embedding_service.models.errors import PreparationError
from embedding_service.models.prepare import prepare
from embedding_service.models.torch_engine import EncoderShape, choose, gpu_name, is_installed, read_shape
from tests.tiny_trunk import make_tiny_trunk

ROBERTA = {"model_type": "roberta", "vocab_size": 50, "hidden_size": 8, "num_hidden_layers": 3, "max_position_embeddings": 66}
DISTILBERT = {"model_type": "distilbert", "vocab_size": 50, "dim": 8, "n_layers": 3, "max_position_embeddings": 64}


@pytest.mark.parametrize("engine", ["torch-fp32", "torch-bf16", "torch-fp16"])
def test_a_torch_engine_without_pytorch_says_what_to_install(tmp_path, engine):
    trunk = make_tiny_trunk(tmp_path / "tiny")
    with pytest.raises(PreparationError, match=r"pip install 'trunkline\[embedding-gpu\]'"):
        prepare(str(trunk), cache_dir=tmp_path / "cache", engine=engine)


def test_auto_does_without_pytorch(tmp_path):
    prepared = prepare(str(make_tiny_trunk(tmp_path / "tiny")), cache_dir=tmp_path / "cache", engine="auto")

    assert not is_installed()
    assert "" == gpu_name()
    assert not prepared.engine_name.startswith("torch")
    assert "torch" not in sys.modules


@pytest.mark.parametrize("raw", [ROBERTA, DISTILBERT])
def test_the_shape_of_a_relative_is_read_for_a_torch_engine_only(tmp_path, raw):
    (tmp_path / "config.json").write_text(json.dumps(raw))

    # Two of RoBERTa's positions are never used: it counts from the padding id on.
    assert EncoderShape(50, 8, 3, 64) == read_shape(tmp_path, "torch-fp32")
    for engine in ("auto", "onnx-fp32"):
        with pytest.raises(PreparationError, match=f"model_type '{raw['model_type']}'"):
            read_shape(tmp_path, engine)


@pytest.mark.parametrize("value", [None, 0, -1, "8", True])
def test_a_shape_that_makes_no_sense_is_refused(tmp_path, value):
    (tmp_path / "config.json").write_text(json.dumps({**ROBERTA, "hidden_size": value}))
    with pytest.raises(PreparationError, match="no usable hidden_size"):
        read_shape(tmp_path, "torch-fp32")


def test_what_is_neither_a_bert_nor_its_relative_is_refused_by_a_torch_engine(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(PreparationError, match="model_type 'llama'"):
        read_shape(tmp_path, "torch-bf16")


def test_auto_takes_pytorch_without_a_gpu_only_for_what_nothing_else_runs():
    assert choose(BertConfig(50, 8, 3, 2, 16, 64, 1e-12)) is None
    engine, reason = choose(EncoderShape(50, 8, 3, 64)) or ("", "")
    assert "torch-fp32" == engine
    assert "no other engine" in reason
