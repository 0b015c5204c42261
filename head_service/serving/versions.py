"""Which versions ought to be loaded, as pure functions, and the one owner that makes it so.

New versions load before old ones unload; a version that fails leaves the others serving; a call keeps the version it started
on. Vocabulary and rules: TensorFlow Serving's core/ (aspired versions, availability-preserving policy). Beyond them: a failed
version is tried again as soon as its files have changed, and where the newest version fails and none answers, the one before it
is loaded.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeVar

import grpc

from clients.wire.tfs import serving_pb2 as pb
from head_service.repository import is_version
from head_service.serving.errors import ServingError, echo, invalid, not_found
from head_service.serving.trust import LoadError, RefusedError

_log = logging.getLogger(__name__)

Result = TypeVar("Result")

State = Literal["START", "LOADING", "AVAILABLE", "UNLOADING", "END"]
Fingerprint = tuple[tuple[str, int, int], ...]
"""Each file's path, size and time of change."""

PLATFORMS: Final = frozenset({"", "tensorflow"})


class Loaded(Protocol):
    """A version in memory."""

    def close(self) -> None:
        """Free it; nobody uses it any more. Runs in a thread."""
        ...


Load = Callable[[str, int, Path], Loaded]
"""Model, version, directory; raises LoadError, or anything else. Runs in a thread and may take long."""


@dataclass(slots=True)
class Version:
    """One version's life. *users* are the calls that run on it.

    *num_failures* counts the loads that failed since its files, as *seen* then, last changed; the next one is due at *retry_at*
    (`time.monotonic`) unless it was *refused*.
    """

    number: int
    state: State = "START"
    error: str = ""
    servable: Loaded | None = None
    users: int = 0
    num_failures: int = 0
    retry_at: float = 0.0
    refused: bool = False
    seen: Fingerprint = ()


@dataclass(slots=True)
class Model:
    """One model as configured, and its versions by number. *followed*: its directory was looked at before."""

    config: pb.ModelConfig
    versions: dict[int, Version] = field(default_factory=dict)
    followed: bool = False
    stepping: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def available(self) -> list[int]:
        """Versions that answer, ascending."""
        return sorted(number for number, version in self.versions.items() if version.state == "AVAILABLE")

    @property
    def states(self) -> dict[int, State]:
        """Of all versions."""
        return {number: version.state for number, version in self.versions.items()}


@dataclass(frozen=True, slots=True)
class Following:
    """How the file system is followed, after the reference's flags of these names."""

    poll_seconds: float = 1.0
    max_num_load_retries: int = 5
    load_retry_seconds: float = 60.0
    num_load_threads: int = 1
    allow_labels_for_unavailable: bool = False
    force_labels_for_unavailable: bool = False


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


def stand_in(found: set[int], wanted: set[int], versions: Mapping[int, Version]) -> int | None:
    """The version to load though nobody wants it: the newest of the others, when all that are wanted failed and none answers."""
    if not wanted or any(version.state in {"AVAILABLE", "LOADING"} for version in versions.values()):
        return None
    if not all(number in versions and versions[number].error for number in wanted):
        return None
    return max((number for number in found - wanted if number not in versions or not versions[number].error), default=None)


def is_due(version: Version, fingerprint: Fingerprint, now: float, following: Following) -> bool:
    """Whether a *version* that failed is tried again: its files changed, or it may have been bad luck and the time has come."""
    if fingerprint != version.seen:
        return True
    return not version.refused and version.num_failures <= following.max_num_load_retries and now >= version.retry_at


def versions_in(base_path: Path) -> set[int]:
    """The version directories below *base_path*; none when it does not exist.

    Raises:
        OSError: it cannot be read, which says nothing of what is there.
    """
    try:
        return {int(path.name) for path in base_path.iterdir() if is_version(path.name) and path.is_dir()}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def fingerprint_of(directory: Path) -> Fingerprint:
    """What changes when a file in *directory* does; of what cannot be read, nothing."""
    found = []
    for parent, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(parent, name)  # noqa: PTH118 (os.walk's strings; this runs once a second)
            with contextlib.suppress(OSError):
                status = os.stat(path, follow_symlinks=False)  # noqa: PTH116
                found.append((path, status.st_size, status.st_mtime_ns))
    return tuple(sorted(found))


class VersionManager:
    """Owner of all models. Its methods belong to the event loop; *load* runs in a thread.

    *waits_until_still*, told a directory, says whether its version is loaded only once its files have not changed from one look
    to the next, and is dropped when they changed while it was loaded. What is there at the first look is taken as it is.
    """

    def __init__(
        self,
        load: Load,
        *,
        following: Following | None = None,
        waits_until_still: Callable[[Path], bool] = lambda _: False,
        poll_seconds: float | None = None,
    ) -> None:
        self._load = load
        self._following = following or Following(poll_seconds=1.0 if poll_seconds is None else poll_seconds)
        self._waits_until_still = waits_until_still
        self._models: dict[str, Model] = {}
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        # Of the usual priority: a thread that gives way while it has the interpreter's lock makes everybody else wait for it.
        self._loading = ThreadPoolExecutor(max(1, self._following.num_load_threads), thread_name_prefix="load")
        # Looking at directories does not wait for a load.
        self._looking = ThreadPoolExecutor(1, thread_name_prefix="look")

    @property
    def models(self) -> Mapping[str, Model]:
        """For reading only."""
        return self._models

    def configure(self, config: pb.ModelServerConfig) -> None:
        """Serve exactly the models of *config*; the rest is unloaded. All of it is taken, or nothing.

        One label that may not be where it is asked for refuses all models of *config*, as in TensorFlow Serving: its ReloadConfig
        (model_servers/server_core.cc) looks at the labels before it adds or changes a model.

        Raises:
            ServingError: INVALID_ARGUMENT: a name twice, a relative path, another platform; FAILED_PRECONDITION: a label on a
                version that is not available.
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
        """Bring every model where it ought to be: load first, then unload. Returns when what was begun has ended."""
        await asyncio.gather(*(self._step(name, model) for name, model in self._models.items()))
        await asyncio.gather(*self._tasks)

    async def run(self) -> None:
        """Follow the file system for ever. A model that takes long to load holds up no other."""
        while True:
            self._wake.clear()
            for name, model in self._models.items():
                if not model.stepping.locked():
                    self._begin(self._step_safely(name, model))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._following.poll_seconds)

    def close(self) -> None:
        """Begin nothing more. What is loaded stays until the process ends."""
        self._loading.shutdown(wait=False, cancel_futures=True)
        self._looking.shutdown(wait=False, cancel_futures=True)

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
        if model.model_platform not in PLATFORMS:
            raise invalid(f"model {model.name}: its platform is not served here; use model_platform: 'tensorflow'")
        known = self._models.get(model.name)
        available = known.available if known else []
        for label, number in model.version_labels.items():
            if number not in available and not self._may_wait(known, label, number):
                raise ServingError(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    f"Request to assign label to version {number} of model {model.name}, "
                    "which is not currently available for inference",
                )

    def _may_wait(self, known: Model | None, label: str, number: int) -> bool:
        """Whether *label* may name a version that is not available: only one that would not be taken from another version."""
        if self._following.force_labels_for_unavailable:
            return True
        in_use = known.config.version_labels.get(label, number) if known else number
        return self._following.allow_labels_for_unavailable and in_use == number

    def _find(self, spec: pb.ModelSpec) -> Version:
        model = self._models.get(spec.name)
        is_latest = False
        if spec.WhichOneof("version_choice") == "version_label":
            number = model.config.version_labels.get(spec.version_label) if model else None
            if model is not None and number is None:
                raise invalid(f"Unrecognized servable version label: {echo(spec.version_label)}")
        elif spec.HasField("version"):
            number = spec.version.value
        else:
            is_latest, number = True, max(model.available, default=None) if model else None
        version = model.versions.get(number) if model is not None and number is not None else None
        if version is None or version.state != "AVAILABLE":
            name = echo(spec.name)
            asked = f"Latest({name})" if is_latest or number is None else f"Specific({name}, {number})"
            raise not_found(f"Servable not found for request: {asked}")
        return version

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _step_safely(self, name: str, model: Model) -> None:
        try:
            await self._step(name, model)
        # Following goes on whatever happened to one round of it.
        except Exception:
            _log.exception("following the versions of %s met an error; trying again", name)

    async def _step(self, name: str, model: Model) -> None:
        async with model.stepping:
            base = Path(model.config.base_path) if model.config.base_path else None
            try:
                found = await self._look(versions_in, base) if base else set()
            except OSError as error:
                # What is loaded stays: a moment without files or a network is no reason to unload what answers.
                _log.error("the versions of %s cannot be listed: %s", name, error)
                return
            wanted = aspired(found, model.config.model_version_policy)
            _forget(model, found, wanted)
            for number in sorted(wanted):
                if base and await self._is_ready(model, base / str(number), number):
                    await self._load_version(name, model, base, number)
            while base and not _is_specific(model) and (other := stand_in(found, wanted, model.versions)) is not None:
                await self._load_version(name, model, base, other)
            model.followed = True
            # A new configuration may have come meanwhile.
            wanted = aspired(found, model.config.model_version_policy)
            removed = not model.config.base_path
            for number in model.available if removed else next_actions(wanted, model.states).unload:
                version = model.versions[number]
                version.state = "UNLOADING"
                self._free_if_done(version)

    async def _is_ready(self, model: Model, directory: Path, number: int) -> bool:
        """Whether to load now: it is new, and still where that matters; or it failed, and it is time to try again."""
        version = model.versions.get(number)
        if version is not None and not (version.state == "START" or version.error):
            return False
        fingerprint = await self._look(fingerprint_of, directory)
        if version is not None and version.error and not is_due(version, fingerprint, time.monotonic(), self._following):
            return False
        is_still = version is not None and version.seen == fingerprint
        if model.followed and not is_still and await self._look(self._waits_until_still, directory):
            error = version.error if version else ""
            model.versions[number] = Version(number, "END" if error else "START", error, seen=fingerprint)
            return False
        return True

    async def _load_version(self, name: str, model: Model, base: Path, number: int) -> None:
        directory = base / str(number)
        before = model.versions.get(number)
        fingerprint = await self._look(fingerprint_of, directory)
        version = model.versions[number] = Version(number, "LOADING", seen=fingerprint)
        if before is not None and before.error and before.seen == fingerprint:
            version.num_failures = before.num_failures
        try:
            servable = await self._loaded(name, number, directory, fingerprint)
        # Whatever is wrong with a version is its status and nobody else's trouble.
        except Exception as error:
            version.state, version.error = "END", str(error) or type(error).__name__
            version.refused = isinstance(error, RefusedError)
            version.num_failures += 1
            version.retry_at = time.monotonic() + self._following.load_retry_seconds
            if before is None or before.error != version.error:
                _log.error("%s version %d is not served: %s", name, number, version.error)
        else:
            version.servable, version.state = servable, "AVAILABLE"
            _log.info("%s version %d is available", name, number)

    async def _loaded(self, name: str, number: int, directory: Path, before: Fingerprint) -> Loaded:
        servable = await asyncio.get_running_loop().run_in_executor(self._loading, self._load, name, number, directory)
        if await self._look(self._waits_until_still, directory) and await self._look(fingerprint_of, directory) != before:
            self._begin(self._close(servable))
            raise LoadError("its files changed while it was loaded")
        return servable

    def _free_if_done(self, version: Version) -> None:
        if version.state == "UNLOADING" and not version.users and version.servable is not None:
            servable, version.servable = version.servable, None
            self._begin(self._close(servable, version))

    async def _close(self, servable: Loaded, version: Version | None = None) -> None:
        await asyncio.get_running_loop().run_in_executor(self._loading, servable.close)
        if version is not None:
            version.state = "END"

    async def _look(self, function: Callable[[Path], Result], directory: Path) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._looking, function, directory)


def _forget(model: Model, found: set[int], wanted: set[int]) -> None:
    """Versions that ended and whose story is over: gone from the file system, or unloaded in order and wanted again.

    So are those that failed and are not named any more: where they are named again they are tried again, and nobody is told the
    former error meanwhile.
    """
    for number, version in list(model.versions.items()):
        is_left = bool(version.error) and _is_specific(model)
        is_gone = number not in wanted and (number not in found or is_left)
        is_back = number in wanted and not version.error
        if (is_gone and version.state in {"END", "START"}) or (is_back and version.state == "END"):
            del model.versions[number]


def _is_specific(model: Model) -> bool:
    return model.config.model_version_policy.WhichOneof("policy_choice") == "specific"
