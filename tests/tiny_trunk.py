"""A BERT directory small enough to make in a test: 2 layers, 32 wide, random weights, a WordPiece vocabulary."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from embedding_service.models.bert import expected_shapes, read_config

_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *_LETTERS, *(f"##{letter}" for letter in _LETTERS)]


def make_tiny_trunk(directory: Path, *, seed: int = 0, prefix: str = "") -> Path:
    """Write config.json, model.safetensors and tokenizer.json into the new *directory*."""
    directory.mkdir(parents=True)
    config = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config |= {"intermediate_size": 64, "max_position_embeddings": 64, "vocab_size": len(VOCABULARY)}
    (directory / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(seed)
    shapes = expected_shapes(read_config(directory))
    weights = {prefix + name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(weights, directory / "model.safetensors")
    tokenizer = Tokenizer(WordPiece({word: number for number, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = BertNormalizer(), BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory
