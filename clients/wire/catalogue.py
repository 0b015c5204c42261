"""What a head is, as data: its manifest, and the catalogue that says which version of which head is live.

The manifest lies in the version directory as `assets.extra/trunkline.json`; the catalogue is one JSON document that
the control plane writes and the gateway polls. Neither is ever imported from anywhere but a file or a URL.
"""

from typing import Final, Literal

import msgspec

MANIFEST_PATH: Final = "assets.extra/trunkline.json"

PoolingName = Literal["mean", "cls", "max", "mean_max", "sep", "tokens"]
Task = Literal["single_label", "multi_label", "regression"]
LongText = Literal["cut", "mean", "max"]
"""What a head makes of a text that is longer than the trunk reads: the rest is not read; or all of it is, in overlapping windows,
and each score is the windows' mean or their highest."""


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
    """What a version scored, and on what: *data* is the SHA-256 of the held-out texts and labels.

    *calibration_error* is the expected calibration error of the scores, after calibration. Of a regression *accuracy* is R²,
    the share of the variance explained, and *macro_f1* is 0.
    """

    accuracy: float
    macro_f1: float
    num_train: int
    num_test: int
    data: str
    calibration_error: float | None = None


class ValidationSummary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a version answered on the texts it was validated on; live answers drift when they no longer look like it.

    *label_shares* are shares of all the labels answered, adding up to one; "" stands for texts of multi_label answered with none.
    A text's confidence is its highest score, of multi_label the mean over labels of the score or one minus it, whichever is more.
    """

    label_shares: dict[str, float]
    mean_confidence: float
    num_texts: int


class GoldenExample(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A text whose scores, in the order of the labels, were recorded when the version was exported."""

    text: str
    label: str
    scores: tuple[float, ...]


class BundleMember(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A head version in a bundle: its scores are *count* columns of the bundle's, from *offset* on, in the order of its labels.

    *manifest* is the SHA-256, as "sha256:<64 hex digits>", of the manifest file that the bundle was made from.
    """

    name: str
    version: int
    offset: int
    count: int
    manifest: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything a server or a reader needs to know of one head version.

    *input* names the signature's input, float32 [batch, width]; *output* its scores, float32 [batch, labels]. A view of tokens
    goes in as float32 [batch, tokens, width] with a second input *mask_input*, float32 [batch, tokens], 1 where there is a token.
    *mix_layers*, when given, take the place of the view's layer: the head reads the view at each of them, their vectors one
    behind the other, and *width* is that of all. *thresholds* has one number a label where the task is multi_label; a regression
    has the one label "value". *temperature* is already applied to the scores. *head_type* says how it was made; nothing depends
    on it. *preprocess* are the steps of `clients.wire.chain` that a text goes through before the trunk's own, *long_text* says
    what becomes of a long one: both the same in training and in serving. *validation* is what drift is measured against.
    *members* are given of a bundle, and of no head: what it answers for; its labels are theirs, each behind its head's name and
    a dot. *label_separator*, where given, stands between the levels of a hierarchical label: "/" in "sports/football". *files*
    maps each other file of the version directory, by its relative POSIX path, to "sha256:<64 hex digits>".
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
    head_type: str = "linear"
    mix_layers: tuple[int, ...] = ()
    input: str = "embedding"
    mask_input: str = ""
    output: str = "scores"
    preprocess: tuple[str, ...] = ()
    long_text: LongText = "cut"
    metrics: Metrics | None = None
    validation: ValidationSummary | None = None
    members: tuple[BundleMember, ...] | msgspec.UnsetType = msgspec.UNSET
    label_separator: str = ""
    golden: tuple[GoldenExample, ...] = ()
    created: str = ""
    files: dict[str, str] = {}

    def __post_init__(self) -> None:
        if not self.labels:
            raise ValueError("a head has one label at least")
        if self.thresholds and len(self.thresholds) != len(self.labels):
            raise ValueError("thresholds are one a label, or none")


def views_of(manifest: Manifest) -> tuple[View, ...]:
    """The views whose vectors, one behind the other, go into the head."""
    return at_layers(manifest.view, manifest.mix_layers)


def at_layers(view: View, layers: tuple[int, ...]) -> tuple[View, ...]:
    """*view* at each of *layers*; as it is where there are none."""
    if not layers:
        return (view,)
    return tuple(View(view.pooling, layer, view.normalize, view.dims) for layer in layers)


class CatalogueHead(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One head: *stable* is the version that answers, one of *versions*; *default*: it answers when none is named.

    *canary* answers a *canary_share* of the callers, 0 to 1, in its place; *shadow* runs beside it, is compared, never answers.
    *previous* is what roll-back goes to.
    """

    stable: int
    versions: dict[int, Manifest]
    default: bool = True
    canary: int | None = None
    canary_share: float = 0.0
    shadow: int | None = None
    previous: int | None = None
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for role in ("stable", "canary", "shadow"):
            version = getattr(self, role)
            if version is not None and version not in self.versions:
                raise ValueError(f"{role} is not one of the versions")
        if any(manifest.version != number for number, manifest in self.versions.items()):
            raise ValueError("a version is not the one of its manifest")
        if not 0.0 <= self.canary_share <= 1.0:
            raise ValueError("canary_share is not between 0 and 1")


class Catalogue(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All heads by name. Manifests here come without *files* and *golden*.

    *bundles*, by name, each answer several head versions in one call; they are left out where there are none, as readers that do
    not know them expect. A bundle may be out of date: it stands for the versions that it lists, whatever is live.
    """

    heads: dict[str, CatalogueHead] = {}
    schema: Literal["trunkline.catalogue/1"] = "trunkline.catalogue/1"
    bundles: dict[str, Manifest] | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        if any(manifest.name != name for name, head in self.heads.items() for manifest in head.versions.values()):
            raise ValueError("a head has another name than its manifest")
        if not all(members_of(bundle) for bundle in bundles_of(self).values()):
            raise ValueError("a bundle has no members")


def bundles_of(catalogue: Catalogue) -> dict[str, Manifest]:
    """The bundles by name; none where the catalogue says nothing of them."""
    return catalogue.bundles or {}


def members_of(bundle: Manifest) -> tuple[BundleMember, ...]:
    """What a bundle answers for; nothing of a head."""
    return bundle.members or ()


def servables_of(catalogue: Catalogue) -> set[tuple[str, int]]:
    """(name, version) of all that may be asked: versions of heads, and bundles."""
    versions = {(name, version) for name, head in catalogue.heads.items() for version in head.versions}
    return versions | {(bundle.name, bundle.version) for bundle in bundles_of(catalogue).values()}


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
