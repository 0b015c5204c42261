"""The dashboard and the alert rules: of the shape their readers want, and about metrics that exist."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from embedding_service.telemetry import PrometheusTelemetry
from gateway.drift import DriftMonitor
from gateway.telemetry import BackendMetrics, Telemetry
from tests.deploy.promql import Query

ROOT = Path(__file__).resolve().parents[2]
BOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana" / "trunkline.json").read_text())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
RULES = [
    rule
    for path in sorted((ROOT / "deploy" / "alerts").glob("*.yml"))
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]] + [rule["expr"] for rule in RULES]
ADDED = {"le", "instance", "job"}
"""Labels that Prometheus adds, and a histogram's own."""


@cache
def exposed() -> dict[str, set[str]]:
    """Every sample's name that the services expose, and its labels."""
    embedding = CollectorRegistry()
    told = PrometheusTelemetry(embedding)
    trunk = told.of_trunk("t")
    trunk.entries_reused("cached", 1)
    drift = CollectorRegistry()
    DriftMonitor(drift)
    telemetry = Telemetry()
    BackendMetrics(telemetry.registry)
    gateway = telemetry.render(inside=0, catalogue_age=0)
    text = b"".join([gateway, generate_latest(embedding), generate_latest(drift)]).decode()
    names: dict[str, set[str]] = {}
    for name, kind in re.findall(r"^# TYPE (\S+) (\w+)$", text, re.MULTILINE):
        for sample in (f"{name}_bucket", f"{name}_sum", f"{name}_count") if kind == "histogram" else (name,):
            names[sample] = labels_of(name)
    return names


def labels_of(family: str) -> set[str]:
    """As the families declare them."""
    found = Telemetry()
    others = [*BackendMetrics(CollectorRegistry()).families, *PrometheusTelemetry(CollectorRegistry()).families]
    for one in (*found._counted(), *found._asked(), *others):
        if one._name == family:
            return set(one._labels)
    return {"head", "version", "label"}


@pytest.mark.parametrize("query", sorted(set(QUERIES)))
def test_a_query_can_be_read_and_is_about_metrics_and_labels_that_exist(query: str) -> None:
    selectors = Query(query).selectors

    assert selectors
    for selector in selectors:
        assert selector.metric in exposed(), selector.metric
        assert selector.labels | selector.grouped <= exposed()[selector.metric] | ADDED, selector
        is_counter = selector.metric.endswith(("_total", "_bucket", "_sum", "_count"))
        assert selector.has_range == is_counter, "a counter is read by its rate, a gauge as it is"


def test_every_metric_of_the_gateway_is_on_the_dashboard() -> None:
    shown = {selector.metric for panel in PANELS for target in panel["targets"] for selector in Query(target["expr"]).selectors}
    families = {re.sub("_(bucket|sum|count)$", "", name) for name in exposed() if name.startswith("trunkline_gateway_")}

    assert families == {re.sub("_(bucket|sum|count)$", "", name) for name in shown if name.startswith("trunkline_gateway_")}


def test_the_dashboard_has_the_shape_grafana_wants() -> None:
    ids = [panel["id"] for panel in BOARD["panels"]]
    variables = {variable["name"] for variable in BOARD["templating"]["list"]}

    assert len(ids) == len(set(ids))
    assert {"uid", "title", "schemaVersion", "time", "templating", "panels"} <= BOARD.keys()
    assert {"datasource", "instance", "head"} == variables
    for panel in PANELS:
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert "${datasource}" == panel["datasource"]["uid"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        assert all(target["legendFormat"] for target in panel["targets"])
    used = set(re.findall(r"\$(\w+)", " ".join(QUERIES)))
    assert used <= variables | {"__rate_interval"}


def test_panels_lie_side_by_side_within_the_grid() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_an_alert_says_what_happens_and_where_to_look(rule: dict[str, Any]) -> None:
    assert {"alert", "expr", "for", "labels", "annotations"} == rule.keys()
    assert re.fullmatch(r"Trunkline[A-Z]\w+", rule["alert"])
    assert re.fullmatch(r"\d+m", rule["for"])
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert {"summary", "description"} == rule["annotations"].keys()
    words = " ".join(rule["annotations"].values())
    assert words.count("{{") == words.count("}}")
    grouped = set().union(*(selector.grouped | selector.labels for selector in Query(rule["expr"]).selectors))
    for label in re.findall(r"\$labels\.(\w+)", words):
        assert label in grouped | exposed()[Query(rule["expr"]).selectors[0].metric] | ADDED
    for name in re.findall(r"trunkline_(?:gateway|embedding|head)_\w+", words):
        assert name in exposed() or f"{name}_count" in exposed(), name


@pytest.mark.parametrize(
    "broken",
    ["rate(x[5m]", "sum by (a (x)", "x{a=}", 'x{=~"b"}', "x > ", "histogram_quantile(x)", "x[5]", "x y", "", "sum(x))", "x{a=b}"],
)
def test_what_prometheus_would_refuse_is_refused(broken: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Query(broken)


def test_every_alert_is_named_once() -> None:
    names = [rule["alert"] for rule in RULES]

    assert len(names) == len(set(names))
