"""The local stack: embedding service, head server and gateway, each a process, started, watched and stopped in order.

With the control plane its API and one worker run beside them.
"""

import asyncio
import contextlib
import json
import os
import re
import shutil
import socket
import sys
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from clients import HeadClient
from clients.wire.addresses import host_port
from head_service.catalogue import ensure_layout
from head_service.errors import HeadServiceError
from head_service.lifecycle import Lifecycle
from head_service.mirror import Mirror, follow_once, mirror_layout
from head_service.repository import Repository
from head_service.scoring import is_available
from trunkline.keys import key_from_environment
from trunkline.processes import Child, StackError

START_TIMEOUT_SECONDS: Final = 600.0
"""The first start downloads and prepares the encoder."""

DRAIN_SECONDS: Final = 8.0
RESTART_PAUSE_SECONDS: Final = 0.5
MIRROR_POLL_SECONDS: Final = 1.0
POLL_SECONDS: Final = 0.2
"""Between two looks at models.config, and at the catalogue: somebody waits for the head just trained."""

RUN_DRAIN_SECONDS: Final = 3.0
"""For a run under way to finish when the stack stops; then it is given back, and the next start takes it up."""

FRONTS: Final = ("gateway", "worker", "control")
"""What calls the others, and is stopped before them."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class StackSettings:
    """*ports* of 0 mean any free one. *repository* holds the head versions, the catalogue and models.config.

    *source*, s3://bucket/prefix, makes *repository* a mirror of it. *control_home* is where the control plane keeps its rows.
    """

    repository: Path
    cache_dir: Path
    log_dir: Path
    host: str = "127.0.0.1"
    gateway_port: int = 8080
    embedding_http_port: int = 8100
    embedding_grpc_port: int = 8101
    heads_grpc_port: int = 8500
    heads_rest_port: int = 8501
    model: str | None = None
    engine: str = "auto"
    layers: tuple[int, ...] = ()
    """What the embedding service computes beside the last layer, for heads that read others."""
    embedding_address: str = ""
    """HOST:PORT of an embedding service that runs elsewhere; then the stack starts none."""
    source: str = ""
    with_control: bool = False
    control_home: Path = Path("control")
    control_port: int = 8200

    @property
    def location(self) -> str:
        """Where versions are published to."""
        return self.source or str(self.repository)

    def on_any_ports(self) -> "StackSettings":
        """The same, every port any free one."""
        services = replace(self, embedding_http_port=0, embedding_grpc_port=0, heads_grpc_port=0, heads_rest_port=0)
        return replace(services, gateway_port=0, control_port=0)


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the stack listens: URLs for HTTP, HOST:PORT for gRPC.

    *control* is "" where no control plane runs, and *embedding* where the embedding service runs elsewhere.
    """

    gateway: str
    embedding: str
    embedding_grpc: str
    heads: str
    heads_grpc: str
    control: str = ""


@dataclass(slots=True)
class Stack:
    """The services. One owner: whoever called `start`."""

    settings: StackSettings
    say: Say = print
    children: dict[str, Child] = field(default_factory=dict)
    _watchers: list[asyncio.Task[None]] = field(default_factory=list)
    _embedding: tuple[str, str] = ("", "")
    _heads: tuple[str, str] = ("", "")
    _gateway: str = ""
    _control: str = ""
    _mirror: Mirror | None = None

    async def start_embedding(self) -> tuple[str, str]:
        """Start the embedding service alone, unless it runs elsewhere; its gRPC address and its HTTP URL, "" elsewhere."""
        if self.settings.embedding_address:
            self._embedding = (self.settings.embedding_address, "")
            return self._embedding
        match = await self._start("embedding", self._embedding_command(), r"^embedding grpc=(\S+) http=(\S+)$")
        self._embedding = (match[1], match[2])
        return self._embedding

    async def start_heads(self) -> tuple[str, str]:
        """Start the head server: `tensorflow_model_server` when it is on PATH, ours otherwise. Its gRPC address and REST URL."""
        await asyncio.to_thread(self._prepare_repository)
        real = shutil.which("tensorflow_model_server")
        if real:
            self._heads = await self._start_tensorflow_serving(real)
        else:
            match = await self._start("heads", self._embedded_command(), r"^serving grpc=(\S+) rest=(\S+)$")
            self._heads = (match[1], f"http://{match[2]}")
        await asyncio.to_thread(self._tell_heads, labels=True)
        if self._mirror is not None:
            self._mirror.is_available = partial(is_available, HeadClient(self._heads[0], api_key=key_from_environment()))
            self._watchers.append(asyncio.create_task(self._follow_source(self._mirror)))
        return self._heads

    async def start_gateway(self) -> str:
        """Start the gateway, once its backends run; its URL."""
        match = await self._start("gateway", self._gateway_command(), r"^gateway (http://\S+)$")
        self._gateway = match[1]
        return self._gateway

    async def start_control(self) -> str:
        """Start the control plane's API; its URL."""
        match = await self._start("control", self._control_command(), r"^control (http://\S+)$")
        self._control = match[1]
        return self._control

    async def start_worker(self) -> None:
        """Start a worker, once the embedding service and the head server run."""
        await self._start("worker", self._worker_command(), r"^worker \S+$")

    async def start(self) -> Addresses:
        """Start all; every one of them is ready when this returns."""
        has_control = self.settings.with_control
        await _together(self.start_embedding(), self.start_heads(), *([self.start_control()] if has_control else []))
        await _together(self.start_gateway(), *([self.start_worker()] if has_control else []))
        self.pin_ports()
        self._watchers += [asyncio.create_task(self._watch(child)) for child in self.children.values()]
        return Addresses(
            gateway=self._gateway,
            embedding=self._embedding[1],
            embedding_grpc=self._embedding[0],
            heads=self._heads[1],
            heads_grpc=self._heads[0],
            control=self._control,
        )

    async def stop(self) -> None:
        """Stop what runs, `FRONTS` first, so that nothing they still do loses its backend."""
        for watcher in self._watchers:
            watcher.cancel()
        fronts = [self.children.pop(name) for name in FRONTS if name in self.children]
        for children in (fronts, list(self.children.values())):
            await asyncio.gather(*(child.stop(DRAIN_SECONDS) for child in children))
        self.children.clear()

    def _prepare_repository(self) -> None:
        """What an interrupted command left is finished; a repository that takes no changes is served as it is."""
        s = self.settings
        if s.source:
            mirror_layout(s.repository)
            self._mirror = Mirror(Repository(s.source), s.repository)
        else:
            ensure_layout(s.repository)
        self._tell_heads(labels=False)

    def _tell_heads(self, *, labels: bool) -> None:
        """Without *labels* before the head server starts: it takes a label only on a version that it has loaded."""
        if self._mirror is not None:
            self._mirror.with_labels = labels
            follow_once(self._mirror, self.say)
            return
        try:
            lifecycle = Lifecycle(Repository(self.settings.repository))
            lifecycle.settle()
            lifecycle.write_configs(labels=labels)
        except HeadServiceError as error:
            self.say(str(error))

    async def _follow_source(self, mirror: Mirror) -> None:
        while True:
            await asyncio.sleep(MIRROR_POLL_SECONDS)
            try:
                await asyncio.to_thread(follow_once, mirror, self.say)
            except Exception as error:  # whatever it was, the next change is not to be missed
                self.say(f"the mirror stays as it is: {type(error).__name__}")

    async def _start(self, name: str, command: list[str], ready: str) -> re.Match[str]:
        env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
        log = self.settings.log_dir / f"{name}.log"
        child = Child(name, command, ready=re.compile(ready), log=log, env=env)
        self.children[name] = child
        try:
            return await child.start(START_TIMEOUT_SECONDS, lambda line: self._progress(name, line))
        except OSError as error:
            raise StackError(f"{name} could not start: {error.strerror} ({error.filename})") from error

    def _progress(self, name: str, line: str) -> None:
        """Show what a service of ours says of its preparation; TensorFlow's own chatter stays in the log."""
        if line.startswith(f"{name}: "):
            self.say(line)

    def _embedding_command(self) -> list[str]:
        s = self.settings
        command = [sys.executable, "-m", "embedding_service", "--host", s.host, "--cache-dir", str(s.cache_dir)]
        command += ["--grpc-port", str(s.embedding_grpc_port), "--http-port", str(s.embedding_http_port), "--engine", s.engine]
        command += ["--layers", json.dumps(sorted({-1, *s.layers}))] if s.layers else []
        return command + (["--model", s.model] if s.model else [])

    def _serving_flags(self, *, config_poll_seconds: float) -> list[str]:
        return [
            f"--model_config_file={self.settings.repository / 'models.config'}",
            f"--model_config_file_poll_wait_seconds={config_poll_seconds:g}",
            "--file_system_poll_wait_seconds=1",
            "--enable_grpc_healthcheck_service=true",
            # What is labelled in the file when the server starts is not loaded yet.
            "--allow_version_labels_for_unavailable_models=true",
        ]

    def _embedded_command(self) -> list[str]:
        s = self.settings
        ports = [f"--host={s.host}", f"--port={s.heads_grpc_port}", f"--rest_api_port={s.heads_rest_port}"]
        extra = ["--enable_serialization_as_tensor_content=true", "--allow_foreign_models=false"]
        flags = self._serving_flags(config_poll_seconds=POLL_SECONDS)
        return [sys.executable, "-m", "head_service.serving", *ports, *flags, *extra]

    async def _start_tensorflow_serving(self, binary: str) -> tuple[str, str]:
        s = self.settings
        grpc_port, rest_port = s.heads_grpc_port or _free_port(), s.heads_rest_port or _free_port()
        # Its flag takes whole seconds.
        flags = self._serving_flags(config_poll_seconds=1)
        command = [binary, f"--port={grpc_port}", f"--rest_api_port={rest_port}", *flags]
        await self._start("heads", command, r"Exporting HTTP/REST API at")
        return host_port(s.host, grpc_port), f"http://{host_port(s.host, rest_port)}"

    def _gateway_command(self) -> list[str]:
        s = self.settings
        command = [sys.executable, "-m", "gateway", "--host", s.host, "--port", str(s.gateway_port)]
        command += ["--embedding-address", self._embedding[0], "--heads-address", self._heads[0]]
        return [*command, "--catalogue", str(s.repository / "catalogue.json"), "--catalogue-poll-seconds", str(POLL_SECONDS)]

    def _control_command(self) -> list[str]:
        s = self.settings
        command = [sys.executable, "-m", "head_service.control", "serve", "--host", s.host, "--port", str(s.control_port)]
        return [*command, *self._control_places()]

    def _worker_command(self) -> list[str]:
        s = self.settings
        command = [sys.executable, "-m", "head_service.control", "worker", *self._control_places()]
        command += ["--embedding-address", self._embedding[0], "--heads-address", self._heads[0]]
        # The stack keeps its bundles itself, also after changes by hand.
        command += ["--cache-dir", str(s.cache_dir), "--no-bundles"]
        return [*command, "--drain-seconds", str(RUN_DRAIN_SECONDS), "--stop-seconds", str(RUN_DRAIN_SECONDS)]

    def _control_places(self) -> list[str]:
        return ["--home", str(self.settings.control_home), "--repository", self.settings.location]

    def pin_ports(self) -> None:
        """A service that is started again must be found where it was, also when its first port was any free one."""
        self._pin("gateway", {"--port": self._gateway})
        self._pin("embedding", {"--grpc-port": self._embedding[0], "--http-port": self._embedding[1]})
        self._pin("control", {"--port": self._control})
        heads = self.children["heads"].command
        for place, word in enumerate(heads):
            if word.startswith("--port="):
                heads[place] = f"--port={self._heads[0].rsplit(':', 1)[1]}"
            if word.startswith("--rest_api_port="):
                heads[place] = f"--rest_api_port={self._heads[1].rsplit(':', 1)[1]}"

    def _pin(self, name: str, addresses: dict[str, str]) -> None:
        """Have *name*, where it runs, take by each flag the port of that address."""
        if name not in self.children:
            return
        command = self.children[name].command
        for flag, address in addresses.items():
            command[command.index(flag) + 1] = address.rsplit(":", 1)[1]

    async def _watch(self, child: Child) -> None:
        """Start *child* again whenever it ends by itself."""
        while True:
            status = await child.ended()
            self.say(f"{child.name} ended unexpectedly (status {status}); starting it again")
            await asyncio.sleep(RESTART_PAUSE_SECONDS)
            try:
                await self._start_again(child)
                self.say(f"{child.name} is back")
            except (StackError, HeadServiceError) as error:
                self.say(str(error))
            except Exception as error:  # whatever it was, the service is not to stay away for good
                self.say(f"{child.name} could not start: {error}")

    async def _start_again(self, child: Child) -> None:
        is_heads = child is self.children.get("heads")
        if is_heads:
            await asyncio.to_thread(self._tell_heads, labels=False)
        await child.start(START_TIMEOUT_SECONDS)
        if is_heads:
            await asyncio.to_thread(self._tell_heads, labels=True)


async def _together(*starts: Coroutine[Any, Any, object]) -> None:
    """All *starts* at once; the first that fails ends the others, and its error is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for start in starts:
                group.create_task(start)
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def record(path: Path, addresses: Addresses) -> None:
    """Write down where the stack listens, so that other commands find it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"pid": os.getpid(), **asdict(addresses)}))
    temporary.replace(path)


def forget(path: Path) -> None:
    """Remove the record of this process's stack; another's stays."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        if json.loads(path.read_text())["pid"] == os.getpid():
            path.unlink()


def refuse_second(path: Path) -> None:
    """StackError where a stack is recorded and something of it listens: a number of a process alone may be another's by now."""
    found = recorded(path)
    if found is not None and any(map(_is_listening, (found.gateway, found.embedding, found.heads))):
        said = f"a local stack runs already, with its gateway at {found.gateway}"
        raise StackError(f"{said}; stop that one first, or set TRUNKLINE_HOME to a folder of its own for this one")


def _is_listening(url: str) -> bool:
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 0), timeout=1.0).close()
    except (OSError, ValueError):
        return False
    return True


def recorded(path: Path) -> Addresses | None:
    """Where the running stack listens; None when there is no record or its supervisor is gone."""
    try:
        fields = json.loads(path.read_text())
        os.kill(fields.pop("pid"), 0)
        return Addresses(**fields)
    except (OSError, ValueError, TypeError, KeyError):
        return None
