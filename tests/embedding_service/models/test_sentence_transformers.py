import json
from pathlib import Path
from typing import Any

import pytest

from embedding_service.backend import Pooling
from embedding_service.models.errors import PreparationError
from embedding_service.models.sentence_transformers import max_tokens_of, normalizes, pooling_of, prompt_of, prompts_of


def written(directory: Path, name: str, content: Any) -> Path:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return directory


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        pytest.param({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean", id="up to version 5"),
        pytest.param({"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}, "max", id="max, up to version 5"),
        pytest.param({"embedding_dimension": 32, "pooling_mode": "cls", "include_prompt": True}, "cls", id="version 6"),
        pytest.param({"pooling_mode": ["mean"]}, "mean", id="a list of one"),
        pytest.param({"pooling_mode": "max", "pooling_mode_max_tokens": True}, "max", id="said twice"),
    ],
)
def test_pooling_is_read_as_each_version_writes_it(tmp_path: Path, config: dict[str, object], expected: Pooling) -> None:
    assert expected == pooling_of(written(tmp_path, "1_Pooling/config.json", config))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"pooling_mode": "lasttoken"}, "pools by lasttoken;"),
        ({"pooling_mode": ["mean", "max"]}, "pools by mean and max;"),
        ({"pooling_mode_weightedmean_tokens": True}, "pools by pooling_mode_weightedmean_tokens;"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "pools by cls and mean;"),
        ({"word_embedding_dimension": 32}, "pools by nothing that is named;"),
    ],
)
def test_pooling_that_is_not_done_here_is_refused_and_never_taken_for_the_mean(
    tmp_path: Path, config: dict[str, object], said: str
) -> None:
    with pytest.raises(PreparationError, match=said):
        pooling_of(written(tmp_path, "1_Pooling/config.json", config))


def of_types(*types: str) -> list[dict[str, object]]:
    return [{"idx": number, "name": str(number), "path": "", "type": kind} for number, kind in enumerate(types)]


@pytest.mark.parametrize("home", ["sentence_transformers.models", "sentence_transformers.base.modules.normalize"])
def test_a_trunk_normalises_where_its_modules_say_so(tmp_path: Path, home: str) -> None:
    plain = of_types("sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling")
    assert not normalizes(written(tmp_path, "modules.json", plain))
    assert normalizes(written(tmp_path, "modules.json", [*plain, *of_types(f"{home}.Normalize")]))


@pytest.mark.parametrize("kind", ["sentence_transformers.models.Dense", "somebody.Own", "Dense"])
def test_a_module_that_is_not_run_here_is_refused(tmp_path: Path, kind: str) -> None:
    modules = of_types("a.Transformer", "a.Pooling", kind, "a.Normalize")
    with pytest.raises(PreparationError, match=f"has the module {kind.rpartition('.')[2]}, which is not run here"):
        normalizes(written(tmp_path, "modules.json", modules))


@pytest.mark.parametrize("modules", [{}, [1], [{"idx": 0}], "x", 5])
def test_a_list_of_modules_that_is_none_is_refused(tmp_path: Path, modules: object) -> None:
    with pytest.raises(PreparationError, match="is not a list of modules"):
        normalizes(written(tmp_path, "modules.json", modules))


def test_a_plain_checkpoint_has_the_mean_normalised_of_256_tokens_and_no_prompt(tmp_path: Path) -> None:
    assert ("mean", True, 256, "", {}) == (
        pooling_of(tmp_path),
        normalizes(tmp_path),
        max_tokens_of(tmp_path, 512),
        prompt_of(tmp_path),
        prompts_of(tmp_path),
    )


@pytest.mark.parametrize(
    ("bert", "tokenizer", "expected"),
    [
        ({"max_seq_length": 128}, {"model_max_length": 64}, 128),
        ({"max_seq_length": 4_096}, None, 512),
        ({"transformer_task": "feature-extraction"}, {"model_max_length": 384}, 384),
        ({"max_seq_length": None}, {"model_max_length": 1_000_000_000_000_000_019_884_624_838_656}, 512),
        ({}, {}, 512),
        ({}, None, 512),
        ({"max_seq_length": 0}, None, 256),
        (None, {"model_max_length": 384}, 256),
    ],
)
def test_the_length_is_the_lists_or_from_version_6_on_the_tokenizers(
    tmp_path: Path, bert: dict[str, object] | None, tokenizer: dict[str, object] | None, expected: int
) -> None:
    for name, content in (("sentence_bert_config.json", bert), ("tokenizer_config.json", tokenizer)):
        if content is not None:
            written(tmp_path, name, content)

    assert expected == max_tokens_of(tmp_path, 512)
