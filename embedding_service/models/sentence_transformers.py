"""What Sentence Transformers keeps beside a checkpoint: how it pools, whether it normalises, how long texts may be, its prompts.

Up to version 5 `1_Pooling/config.json` has a switch for each mode and `sentence_bert_config.json` the length; from version 6 on
the one has `pooling_mode`, and the length is the tokenizer's own, in `tokenizer_config.json`. What is read here decides every
vector, and stands in the fingerprint: what is not understood is refused, and never taken for a default.
"""

import json
from pathlib import Path
from typing import Final

from embedding_service.backend import Pooling
from embedding_service.models.errors import PreparationError
from embedding_service.models.fetch import read_json

_DEFAULT_TOKENS: Final = 256
"""Of a checkpoint that Sentence Transformers did not save."""

_MODES: Final[dict[str, Pooling]] = {"mean": "mean", "cls": "cls", "max": "max"}
_SWITCHES: Final = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max"}
_RUN_HERE: Final = {"Transformer", "Pooling", "Normalize"}


def pooling_of(directory: Path) -> Pooling:
    """How the tokens' vectors become a text's; the mean where nothing is said of it.

    Raises:
        PreparationError: otherwise than by one of those that are done here.
    """
    path = directory / "1_Pooling" / "config.json"
    if not path.is_file():
        return "mean"
    config = read_json(path)
    named = config.get("pooling_mode")
    chosen = [] if named is None else [str(mode) for mode in named] if isinstance(named, list) else [str(named)]
    switched = (key for key, value in config.items() if key.startswith("pooling_mode_") and value is True)
    chosen += [_SWITCHES.get(key, key) for key in switched]
    modes = list(dict.fromkeys(chosen))
    if len(modes) != 1 or modes[0] not in _MODES:
        raise PreparationError(
            f"this trunk pools by {' and '.join(modes) or 'nothing that is named'}; choose one that pools by mean, cls or max"
        )
    return _MODES[modes[0]]


def normalizes(directory: Path) -> bool:
    """Whether vectors are made to have length 1; so are those of a checkpoint without a list of modules.

    Raises:
        PreparationError: there is a module in the list that is not run here.
    """
    modules = _modules(directory / "modules.json")
    if modules is None:
        return True
    foreign = [name for name in modules if name not in _RUN_HERE]
    if foreign:
        raise PreparationError(
            f"this trunk has the module {foreign[0]}, which is not run here; choose one of Transformer, Pooling and Normalize"
        )
    return "Normalize" in modules


def max_tokens_of(directory: Path, max_positions: int) -> int:
    """Tokens of the longest text, special ones included, of which the encoder takes *max_positions*."""
    path = directory / "sentence_bert_config.json"
    wanted = read_json(path).get("max_seq_length")
    if wanted is None and path.is_file():
        wanted = read_json(directory / "tokenizer_config.json").get("model_max_length", max_positions)
    # Of a tokenizer without a bound it is some 1e30.
    length = int(wanted) if isinstance(wanted, int | float) and wanted > 2 else _DEFAULT_TOKENS
    return min(length, max_positions)


def prompt_of(directory: Path) -> str:
    """What is put before every text by default; "" where nothing is.

    Raises:
        PreparationError: it is not among the prompts.
    """
    name = read_json(directory / "config_sentence_transformers.json").get("default_prompt_name")
    if name is None:
        return ""
    prompt = prompts_of(directory).get(name) if isinstance(name, str) else None
    if prompt is None:
        raise PreparationError(
            "default_prompt_name is not among the prompts in config_sentence_transformers.json; correct it there"
        )
    return prompt


def prompts_of(directory: Path) -> dict[str, str]:
    """Prompts by name."""
    prompts = read_json(directory / "config_sentence_transformers.json").get("prompts")
    if not isinstance(prompts, dict):
        return {}
    return {name: text for name, text in prompts.items() if isinstance(name, str) and isinstance(text, str)}


def _modules(path: Path) -> list[str] | None:
    """The classes of the modules, in their order; None where there is no list."""
    if not path.is_file():
        return None
    try:
        modules = json.loads(path.read_text())
        found = [str(module["type"]).rpartition(".")[2] for module in modules]
    except (ValueError, TypeError, KeyError):
        found = []
    if not found:
        raise PreparationError(f"{path} is not a list of modules; fetch the model again")
    return found
