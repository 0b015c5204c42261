"""Documents are about settings, metrics, commands and pages that there are."""

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from typer.main import get_command

from embedding_service.settings import Settings as EmbeddingSettings
from gateway.settings import Settings as GatewaySettings
from gateway.telemetry import BackendMetrics, Telemetry
from gateway.versions import VersionCounts
from head_service.control.settings import ServeSettings, WorkerSettings
from head_service.serving.flags import Flags
from tests.deploy.test_watching import RULES, exposed
from trunkline.cli import app

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "operations.md").read_text()
PAGES = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "perf/README.md"]
PAGES += [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))]


def flags() -> set[str]:
    settings = (EmbeddingSettings, GatewaySettings, ServeSettings, WorkerSettings)
    named = {name.replace("_", "-") for one in settings for name in one.model_fields}
    return named | set(Flags.__dataclass_fields__) | {"help"}


def test_every_flag_is_one() -> None:
    named = set(re.findall(r"--([a-z][\w-]*)", TEXT))

    assert len(named) > 20
    assert named <= flags()


def test_every_variable_is_one() -> None:
    for service, name in re.findall(r"TRUNKLINE_([A-Z]+)_([A-Z_]+)", TEXT):
        assert service in {"GATEWAY", "EMBEDDING", "CONTROL"}
        assert name.lower().replace("_", "-") in flags()


def test_every_metric_of_the_gateway_is_told_and_every_metric_told_exists() -> None:
    named = set(re.findall(r"trunkline_(?:gateway|embedding)_\w+", TEXT))
    telemetry = Telemetry()
    gateway = {one._name for one in (*telemetry._counted(), *telemetry._asked(), *BackendMetrics(telemetry.registry).families)}
    versions = {f"{family.name}_total" for family in VersionCounts(CollectorRegistry()).describe()}

    assert gateway | versions <= named
    assert all(name in exposed().keys() | versions or f"{name}_count" in exposed() for name in named)


def test_every_alert_named_is_one() -> None:
    named = set(re.findall(r"Trunkline[A-Z]\w+", TEXT))

    assert named
    assert named <= {rule["alert"] for rule in RULES}


@pytest.mark.parametrize("page", PAGES)
def test_every_command_named_is_one(page: str) -> None:
    text = (ROOT / page).read_text()
    for module in re.findall(r"python -m ([a-z_][\w.]*\w)", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
    for line in re.findall(r"(?:^|`|bin/|\$ )trunkline ([^`#\n]+)", text, re.MULTILINE):
        assert_is_command(line.split())


def assert_is_command(words: list[str]) -> None:
    """Whether `trunkline` knows *words* up to its arguments, and every option among them."""
    command, rest = get_command(app), words
    while rest and not rest[0].startswith("-") and (commands := getattr(command, "commands", {})):
        name = re.sub(r"\W+$", "", rest[0].partition("|")[0])
        assert name in commands, words
        command, rest = commands[name], rest[1:]
    known = {option for one in command.params for option in (*one.opts, *one.secondary_opts)} | {"--help"}
    named = {option for word in rest for option in re.findall(r"(?<!\S)\[?(--[a-z-]+)", word)}
    assert named <= known, words


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target, place in re.findall(r"\]\((?!https?:)([^)#]*)(#[^)]+)?\)", path.read_text()):
        found = path.parent / target if target else path
        assert found.exists(), target
        assert not place or place[1:] in headings(found), f"{target}{place}"


def headings(page: Path) -> set[str]:
    """As links name them."""
    lines = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", line).lower().replace(" ", "-") for line in lines}
