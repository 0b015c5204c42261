import asyncio
from pathlib import Path

import pytest
from pydantic_settings import CliApp

from head_service.control.settings import ServeSettings, WorkerSettings
from head_service.errors import HeadServiceError
from trunkline import stack as stack_module
from trunkline.processes import StackError
from trunkline.stack import Addresses, Stack, StackSettings, record, recorded


@pytest.mark.parametrize(("layers", "given"), [((), None), ((-2, -4), "[-4, -2, -1]"), ((-1,), "[-1]")])
def test_the_embedding_service_is_told_which_layers_to_compute(
    tmp_path: Path, layers: tuple[int, ...], given: str | None
) -> None:
    command = Stack(StackSettings(tmp_path, tmp_path, tmp_path, layers=layers))._embedding_command()

    assert given == (command[command.index("--layers") + 1] if "--layers" in command else None)


class Stopped:
    """In a child's place: it notes when it is stopped, and by then who had been."""

    def __init__(self, name: str, stopped: list[str]) -> None:
        self.name = name
        self._stopped = stopped

    async def stop(self, grace: float) -> None:
        self._stopped.append(self.name)


async def test_what_calls_others_is_stopped_before_them(tmp_path: Path) -> None:
    stopped: list[str] = []
    names = ("embedding", "heads", "control", "gateway", "worker")
    stack = Stack(StackSettings(tmp_path, tmp_path, tmp_path), children={name: Stopped(name, stopped) for name in names})

    await stack.stop()

    assert set(stopped[:3]) == {"gateway", "worker", "control"}
    assert set(stopped[3:]) == {"embedding", "heads"}


def test_the_control_plane_works_on_the_stacks_repository_and_services(tmp_path: Path) -> None:
    settings = StackSettings(
        tmp_path / "mirror", tmp_path, tmp_path, source="s3://bucket/heads", control_home=tmp_path / "control"
    )
    stack = Stack(settings, _embedding=("127.0.0.1:1", "http://127.0.0.1:2"), _heads=("127.0.0.1:3", "http://127.0.0.1:4"))

    given = CliApp.run(WorkerSettings, cli_args=stack._worker_command()[4:])
    served = CliApp.run(ServeSettings, cli_args=stack._control_command()[4:])

    assert ("127.0.0.1:1", "127.0.0.1:3") == (given.embedding_address, given.heads_address)
    assert given.location == served.location == "s3://bucket/heads"
    assert given.home == served.home == tmp_path / "control"
    assert served.port == 8200


async def test_a_mirror_is_followed_whatever_happened_the_last_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    rounds: list[int] = []

    def follow(*_: object) -> None:
        rounds.append(len(rounds))
        if len(rounds) < 3:
            raise ValueError("nobody foresaw it")

    monkeypatch.setattr(stack_module, "follow_once", follow)
    monkeypatch.setattr(stack_module, "MIRROR_POLL_SECONDS", 0.001)
    following = asyncio.create_task(Stack(StackSettings(tmp_path, tmp_path, tmp_path), said.append)._follow_source(None))
    async with asyncio.timeout(10):
        while len(rounds) < 4:
            await asyncio.sleep(0.001)
    following.cancel()

    assert ["the mirror stays as it is: ValueError"] * 2 == said


def test_a_record_of_a_running_stack_names_its_control_plane(tmp_path: Path) -> None:
    addresses = Addresses("http://g", "http://e", "e:1", "http://h", "h:1", control="http://c")
    record(tmp_path / "stack.json", addresses)

    assert recorded(tmp_path / "stack.json") == addresses


async def test_an_embedding_service_elsewhere_is_used_and_none_is_started(tmp_path: Path) -> None:
    settings = StackSettings(tmp_path / "repository", tmp_path / "cache", tmp_path / "logs", embedding_address="gpu:8101")
    stack = Stack(settings)

    assert ("gpu:8101", "") == await stack.start_embedding()
    assert not stack.children
    command = stack._gateway_command()
    assert "gpu:8101" == command[command.index("--embedding-address") + 1]


class Flighty:
    """In a child's place: it ends at once, and what starts it again meets each of *failures* before it stays."""

    name = "gateway"

    def __init__(self, *failures: Exception) -> None:
        self._failures = list(failures)
        self._is_back = asyncio.Event()

    async def ended(self) -> int:
        if self._is_back.is_set():
            await asyncio.Event().wait()
        return 1

    async def start(self, timeout: float) -> None:
        if self._failures:
            raise self._failures.pop(0)
        self._is_back.set()


async def test_a_service_is_started_again_until_it_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(stack_module, "RESTART_PAUSE_SECONDS", 0.001)
    failures = (StackError("its port is taken"), OSError(28, "No space left on device"), HeadServiceError("a folder is gone"))
    stack = Stack(StackSettings(tmp_path, tmp_path, tmp_path), said.append)
    watching = asyncio.create_task(stack._watch(Flighty(*failures)))
    async with asyncio.timeout(10):
        while "gateway is back" not in said:
            await asyncio.sleep(0.001)
    watching.cancel()

    told = [line for line in said if "starting it again" not in line]
    assert ["its port is taken", "gateway could not start: [Errno 28] No space left on device", "a folder is gone"] == told[:3]
