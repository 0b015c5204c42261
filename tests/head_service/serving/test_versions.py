import asyncio
import threading
from pathlib import Path

import grpc
import pytest

from clients.wire.tfs import serving_pb2 as pb
from head_service.serving.errors import ServingError
from head_service.serving.trust import RefusedError
from head_service.serving.versions import (
    Actions,
    Following,
    State,
    Version,
    VersionManager,
    aspired,
    is_due,
    next_actions,
    stand_in,
)


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
    """Makes servables; fails for the versions in *broken* and *refused*, and holds back model *held* until `go` is set."""

    def __init__(self, held: str = "") -> None:
        self.broken: set[int] = set()
        self.refused: set[int] = set()
        self.made: dict[int, FakeServable] = {}
        self.tries: list[int] = []
        self.held = held
        self.go = threading.Event()

    def __call__(self, name: str, version: int, directory: Path) -> FakeServable:
        self.tries.append(version)
        if name == self.held:
            self.go.wait(10)
        if version in self.refused:
            raise RefusedError("foreign op")
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
    await manager.settle()
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


NOW = 100.0
FILES = (("saved_model.pb", 7, 1),)


@pytest.mark.parametrize(
    ("version", "files", "expected"),
    [
        pytest.param(Version(1, error="x", num_failures=1, retry_at=NOW, seen=FILES), FILES, True, id="its time has come"),
        pytest.param(Version(1, error="x", num_failures=1, retry_at=NOW + 1, seen=FILES), FILES, False, id="not yet"),
        pytest.param(Version(1, error="x", num_failures=3, retry_at=NOW, seen=FILES), FILES, False, id="tried often enough"),
        pytest.param(Version(1, error="x", num_failures=1, refused=True, seen=FILES), FILES, False, id="refused"),
        pytest.param(Version(1, error="x", num_failures=9, refused=True, seen=()), FILES, True, id="its files changed"),
    ],
)
def test_when_a_failed_version_is_tried_again(version: Version, files: tuple[tuple[str, int, int], ...], expected: bool) -> None:
    assert expected == is_due(version, files, NOW, Following(max_num_load_retries=2))


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        pytest.param([Version(3, "END", "bad")], 2, id="the newest of the others"),
        pytest.param([Version(3, "END", "bad"), Version(2, "END", "bad")], 1, id="that did not fail"),
        pytest.param([Version(3, "END", "bad"), Version(1, "AVAILABLE")], None, id="one answers"),
        pytest.param([Version(3, "LOADING")], None, id="the wanted one may come yet"),
        pytest.param([], None, id="not tried yet"),
    ],
)
def test_an_older_version_stands_in_where_the_wanted_one_failed_and_none_answers(
    versions: list[Version], expected: int | None
) -> None:
    assert expected == stand_in({1, 2, 3}, {3}, {version.number: version for version in versions})


async def test_a_server_that_starts_on_a_broken_newest_version_serves_the_one_before(tmp_path: Path) -> None:
    loader = FakeLoader()
    loader.broken = {3}
    manager = VersionManager(loader)
    for name in ("1", "2", "3"):
        (tmp_path / name).mkdir()
    manager.configure(config(tmp_path))
    await manager.settle()

    assert manager.models["m"].available == [2]
    assert manager.models["m"].versions[3].error == "bad graph"


async def test_a_version_that_failed_is_tried_again_when_its_files_change(tmp_path: Path) -> None:
    loader = FakeLoader()
    loader.refused = {1}
    manager = VersionManager(loader)
    (tmp_path / "1").mkdir()
    manager.configure(config(tmp_path))
    await manager.settle()
    await manager.settle()
    assert loader.tries == [1]

    loader.refused = set()
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"whole")
    await manager.settle()
    assert loader.tries == [1, 1]
    assert manager.models["m"].available == [1]


async def test_a_load_that_failed_is_tried_as_often_as_the_flags_say(tmp_path: Path) -> None:
    loader = FakeLoader()
    loader.broken = {1}
    manager = VersionManager(loader, following=Following(max_num_load_retries=2, load_retry_seconds=0))
    (tmp_path / "1").mkdir()
    manager.configure(config(tmp_path))
    for _ in range(5):
        await manager.settle()

    assert loader.tries == [1, 1, 1]
    assert manager.models["m"].versions[1].state == "END"


async def test_a_version_that_is_still_being_copied_is_waited_for(tmp_path: Path) -> None:
    loader = FakeLoader()
    manager = VersionManager(loader, waits_until_still=lambda _: True)
    (tmp_path / "1").mkdir()
    manager.configure(config(tmp_path))
    await manager.settle()
    assert manager.models["m"].available == [1]

    (tmp_path / "2").mkdir()
    for size in range(3):
        (tmp_path / "2" / "variables").write_bytes(b"x" * size)
        await manager.settle()
        assert manager.models["m"].versions[2].state == "START"
    await manager.settle()
    assert manager.models["m"].available == [2]
    assert loader.tries == [1, 2]


async def test_a_version_that_changes_while_it_is_loaded_is_dropped_and_loaded_again(tmp_path: Path) -> None:
    loader = FakeLoader()
    (tmp_path / "1").mkdir()

    def load(name: str, version: int, directory: Path) -> FakeServable:
        if not loader.made:
            (directory / "late").write_bytes(b"")
        return loader(name, version, directory)

    manager = VersionManager(load, waits_until_still=lambda _: True)
    manager.configure(config(tmp_path))
    await manager.settle()
    dropped = loader.made[1]
    assert manager.models["m"].versions[1].error == "its files changed while it was loaded"
    assert dropped.is_closed

    await manager.settle()
    await manager.settle()
    assert manager.models["m"].available == [1]


async def test_a_model_that_takes_long_to_load_holds_up_no_other(tmp_path: Path) -> None:
    loader = FakeLoader(held="slow")
    manager = VersionManager(loader, following=Following(poll_seconds=0.01, num_load_threads=2))
    wanted = pb.ModelServerConfig()
    for name in ("slow", "quick"):
        (tmp_path / name / "1").mkdir(parents=True)
        wanted.model_config_list.config.add(name=name, base_path=str(tmp_path / name))
    manager.configure(wanted)
    following = asyncio.create_task(manager.run())
    async with asyncio.timeout(5):
        while not manager.models["quick"].available:
            await asyncio.sleep(0.01)
        (tmp_path / "quick" / "2").mkdir()
        while manager.models["quick"].available != [2]:
            await asyncio.sleep(0.01)
        assert manager.models["slow"].versions[1].state == "LOADING"
        loader.go.set()
        while not manager.models["slow"].available:
            await asyncio.sleep(0.01)
    following.cancel()
    await asyncio.wait([following])


async def test_a_base_path_that_cannot_be_listed_for_a_moment_unloads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (3, 5):
        (tmp_path / str(number)).mkdir()
    manager = VersionManager(FakeLoader())
    manager.configure(config(tmp_path, 3, 5))
    await manager.settle()

    def full(_: Path) -> set[int]:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("head_service.serving.versions.versions_in", full)
    await manager.settle()
    assert [3, 5] == sorted(manager.models["m"].available)
    assert "cannot be listed" in caplog.text
    manager.close()


async def test_a_failed_version_that_was_left_out_is_tried_again_when_it_is_named_again(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
    loader = FakeLoader()
    loader.broken.add(2)
    manager = VersionManager(loader, following=Following(max_num_load_retries=0))
    for named in ((1, 2), (1,)):
        manager.configure(config(tmp_path, *named))
        await manager.settle()
    assert 2 not in manager.models["m"].versions
    loader.broken.clear()
    manager.configure(config(tmp_path, 1, 2))
    await manager.settle()
    assert [1, 2] == sorted(manager.models["m"].available)
    manager.close()


async def test_a_base_path_that_is_emptied_keeps_what_answers(tmp_path: Path) -> None:
    manager = VersionManager(FakeLoader())
    (tmp_path / "1").mkdir()
    manager.configure(config(tmp_path))
    await manager.settle()
    (tmp_path / "1").rmdir()
    await manager.settle()

    assert manager.models["m"].available == [1]


def labelled(base: Path, *specific: int, **labels: int) -> pb.ModelServerConfig:
    wanted = config(base, *specific)
    wanted.model_config_list.config[0].version_labels.update(labels)
    return wanted


def by_label(label: str) -> pb.ModelSpec:
    return pb.ModelSpec(name="m", version_label=label)


async def test_a_label_moves_in_two_steps(tmp_path: Path) -> None:
    manager = VersionManager(FakeLoader())
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
    manager.configure(config(tmp_path, 1))
    await manager.settle()
    manager.configure(labelled(tmp_path, 1, stable=1))

    with pytest.raises(ServingError, match="Request to assign label to version 2 of model m, which is not currently") as refused:
        manager.configure(labelled(tmp_path, 1, 2, stable=2))
    assert refused.value.code is grpc.StatusCode.FAILED_PRECONDITION
    with_another = labelled(tmp_path, 1, 2, stable=2)
    with_another.model_config_list.config.add(name="other", base_path=str(tmp_path))
    with pytest.raises(ServingError, match="Request to assign label to version 2 of model m"):
        manager.configure(with_another)
    await manager.settle()
    assert manager.models["m"].available == [1]
    assert manager.models.keys() == {"m"}

    manager.configure(labelled(tmp_path, 1, 2, stable=1))
    await manager.settle()
    manager.configure(labelled(tmp_path, 1, 2, stable=2))
    with manager.use(by_label("stable")) as (version, _):
        assert version == 2
    with pytest.raises(ServingError, match="Unrecognized servable version label: nobody"), manager.use(by_label("nobody")):
        pass


async def test_with_its_flag_a_new_label_may_wait_for_its_version_but_none_in_use_is_moved_there(tmp_path: Path) -> None:
    manager = VersionManager(FakeLoader(), following=Following(allow_labels_for_unavailable=True))
    (tmp_path / "1").mkdir()
    manager.configure(labelled(tmp_path, 1, 2, stable=1))
    await manager.settle()
    manager.configure(labelled(tmp_path, 1, 2, stable=1, canary=2))
    with (
        pytest.raises(ServingError, match=r"Servable not found for request: Specific\(m, 2\)"),
        manager.use(by_label("canary")),
    ):
        pass
    with pytest.raises(ServingError, match="Request to assign label"):
        manager.configure(labelled(tmp_path, 1, 2, stable=2, canary=2))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (pb.ModelConfig(name="m", base_path="relative"), "absolute path"),
        (pb.ModelConfig(name="", base_path="/x"), "absolute path"),
        (pb.ModelConfig(name="m", base_path="/x", model_platform="caffe"), "platform"),
    ],
)
async def test_a_configuration_that_makes_no_sense_changes_nothing(model: pb.ModelConfig, message: str) -> None:
    manager = VersionManager(FakeLoader())
    wanted = pb.ModelServerConfig()
    wanted.model_config_list.config.add(name="good", base_path="/good")
    wanted.model_config_list.config.append(model)
    with pytest.raises(ServingError, match=message):
        manager.configure(wanted)
    assert not manager.models
