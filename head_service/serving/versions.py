"""Which versions ought to be loaded, as a pure function, and the one owner that makes it so.

New versions load before old ones unload; a version that fails leaves the others serving; a call keeps the version it started
on. Vocabulary and rules: TensorFlow Serving's core/ (aspired versions, availability-preserving policy).
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import grpc

from clients.wire.tfs import serving_pb2 as pb
from head_service.repository import is_version
from head_service.serving.errors import ServingError, invalid, not_found

_log = logging.getLogger(__name__)

State = Literal["START", "LOADING", "AVAILABLE", "UNLOADING", "END"]


class Loaded(Protocol):
    """A version in memory."""

    def close(self) -> None:
        """Free it; nobody uses it any more."""
        ...


@dataclass(slots=True)
class Version:
    """One version's life. *users* are the calls that run on it."""

    number: int
    state: State = "START"
    error: str = ""
    servable: Loaded | None = None
    users: int = 0


@dataclass(slots=True)
class Model:
    """One model as configured, and its versions by number."""

    config: pb.ModelConfig
    versions: dict[int, Version] = field(default_factory=dict)

    @property
    def available(self) -> list[int]:
        """Versions that answer, ascending."""
        return sorted(number for number, version in self.versions.items() if version.state == "AVAILABLE")


def aspired(found: Iterable[int], policy: pb.VersionPolicy) -> set[int]:
    """The versions that ought to be loaded of those *found* in the file system; unset policy: the latest."""
    numbers = sorted(found)
    match policy.WhichOneof("policy_choice"):
        case "all":
            return set(numbers)
        case "specific":
            return set(numbers) & set(policy.specific.versions)
        case _:
            return set(numbers[-(policy.latest.num_versions or 1) :])


@dataclass(frozen=True, slots=True)
class Actions:
    """What to do next for one model."""

    load: tuple[int, ...] = ()
    unload: tuple[int, ...] = ()


def next_actions(wanted: set[int], states: Mapping[int, State]) -> Actions:
    """Load what is wanted and unknown; unload what is not wanted, unless that would leave nothing that answers."""
    load = tuple(sorted(wanted - states.keys()))
    available = {number for number, state in states.items() if state == "AVAILABLE"}
    unwanted = available - wanted
    if not available & wanted and unwanted:
        # The last one that works goes on until a wanted one is available.
        unwanted -= {max(unwanted)}
    return Actions(load, tuple(sorted(unwanted)))


def versions_in(base_path: Path) -> set[int]:
    """The version directories below *base_path*; none when it does not exist."""
    try:
        return {int(path.name) for path in base_path.iterdir() if is_version(path.name) and path.is_dir()}
    except OSError:
        return set()


class VersionManager:
    """Owner of all models. Its methods belong to the event loop; *load* runs in a thread and may take long."""

    def __init__(self, load: Callable[[str, int, Path], Loaded], *, poll_seconds: float = 1.0) -> None:
        self._load = load
        self._poll_seconds = poll_seconds
        self._models: dict[str, Model] = {}
        self._wake = asyncio.Event()
        self._settling = asyncio.Lock()

    @property
    def models(self) -> Mapping[str, Model]:
        """For reading only."""
        return self._models

    def configure(self, config: pb.ModelServerConfig) -> None:
        """Serve exactly the models of *config*; the rest is unloaded.

        Raises:
            ServingError: INVALID_ARGUMENT: a name twice, a relative path, or a label on a version that is not available.
        """
        models = {model.name: model for model in config.model_config_list.config}
        if len(models) != len(config.model_config_list.config):
            raise invalid("Illegal to list a model name more than once in the config.")
        for model in models.values():
            self._check(model)
        for name, model in models.items():
            self._models.setdefault(name, Model(model)).config = model
        for name in self._models.keys() - models.keys():
            empty = pb.ModelConfig(name=name)
            empty.model_version_policy.specific.SetInParent()
            self._models[name].config = empty
        self._wake.set()

    async def settle(self) -> None:
        """Bring every model one step nearer to what it ought to be: load first, then unload."""
        async with self._settling:
            for name, model in list(self._models.items()):
                found = versions_in(Path(model.config.base_path)) if model.config.base_path else set()
                await self._step(name, model, aspired(found, model.config.model_version_policy))

    async def run(self) -> None:
        """Follow the file system for ever."""
        while True:
            self._wake.clear()
            try:
                await self.settle()
            # Following goes on whatever happened to one round of it.
            except Exception:
                _log.exception("following the file system met an error; trying again")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._poll_seconds)

    @contextlib.contextmanager
    def use(self, spec: pb.ModelSpec) -> Iterator[tuple[int, Loaded]]:
        """The version that *spec* means, kept loaded for as long as the context lasts.

        Raises:
            ServingError: there is none; code and words are TensorFlow Serving's.
        """
        version = self._find(spec)
        assert version.servable is not None
        version.users += 1
        try:
            yield version.number, version.servable
        finally:
            version.users -= 1
            self._free_if_done(version)

    def _check(self, model: pb.ModelConfig) -> None:
        if not model.name or not Path(model.base_path).is_absolute():
            raise invalid(f"Expected model {model.name} to have an absolute path; got base_path()={model.base_path}")
        known = self._models.get(model.name)
        for label, number in model.version_labels.items():
            if known is None or number not in known.available:
                raise ServingError(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    f"Request to assign label {label} to version {number} of model {model.name}, "
                    "which is not currently available for inference",
                )

    def _find(self, spec: pb.ModelSpec) -> Version:
        model = self._models.get(spec.name)
        if spec.WhichOneof("version_choice") == "version_label":
            number = model.config.version_labels.get(spec.version_label) if model else None
            if model is not None and number is None:
                raise invalid(f"Unrecognized servable version label: {spec.version_label}")
        elif spec.HasField("version"):
            number = spec.version.value
        else:
            number = max(model.available, default=None) if model else None
        if model is None or number not in model.available:
            asked = f"Specific({spec.name}, {number})" if spec.HasField("version") else f"Latest({spec.name})"
            raise not_found(f"Servable not found for request: {asked}")
        return model.versions[number]

    async def _step(self, name: str, model: Model, wanted: set[int]) -> None:
        states = {number: version.state for number, version in model.versions.items()}
        for number in states.keys() - versions_in(Path(model.config.base_path)) - wanted:
            # A directory that failed and is gone may come again and be tried again.
            if states[number] == "END":
                del model.versions[number], states[number]
        for number in wanted & states.keys():
            # Unloaded in order and wanted again: rolled back to, or named again by a new configuration.
            if states[number] == "END" and not model.versions[number].error:
                del model.versions[number], states[number]
        for number in next_actions(wanted, states).load:
            await self._load_version(name, model, number)
        states = {number: version.state for number, version in model.versions.items()}
        removed = not model.config.base_path
        unload = model.available if removed else next_actions(wanted, states).unload
        for number in unload:
            version = model.versions[number]
            version.state = "UNLOADING"
            self._free_if_done(version)

    async def _load_version(self, name: str, model: Model, number: int) -> None:
        version = model.versions[number] = Version(number, "LOADING")
        directory = Path(model.config.base_path) / str(number)
        try:
            version.servable = await asyncio.to_thread(self._load, name, number, directory)
        # Whatever is wrong with a version is its status and nobody else's trouble.
        except Exception as error:
            version.state, version.error = "END", str(error)
            _log.error("%s version %d is not served: %s", name, number, error)
        else:
            version.state = "AVAILABLE"
            _log.info("%s version %d is available", name, number)

    @staticmethod
    def _free_if_done(version: Version) -> None:
        if version.state == "UNLOADING" and not version.users and version.servable is not None:
            servable, version.servable = version.servable, None
            version.state = "END"
            servable.close()
