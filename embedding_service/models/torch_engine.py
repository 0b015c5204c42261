"""What preparing a trunk must know of the torch engines; PyTorch itself is imported only where it is installed and wanted."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal, TypeGuard, get_args

from embedding_service.backend import Backend
from embedding_service.backend.load import EngineName, PreparedTrunk, num_cores
from embedding_service.models.bert import BertConfig, read_config
from embedding_service.models.errors import PreparationError
from embedding_service.models.fetch import read_json

TorchEngine = Literal["torch-fp32", "torch-bf16", "torch-fp16"]

RELATIVES: Final = frozenset({"albert", "camembert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta"})
"""The model_types besides bert that `transformers` runs for us."""

GPU_CONCURRENCY: Final = 2
"""Threads that feed a GPU: while one waits for its pass, the other lays out the next."""

GPU_BATCH_TOKENS: Final = 16_384
"""Tokens of a pass that keep a large GPU busy; what `auto` advises."""


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """What is known of a relative of BERT before its weights are read."""

    vocab_size: int
    width: int
    num_layers: int
    max_positions: int


def is_torch(engine: str) -> TypeGuard[TorchEngine]:
    """Whether *engine* is run by PyTorch."""
    return engine in get_args(TorchEngine)


def is_installed() -> bool:
    """Whether PyTorch could be imported; it is not."""
    return find_spec("torch") is not None


def gpu_name() -> str:
    """The GPU that PyTorch would run a trunk on; "" where it is not installed or there is none that computes in bfloat16."""
    if not is_installed():
        return ""
    try:
        from embedding_service.backend import torch as ours  # noqa: PLC0415 (heavy)
    except (ImportError, OSError):  # a PyTorch made for another machine: its libraries do not load
        return ""
    name: str = ours.gpu_name()
    return name


def check_installed(engine: EngineName) -> None:
    """Refuse a torch engine where there is no PyTorch.

    Raises:
        PreparationError: it is not installed.
    """
    if is_torch(engine) and not is_installed():
        raise PreparationError(f"--engine {engine} needs PyTorch: pip install 'trunkline[embedding-gpu]'")


def read_shape(directory: Path, engine: str) -> BertConfig | EncoderShape:
    """Read config.json: a BERT's for any engine, or a relative's for the torch engines and for auto where it may choose them.

    Raises:
        PreparationError: it is not of a model that *engine* runs.
    """
    raw = read_json(directory / "config.json")
    model_type = raw.get("model_type")
    if model_type not in RELATIVES or not (is_torch(engine) or (engine == "auto" and is_installed())):
        return read_config(directory)
    pad_id = raw.get("pad_token_id")
    offset = position_offset(str(model_type), pad_id if isinstance(pad_id, int) else 1)
    return EncoderShape(
        vocab_size=_positive(raw, "vocab_size"),
        width=_positive(raw, "hidden_size", "dim"),
        num_layers=_positive(raw, "num_hidden_layers", "n_layers"),
        max_positions=_positive(raw, "max_position_embeddings") - offset,
    )


def position_offset(model_type: str, pad_id: int) -> int:
    """Positions of the table that no token uses: RoBERTa and those after it count from the padding id on."""
    return pad_id + 1 if model_type in {"roberta", "xlm-roberta", "camembert", "mpnet"} else 0


def _positive(raw: dict[str, object], *keys: str) -> int:
    value = next((raw[key] for key in keys if key in raw), None)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise PreparationError(f"config.json has no usable {keys[0]}; choose a complete model directory")
    return value


def choose(shape: BertConfig | EncoderShape) -> tuple[TorchEngine, str] | None:
    """For *auto*: the torch engine to take, and why; None where an engine of the CPU is better."""
    if gpu := gpu_name():
        advice = f"give it --max-batch-tokens {GPU_BATCH_TOKENS} to fill it"
        return "torch-bf16", f"PyTorch finds {gpu}, which computes in bfloat16; {advice}"
    if isinstance(shape, EncoderShape):
        return "torch-fp32", "no other engine runs this kind of model"
    return None


def device() -> str:
    """Where the torch engines run: "cuda" or "cpu". PyTorch must be installed."""
    from embedding_service.backend.torch import default_device  # noqa: PLC0415 (heavy)

    name: str = default_device()
    return name


def concurrency() -> int:
    """`EngineSpec.concurrency` of the torch engines on this machine."""
    return GPU_CONCURRENCY if device() == "cuda" else num_cores()


def load_reference(prepared: PreparedTrunk) -> Backend:
    """What a relative's vectors are compared with, as no other engine runs it: *prepared* in float32 on the CPU."""
    from embedding_service.backend.torch import TorchBackend  # noqa: PLC0415 (heavy)

    return TorchBackend(prepared.spec, prepared.engine, prepared.graph, precision="fp32", device="cpu")
