"""Any order of commands, some of them failing, leaves catalogue, models.config, marks and disk telling the same story."""

import contextlib
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from head_service.errors import HeadServiceError
from head_service.gate import Comparison
from head_service.repository import Repository
from tests.head_service.lifecycles import DyingStore, Killed, World

NAMES = st.sampled_from(["spam", "topic"])
VERSIONS = st.integers(1, 6)


class HeadsMachine(RuleBasedStateMachine):
    """Publish, refuse, promote, roll back, try out, remove and die, as fate has it."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(Path(tempfile.mkdtemp()))
        self.world.lifecycle.write_configs()
        self.given: dict[str, int] = {}

    @rule(name=NAMES)
    def publish(self, name: str) -> None:
        version = self.world.publish(name)
        assert version > self.given.get(name, 0)
        self.given[name] = version

    @rule(name=NAMES, version=VERSIONS)
    def promote(self, name: str, version: int) -> None:
        before = self.world.catalogue().heads.get(name)
        with contextlib.suppress(HeadServiceError):
            after = self.world.lifecycle.promote(name, version)
            assert version == after.stable
            assert before is None or after.previous in {before.stable, before.previous}

    @rule(name=NAMES, version=VERSIONS, dies_at=st.integers(1, 12), after=st.booleans())
    def die_while_promoting(self, name: str, version: int, dies_at: int, after: bool) -> None:
        store = DyingStore(self.world.root, dies_at, after=after)
        with contextlib.suppress(HeadServiceError, Killed):
            self.world.lifecycle_of(Repository(store)).promote(name, version)
        self.world.lifecycle.settle()

    @rule(name=NAMES, version=VERSIONS)
    def fail_to_load(self, name: str, version: int) -> None:
        self.world.broken.add((name, version))
        before = self.world.catalogue().heads.get(name)
        with contextlib.suppress(HeadServiceError):
            self.world.lifecycle.promote(name, version)
        self.world.broken.clear()
        assert before == self.world.catalogue().heads.get(name)

    @rule(name=NAMES)
    def roll_back(self, name: str) -> None:
        with contextlib.suppress(HeadServiceError):
            self.world.lifecycle.roll_back(name)

    @rule(name=NAMES, version=VERSIONS, share=st.floats(-0.5, 1.5))
    def canary(self, name: str, version: int, share: float) -> None:
        with contextlib.suppress(HeadServiceError):
            self.world.lifecycle.start_canary(name, version, share)

    @rule(name=NAMES, version=VERSIONS)
    def shadow(self, name: str, version: int) -> None:
        with contextlib.suppress(HeadServiceError):
            self.world.lifecycle.start_shadow(name, version)

    @rule(name=NAMES)
    def end_trials(self, name: str) -> None:
        with contextlib.suppress(HeadServiceError):
            self.world.lifecycle.end_canary(name)
            self.world.lifecycle.end_shadow(name)

    @rule(name=NAMES, version=VERSIONS)
    def refuse(self, name: str, version: int) -> None:
        with contextlib.suppress(HeadServiceError):
            self.world.lifecycle.refuse(name, version, Comparison(verdict="refused", reason="worse", version=version))

    @rule(name=NAMES, version=st.none() | VERSIONS)
    def remove(self, name: str, version: int | None) -> None:
        with contextlib.suppress(HeadServiceError):
            self.world.lifecycle.remove(name, version)

    @rule(seconds=st.sampled_from([0.5, 5.0, 5_000.0]), keep=st.integers(1, 4))
    def settle(self, seconds: float, keep: int) -> None:
        self.world.clock.sleep(seconds)
        lifecycle = self.world.lifecycle
        lifecycle.keep_versions = keep
        lifecycle.settle()

    @invariant()
    def all_tell_the_same(self) -> None:
        assert [] == self.world.problems()

    def teardown(self) -> None:
        shutil.rmtree(self.world.root)


HeadsMachine.TestCase.settings = settings(
    max_examples=30, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
test_any_order_of_commands_leaves_a_repository_in_order = HeadsMachine.TestCase
