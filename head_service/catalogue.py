"""Which version of which head is live: catalogue.json for the gateway, models.config for the head server.

See clients.wire.catalogue for what is in the one, and tensorflow_serving/config/model_server_config.proto for the other.
"""

from pathlib import Path
from typing import Final

import msgspec
from google.protobuf import text_format

from clients.wire.catalogue import Catalogue, CatalogueHead, Manifest, decode_catalogue, encode
from clients.wire.tfs import serving_pb2 as pb
from head_service.errors import RepositoryError
from head_service.manifest import verify
from head_service.repository import NAME, Repository, replace_file

CATALOGUE: Final = "catalogue.json"
MODELS_CONFIG: Final = "models.config"
VERSIONS_LOADED: Final = 2
"""The newest and the one before it, which a gateway that has not polled yet still asks for."""


def ensure_layout(root: Path) -> None:
    """Make *root* a repository that the gateway and a head server can start on, if it is none yet."""
    root.mkdir(parents=True, exist_ok=True)
    if not (root / CATALOGUE).exists():
        replace_file(root / CATALOGUE, encode(Catalogue()))
    if not (root / MODELS_CONFIG).exists():
        write_models_config(Repository(root))


def read_catalogue(root: Path) -> Catalogue:
    """The catalogue of the repository at *root*; an empty one when there is none yet.

    Raises:
        RepositoryError: the file is not a catalogue.
    """
    try:
        return decode_catalogue((root / CATALOGUE).read_bytes())
    except FileNotFoundError:
        return Catalogue()
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise RepositoryError(f"{root / CATALOGUE} is not a catalogue: {error}") from None


def promote(repository: Repository, name: str, version: int) -> None:
    """Make *version* the one of *name* that answers. Its files are held to their manifest first."""
    manifest = verify(repository.path(name, version))
    with repository.locked():
        heads = dict(read_catalogue(repository.root).heads)
        before = heads.get(name)
        heads[name] = CatalogueHead(
            stable=version, versions={version: _summary(manifest)}, default=before.default if before else True
        )
        replace_file(repository.root / CATALOGUE, encode(Catalogue(heads)))


def write_models_config(repository: Repository, base_path_root: Path | None = None) -> None:
    """Name every head that has a version to the head server, which sees the repository at *base_path_root*."""
    root = (base_path_root or repository.root).absolute()
    # Under the lock: of two that publish a first version at once, the later file names both heads.
    with repository.locked():
        replace_file(repository.root / MODELS_CONFIG, text_format.MessageToBytes(_models_config(repository, root)))


def _models_config(repository: Repository, root: Path) -> pb.ModelServerConfig:
    config = pb.ModelServerConfig()
    for folder in sorted(repository.root.iterdir()):
        if NAME.fullmatch(folder.name) and repository.versions(folder.name):
            model = config.model_config_list.config.add(
                name=folder.name, base_path=str(root / folder.name), model_platform="tensorflow"
            )
            model.model_version_policy.latest.num_versions = VERSIONS_LOADED
    config.model_config_list.SetInParent()
    return config


def _summary(manifest: Manifest) -> Manifest:
    return msgspec.structs.replace(manifest, files={}, golden=())
