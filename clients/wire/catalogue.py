"""What a head is, as data: its manifest, and the catalogue that says which version of which head is live.

The manifest lies in the version directory as `assets.extra/trunkline.json`; the catalogue is one JSON document that
the control plane writes and the gateway polls. Neither is ever imported from anywhere but a file or a URL.
"""

from typing import Final, Literal

import msgspec

MANIFEST_SCHEMA: Final = "trunkline.head/1"
CATALOGUE_SCHEMA: Final = "trunkline.catalogue/1"
MANIFEST_PATH: Final = "assets.extra/trunkline.json"

PoolingName = Literal["mean", "cls", "max", "mean_max", "sep", "tokens"]
Task = Literal["single_label", "multi_label", "regression"]


class View(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The view of the trunk a head was trained on; the fields mean what they mean in embedding.proto."""

    pooling: PoolingName = "mean"
    layer: int = -1
    normalize: bool = True
    dims: int = 0


class TrunkRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The trunk a head was trained on. *engine* is a record; only *fingerprint* is compared."""

    name: str
    fingerprint: str
    engine: str = ""


class Metrics(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a version scored, and on what: *data* is the SHA-256 of the held-out texts and labels."""

    accuracy: float
    macro_f1: float
    num_train: int
    num_test: int
    data: str


class GoldenExample(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A text whose scores, in the order of the labels, were recorded when the version was exported."""

    text: str
    label: str
    scores: tuple[float, ...]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything a server or a reader needs to know of one head version.

    *input* names the signature's input, float32 [batch, width]; *output* its scores, float32 [batch, labels].
    *files* maps each other file of the version directory, by its relative POSIX path, to "sha256:<64 hex digits>".
    """

    schema: Literal["trunkline.head/1"] = "trunkline.head/1"
    name: str
    version: int
    task: Task = "single_label"
    labels: tuple[str, ...]
    thresholds: tuple[float, ...] = ()
    temperature: float = 1.0
    view: View = View()
    width: int
    trunk: TrunkRef
    input: str = "embedding"
    output: str = "scores"
    metrics: Metrics | None = None
    golden: tuple[GoldenExample, ...] = ()
    created: str = ""
    files: dict[str, str] = {}


class CatalogueHead(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One head: *stable* is the version that answers, one of *versions*; *default*: it answers when none is named."""

    stable: int
    versions: dict[int, Manifest]
    default: bool = True

    def __post_init__(self) -> None:
        if self.stable not in self.versions:
            raise ValueError("stable is not one of the versions")


class Catalogue(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All heads by name. Manifests here come without *files* and *golden*."""

    heads: dict[str, CatalogueHead] = {}
    schema: Literal["trunkline.catalogue/1"] = "trunkline.catalogue/1"


def decode_manifest(data: bytes) -> Manifest:
    """Parse a manifest; `msgspec.ValidationError` or `msgspec.DecodeError` says what is wrong with it."""
    return msgspec.json.decode(data, type=Manifest)


def decode_catalogue(data: bytes) -> Catalogue:
    """Parse a catalogue; the errors are those of `decode_manifest`."""
    return msgspec.json.decode(data, type=Catalogue)


def encode(value: Manifest | Catalogue) -> bytes:
    """As JSON with sorted keys and two-space indentation, so that equal values are equal bytes."""
    return (
        msgspec.json.format(msgspec.json.encode(msgspec.to_builtins(value, str_keys=True), order="deterministic"), indent=2)
        + b"\n"
    )
