"""Any order of copying, breaking, deleting and reconfiguring: what answers goes on answering, what is closed is unused."""

import asyncio
import contextlib
import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from clients.wire.tfs import serving_pb2 as pb
from head_service.serving.trust import LoadError
from head_service.serving.versions import Following, VersionManager

NUMBERS = st.integers(1, 4)


class Servable:
    def __init__(self) -> None:
        self.users = 0
        self.is_closed = False

    def close(self) -> None:
        assert not self.users
        self.is_closed = True


def load(name: str, version: int, directory: Path) -> Servable:
    if not (directory / "whole").exists():
        raise LoadError("only half of it is there")
    return Servable()


class VersionLife(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.base = Path(tempfile.mkdtemp())
        self.calls: list[tuple[contextlib.ExitStack, Servable]] = []
        self.has_answered = False
        self.loop.run_until_complete(self.start())

    async def start(self) -> None:
        self.manager = VersionManager(load, following=Following(load_retry_seconds=0))
        self.manager.configure(self.configuration([]))
        await self.manager.settle()

    def configuration(self, versions: list[int]) -> pb.ModelServerConfig:
        config = pb.ModelServerConfig()
        model = config.model_config_list.config.add(name="m", base_path=str(self.base))
        if versions:
            model.model_version_policy.specific.versions.extend(versions)
        return config

    def settle(self) -> None:
        self.loop.run_until_complete(self.manager.settle())

    @rule(number=NUMBERS, is_whole=st.booleans())
    def copy(self, number: int, is_whole: bool) -> None:
        directory = self.base / str(number)
        directory.mkdir(exist_ok=True)
        if is_whole:
            (directory / "whole").touch()
        else:
            (directory / "whole").unlink(missing_ok=True)

    @rule(number=NUMBERS)
    def delete(self, number: int) -> None:
        shutil.rmtree(self.base / str(number), ignore_errors=True)

    @rule(versions=st.lists(NUMBERS, max_size=2, unique=True))
    def configure(self, versions: list[int]) -> None:
        self.manager.configure(self.configuration(versions))

    @rule()
    def look(self) -> None:
        self.settle()

    @precondition(lambda self: self.manager.models["m"].available)
    @rule()
    def begin_call(self) -> None:
        stack = contextlib.ExitStack()
        _, servable = stack.enter_context(self.manager.use(pb.ModelSpec(name="m")))
        assert isinstance(servable, Servable)
        servable.users += 1
        self.calls.append((stack, servable))

    @precondition(lambda self: self.calls)
    @rule()
    def end_call(self) -> None:
        stack, servable = self.calls.pop(0)

        async def end() -> None:
            servable.users -= 1
            stack.close()

        self.loop.run_until_complete(end())

    @invariant()
    def what_is_used_is_open(self) -> None:
        assert not any(servable.is_closed for _, servable in self.calls)

    @invariant()
    def once_it_answers_it_always_does(self) -> None:
        available = self.manager.models["m"].available
        self.has_answered = self.has_answered or bool(available)
        assert bool(available) == self.has_answered

    @invariant()
    def what_failed_says_why_and_what_answers_is_open(self) -> None:
        for version in self.manager.models["m"].versions.values():
            if version.state == "AVAILABLE":
                assert isinstance(version.servable, Servable)
                assert not version.servable.is_closed
                assert not version.error

    def teardown(self) -> None:
        while self.calls:
            self.end_call()
        self.settle()
        self.manager.close()
        self.loop.close()
        shutil.rmtree(self.base)


VersionLife.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestVersionLife = VersionLife.TestCase
