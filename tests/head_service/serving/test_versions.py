import asyncio
from pathlib import Path

import pytest

from clients.wire.tfs import serving_pb2 as pb
from head_service.serving.errors import ServingError
from head_service.serving.versions import Actions, State, VersionManager, aspired, next_actions


def policy(**choice: object) -> pb.VersionPolicy:
    return pb.VersionPolicy(**choice)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "chosen", "expected"),
    [
        ([1, 2, 10], policy(), {10}),
        ([1, 2, 10], policy(latest=pb.VersionPolicy.Latest(num_versions=2)), {2, 10}),
        ([1, 2], policy(all=pb.VersionPolicy.All()), {1, 2}),
        ([1, 2], policy(specific=pb.VersionPolicy.Specific(versions=[2, 3])), {2}),
        ([], policy(), set()),
    ],
)
def test_the_policy_says_which_versions_ought_to_be_loaded(
    found: list[int], chosen: pb.VersionPolicy, expected: set[int]
) -> None:
    assert expected == aspired(found, chosen)


@pytest.mark.parametrize(
    ("wanted", "states", "expected"),
    [
        pytest.param({1}, {}, Actions(load=(1,)), id="what is wanted and unknown is loaded"),
        pytest.param({2}, {1: "AVAILABLE"}, Actions(load=(2,)), id="the old one stays until the new one answers"),
        pytest.param({2}, {1: "AVAILABLE", 2: "AVAILABLE"}, Actions(unload=(1,)), id="then it goes"),
        pytest.param({2}, {1: "AVAILABLE", 2: "END"}, Actions(), id="a new one that failed leaves the old one serving"),
        pytest.param({2}, {1: "AVAILABLE", 2: "LOADING"}, Actions(), id="so does one that still loads"),
        pytest.param(set(), {1: "AVAILABLE"}, Actions(), id="an emptied directory does not take the last one away"),
        pytest.param({3}, {1: "AVAILABLE", 2: "AVAILABLE"}, Actions(load=(3,), unload=(1,)), id="only the newest old one stays"),
    ],
)
def test_the_next_actions_never_leave_a_model_without_a_version(
    wanted: set[int], states: dict[int, State], expected: Actions
) -> None:
    assert expected == next_actions(wanted, states)


class FakeServable:
    def __init__(self, version: int) -> None:
        self.version = version
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


class FakeLoader:
    """Makes servables; fails for the versions in *broken*."""

    def __init__(self) -> None:
        self.broken: set[int] = set()
        self.made: dict[int, FakeServable] = {}

    def __call__(self, name: str, version: int, directory: Path) -> FakeServable:
        if version in self.broken:
            raise ValueError("bad graph")
        self.made[version] = FakeServable(version)
        return self.made[version]


def config(base: Path, *specific: int) -> pb.ModelServerConfig:
    wanted = pb.ModelServerConfig()
    model = wanted.model_config_list.config.add(name="m", base_path=str(base))
    if specific:
        model.model_version_policy.specific.versions.extend(specific)
    return wanted


def spec(version: int | None = None) -> pb.ModelSpec:
    asked = pb.ModelSpec(name="m")
    if version is not None:
        asked.version.value = version
    return asked


async def test_a_new_version_takes_over_and_a_call_keeps_the_one_it_started_on(tmp_path: Path) -> None:
    loader = FakeLoader()
    manager = VersionManager(loader)
    (tmp_path / "1").mkdir()
    manager.configure(config(tmp_path))
    await manager.settle()
    with manager.use(spec()) as (version, _):
        (tmp_path / "2").mkdir()
        await manager.settle()
        with manager.use(spec()) as (newer, _):
            assert (version, newer) == (1, 2)
        assert not loader.made[1].is_closed
    assert loader.made[1].is_closed
    with pytest.raises(ServingError, match=r"Servable not found for request: Specific\(m, 1\)"), manager.use(spec(1)):
        pass


async def test_a_version_that_fails_shows_its_error_and_leaves_the_old_one_serving(tmp_path: Path) -> None:
    loader = FakeLoader()
    loader.broken = {2}
    manager = VersionManager(loader)
    for name in ("1", "2", "03", "x", ".tmp-1"):
        (tmp_path / name).mkdir()
    manager.configure(config(tmp_path, 1, 2))
    await manager.settle()
    manager.configure(config(tmp_path))
    await manager.settle()

    with manager.use(spec()) as (version, _):
        assert version == 1
    assert manager.models["m"].versions[2].error == "bad graph"
    assert manager.models["m"].versions.keys() == {1, 2}


async def test_a_version_that_was_unloaded_and_is_wanted_again_is_loaded_again(tmp_path: Path) -> None:
    manager = VersionManager(FakeLoader())
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
    for wanted in (1, 2, 1):
        manager.configure(config(tmp_path, wanted))
        await manager.settle()
        with manager.use(spec()) as (version, _):
            assert version == wanted


async def test_reloading_with_another_configuration_unloads_what_it_does_not_name(tmp_path: Path) -> None:
    loader = FakeLoader()
    manager = VersionManager(loader)
    (tmp_path / "1").mkdir()
    manager.configure(config(tmp_path))
    await manager.settle()
    manager.configure(pb.ModelServerConfig())
    await manager.settle()

    assert loader.made[1].is_closed
    with pytest.raises(ServingError), manager.use(spec()):
        pass


async def test_the_file_system_is_followed(tmp_path: Path) -> None:
    manager = VersionManager(FakeLoader(), poll_seconds=0.01)
    following = asyncio.create_task(manager.run())
    (tmp_path / "1").mkdir()
    manager.configure(config(tmp_path))
    async with asyncio.timeout(5):
        while not manager.models["m"].available:
            await asyncio.sleep(0.01)
    following.cancel()
    await asyncio.wait([following])
