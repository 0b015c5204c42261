"""catalogue.json for the gateway and models.config for the head server, as files.

See clients.wire.catalogue for what is in the one, and tensorflow_serving/config/model_server_config.proto for the other.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from google.protobuf import text_format

from clients.wire.catalogue import Catalogue, CatalogueHead, Manifest, bundles_of, decode_catalogue, encode, members_of
from clients.wire.decoding import NOT_DECODED
from clients.wire.tfs import serving_pb2 as pb
from head_service.errors import RepositoryError
from head_service.store import Store, Stored

CATALOGUE: Final = "catalogue.json"
MODELS_CONFIG: Final = "models.config"
BASE_PATHS: Final = "base-paths.json"
"""Further files like models.config that are kept current, each with where its reader sees the repository."""

STABLE_LABEL: Final = "stable"
CANARY_LABEL: Final = "canary"


@dataclass(frozen=True, slots=True)
class ServedHead:
    """What the head server is told of one head: the *versions* to hold, and the *labels* on some of them."""

    versions: frozenset[int]
    labels: Mapping[str, int]


def read_catalogue_of(store: Store) -> tuple[Catalogue, Stored | None]:
    """The catalogue, an empty one when there is none yet, and the file it came from.

    Raises:
        RepositoryError: the file is not a catalogue.
    """
    stored = store.read(CATALOGUE)
    if stored is None:
        return Catalogue(), None
    return parse_catalogue(stored.content, f"{store.url}/{CATALOGUE}"), stored


def parse_catalogue(content: bytes, where: str) -> Catalogue:
    """The catalogue that *content* is; *where* it lies is for the message.

    Raises:
        RepositoryError: it is none.
    """
    try:
        return decode_catalogue(content)
    except NOT_DECODED as error:
        raise RepositoryError(
            f"{where} is not a catalogue: {error}; put a good copy in its place, or move it away and promote the heads again"
        ) from None


def write_catalogue(store: Store, catalogue: Catalogue, before: Stored | None) -> None:
    """Replace the catalogue that was read by *catalogue*; ConflictError when another one is there by now."""
    store.write(CATALOGUE, encode(catalogue), before=before)


def summary(manifest: Manifest) -> Manifest:
    """What the catalogue says of a version: its manifest without *files* and *golden*."""
    return msgspec.structs.replace(manifest, files={}, golden=())


def entry_of(catalogue: Catalogue, name: str) -> CatalogueHead | None:
    """The entry of the head or the bundle *name*; a bundle's is as that of a head with one version."""
    bundle = bundles_of(catalogue).get(name)
    return catalogue.heads.get(name) if bundle is None else bundle_entry(bundle)


def bundle_entry(bundle: Manifest) -> CatalogueHead:
    """A bundle as a head with one version."""
    return CatalogueHead(stable=bundle.version, versions={bundle.version: bundle}, default=False)


def entries_of(catalogue: Catalogue) -> dict[str, CatalogueHead]:
    """All heads and bundles by name; see `entry_of`."""
    return catalogue.heads | {name: bundle_entry(bundle) for name, bundle in bundles_of(catalogue).items()}


def made_of(entries: Mapping[str, CatalogueHead]) -> Catalogue:
    """The catalogue whose `entries_of` are *entries*."""
    heads = {name: entry for name, entry in entries.items() if not _is_of_bundle(entry)}
    bundles = {name: entry.versions[entry.stable] for name, entry in entries.items() if _is_of_bundle(entry)}
    return Catalogue(heads, bundles=bundles or msgspec.UNSET)


def _is_of_bundle(entry: CatalogueHead) -> bool:
    return bool(members_of(entry.versions[entry.stable]))


def labels_of(head: CatalogueHead | None) -> dict[str, int]:
    """The version labels that go with a head's entry."""
    if head is None:
        return {}
    return {STABLE_LABEL: head.stable} | ({CANARY_LABEL: head.canary} if head.canary is not None else {})


def render_config(heads: Mapping[str, ServedHead], base_path: Path) -> bytes:
    """models.config that names *heads*, whose folders the head server sees below *base_path*."""
    config = pb.ModelServerConfig()
    for name, head in sorted(heads.items()):
        if head.versions:
            model = config.model_config_list.config.add(name=name, base_path=str(base_path / name), model_platform="tensorflow")
            model.model_version_policy.specific.versions.extend(sorted(head.versions))
            for label, version in sorted(head.labels.items()):
                model.version_labels[label] = version
    config.model_config_list.SetInParent()
    return text_format.MessageToBytes(config)


def parse_config(content: bytes) -> dict[str, ServedHead]:
    """The heads that a models.config of ours names.

    Raises:
        RepositoryError: it is none.
    """
    try:
        config = text_format.Parse(content, pb.ModelServerConfig())
    except (text_format.ParseError, UnicodeDecodeError):
        raise RepositoryError(f"{MODELS_CONFIG} cannot be read; any command that changes a head writes it anew") from None
    return {
        model.name: ServedHead(frozenset(model.model_version_policy.specific.versions), dict(model.version_labels))
        for model in config.model_config_list.config
    }


def replace_if_other(store: Store, key: str, content: bytes) -> None:
    """Write *content* at *key* unless it is there already: a poller need not look at what did not change."""
    before = store.read(key)
    if before is None or before.content != content:
        store.write(key, content, before=before)


def base_paths(store: Store) -> dict[str, str]:
    """The files to be kept current beside models.config, and the repository's path in each."""
    stored = store.read(BASE_PATHS)
    try:
        return msgspec.json.decode(stored.content, type=dict[str, str]) if stored else {}
    except NOT_DECODED:
        raise RepositoryError(f"{BASE_PATHS} cannot be read; remove it and run `trunkline heads config` again") from None


def remember_base_path(store: Store, file: str, base_path: str) -> None:
    """Keep *file*, in the repository's own folder, current from now on."""
    known = base_paths(store) | {file: base_path}
    replace_if_other(store, BASE_PATHS, msgspec.json.format(msgspec.json.encode(known, order="sorted")) + b"\n")


def consistent(catalogue: Catalogue, served: Mapping[str, ServedHead], refused: Iterable[tuple[str, int]]) -> list[str]:
    """What is wrong between the catalogue and what the head server is told; nothing in a repository that is in order."""
    problems = []
    barred = set(refused)
    for name, head in entries_of(catalogue).items():
        told = served.get(name, ServedHead(frozenset(), {}))
        missing = sorted(head.versions.keys() - told.versions)
        problems += [f"{name}: version {version} is in the catalogue and not in {MODELS_CONFIG}" for version in missing]
        problems += [f"{name}: version {version} is refused, and live" for version in head.versions if (name, version) in barred]
        if dict(told.labels) != labels_of(head):
            problems.append(f"{name}: the labels in {MODELS_CONFIG} are not those of the catalogue")
    return problems
