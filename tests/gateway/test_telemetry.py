import re
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from clients import Unavailable
from clients.wire.catalogue import BundleMember, Catalogue, Manifest
from gateway.telemetry import CODES, BackendMetrics, Telemetry, versions_live
from tests.gateway.page_fakes import HEADS, client_of, entry, fake_gateway, manifest


def read(telemetry: Telemetry) -> dict[str, float]:
    lines = telemetry.render(inside=3, catalogue_age=1.5).decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))}


def bundle(*members: tuple[str, int]) -> Manifest:
    """Of version 1, answering for *members* of one label each."""
    listed = tuple(BundleMember(name, version, place, 1, "sha256:any") for place, (name, version) in enumerate(members))
    labels = tuple(f"{name}.a" for name, _ in members)
    return msgspec.structs.replace(manifest("bundle-1", 1, labels, task="multi_label"), members=listed)


async def test_a_request_is_counted_by_stage_text_token_and_head(tmp_path: Path) -> None:
    async with fake_gateway(tmp_path) as (app, state), client_of(app) as http:
        await http.post("/v1/classify", json={"texts": ["one two", "word " * 300], "heads": ["spam", "slow", "spam@5"]})
        await http.post("/v1/classify", json={"text": ""})
        await http.post("/v1/classify", json={"text": "one", "heads": ["nobody knows"]})
        found = read(state.telemetry)

    assert 1 == found['trunkline_gateway_requests_total{status="200"}']
    assert 1 == found['trunkline_gateway_refusals_total{reason="invalid_argument"}']
    assert 1 == found['trunkline_gateway_refusals_total{reason="not_found"}']
    assert (2, 132, 1) == tuple(found[f"trunkline_gateway_{name}_total"] for name in ("texts", "tokens", "truncated_texts"))
    for stage in ("preprocess", "embed", "heads", "total"):
        assert 1 == found[f'trunkline_gateway_stage_seconds_count{{stage="{stage}"}}']
    # Two versions of one head, each asked for two texts.
    assert 4 == found['trunkline_gateway_head_results_total{head="spam",outcome="ok"}']
    assert 2 == found['trunkline_gateway_head_results_total{head="slow",outcome="deadline_exceeded"}']
    assert 1 == found['trunkline_gateway_head_seconds_count{head="spam",version="5"}']
    assert 1 == found['trunkline_gateway_head_errors_total{head="slow",outcome="deadline_exceeded",version="1"}']


async def test_every_way_in_counts_its_requests_once_served_or_refused(tmp_path: Path) -> None:
    async with fake_gateway(tmp_path) as (app, state), client_of(app) as http:
        for path, body in {
            "/v1/embeddings": {"input": ["one", "two"], "model": "x"},
            "/v1/heads/spam/classify": {"text": "one"},
            "/heads/spam/predict": {"inputs": "one"},
            "/v1/classify/stream": {"text": "one"},
        }.items():
            before = read(state.telemetry)
            answer = await http.post(path, json=body)
            found = read(state.telemetry)
            ended = {key: found[key] - before.get(key, 0) for key in found if key.startswith("trunkline_gateway_requests_total")}
            assert 200 == answer.status_code, path
            assert {'trunkline_gateway_requests_total{status="200"}': 1} == {
                key: count for key, count in ended.items() if count
            }, path
        assert 200 == (await http.get("/v1/models")).status_code
        after = read(state.telemetry)

    assert 1 == sum(after.values()) - sum(found.values())


def test_what_is_asked_when_metrics_are_read() -> None:
    telemetry = Telemetry()
    telemetry.watch_queue("embed", lambda: 4)
    telemetry.watch_queue("embed", lambda: 5)
    telemetry.watch_cache(entries=lambda: 7, num_bytes=lambda: 700)
    telemetry.watch_catalogue(lambda: Catalogue(HEADS))
    telemetry.watch_bound(lambda: 128)
    found = read(telemetry)

    assert 9 == found['trunkline_gateway_queue_texts{queue="embed"}']
    assert (7, 700) == (found["trunkline_gateway_cache_entries"], found["trunkline_gateway_cache_bytes"])
    assert (3, 128) == (found["trunkline_gateway_texts_in_flight"], found["trunkline_gateway_max_texts_in_flight"])
    assert 1.5 == found["trunkline_gateway_catalogue_age_seconds"]
    assert 5 == found['trunkline_gateway_head_version{head="spam",role="canary"}']


@dataclass
class Pool:
    backend: str
    snapshot: list[tuple[str, int]]


def test_caches_and_backends_tell_in_their_own_words() -> None:
    telemetry = Telemetry()
    facts = BackendMetrics(telemetry.registry)
    facts.show(Pool("embedding", [("good", 4), ("ejected", 0), ("draining", 1)]))
    telemetry.cache_looked_up("spam", hits=2, misses=1)
    telemetry.cache_looked_up("spam", hits=0, misses=0)
    telemetry.cache_dropped("room", 3)
    facts.ejected("embedding", 1, "silent")
    facts.readmitted("embedding", 1)
    facts.retried("embedding")
    facts.retry_refused("embedding")
    facts.hedged("heads")
    facts.breaker("spam", 4, "half_open")
    facts.breaker("spam", 4, "open")
    facts.breaker("spam", 5, "closed")
    found = read(telemetry)

    assert 2 == found['trunkline_gateway_cache_lookups_total{head="spam",result="hit"}']
    assert 1 == found['trunkline_gateway_cache_lookups_total{head="spam",result="miss"}']
    assert 3 == found['trunkline_gateway_cache_dropped_total{reason="room"}']
    assert 1 == found['trunkline_gateway_backend_ejections_total{backend="embedding",reason="silent",replica="1"}']
    assert 2 == found['trunkline_gateway_backend_replicas_left_alone{backend="embedding"}']
    assert 4 == found['trunkline_gateway_backend_outstanding_texts{backend="embedding",replica="0"}']
    for outcome in ("made", "no permit"):
        assert 1 == found[f'trunkline_gateway_backend_retries_total{{backend="embedding",outcome="{outcome}"}}']
    assert 1 == found['trunkline_gateway_backend_hedges_total{backend="heads"}']
    for version, state in ((4, 2), (5, 0)):
        assert state == found[f'trunkline_gateway_head_breaker_state{{head="spam",version="{version}"}}']


def test_an_unknown_reason_makes_no_series_of_its_own() -> None:
    telemetry = Telemetry()
    for number in range(50):
        telemetry.refused(400, f"caller's words {number}")
        telemetry.head_ended("spam", 4, f"words {number}", 0.1)
    found = read(telemetry)

    assert 50 == found['trunkline_gateway_refusals_total{reason="other"}']
    assert 50 == found['trunkline_gateway_head_errors_total{head="spam",outcome="other",version="4"}']
    assert {"overloaded", "deadline_exceeded", "departed", "not_found"} <= CODES


def test_series_of_versions_end_with_their_versions() -> None:
    telemetry = Telemetry()
    live = [
        Catalogue({"spam": entry(manifest("spam", 4, ("a", "b")))}),
        Catalogue({"spam": entry(manifest("spam", 5, ("a", "b")))}),
    ]
    telemetry.watch_catalogue(lambda: live[0])
    for version in (4, 5):
        telemetry.head_ended("spam", version, "ok", 0.1)
    assert 'trunkline_gateway_head_seconds_count{head="spam",version="4"}' in read(telemetry)
    del live[0]
    telemetry.head_ended("spam", 5, "ok", 0.1)

    assert not [name for name in read(telemetry) if 'version="4"' in name]


def test_a_bundle_has_series_for_as_long_as_it_is_there() -> None:
    telemetry = Telemetry()
    catalogue = Catalogue({"spam": entry(manifest("spam", 5, ("a", "b")))}, bundles={"bundle-1": bundle(("spam", 5))})
    telemetry.watch_catalogue(lambda: catalogue)
    for version in (1, 2):
        telemetry.head_ended("bundle-1", version, "ok", 0.1)

    assert ['head="bundle-1",version="1"'] == [
        name.partition("{")[2].rstrip("}") for name in read(telemetry) if "seconds_count" in name and "bundle-" in name
    ]


def test_a_breaker_is_shown_for_as_long_as_its_version_is_there() -> None:
    telemetry = Telemetry()
    facts = BackendMetrics(telemetry.registry)
    for name, version in (("spam", 4), ("spam", 5), ("bundle-1", 1)):
        facts.breaker(name, version, "open")
    facts.follow(Catalogue({"spam": entry(manifest("spam", 5, ("a", "b")))}, bundles={"bundle-1": bundle(("spam", 5))}))

    shown = [name for name in read(telemetry) if "breaker_state" in name]
    assert ['head="bundle-1",version="1"', 'head="spam",version="5"'] == [name.split("{")[1].rstrip("}") for name in shown]


def test_roles_are_told_by_version() -> None:
    assert [(("spam", "stable"), 4), (("spam", "canary"), 5)] == versions_live(Catalogue({"spam": HEADS["spam"]}))


async def test_an_answer_has_its_stages_in_a_header_browsers_read(tmp_path: Path) -> None:
    async with fake_gateway(tmp_path) as (app, _), client_of(app) as http:
        answer = await http.post("/v1/classify", json={"text": "one"})

    found = dict(re.findall(r"(\w+);dur=([\d.]+)", answer.headers["server-timing"]))
    assert {"preprocess", "embed", "heads", "total"} == found.keys()
    assert answer.json()["timings"]["total_ms"] == pytest.approx(float(found["total"]), abs=0.001)


async def test_a_caller_that_is_refused_for_a_backends_sake_is_counted_with_the_reason(tmp_path: Path) -> None:
    async with fake_gateway(tmp_path) as (app, state), client_of(app) as http:

        async def unavailable(*_: object) -> object:
            raise Unavailable("down")

        state.pipeline.classify = unavailable  # type: ignore[method-assign, assignment]
        await http.post("/v1/classify", json={"text": "one"})

        assert 1 == read(state.telemetry)['trunkline_gateway_refusals_total{reason="unavailable"}']


def test_calls_of_bundles_have_series_as_long_as_the_catalogue_has_the_bundle() -> None:
    telemetry, series = Telemetry(), 'trunkline_gateway_head_seconds_count{head="together",version="1"}'
    bundle = manifest("together", 1, ("ham", "spam"), members=(BundleMember("spam", 5, 0, 2, "sha256:" + "0" * 64),))
    telemetry.watch_catalogue(lambda: Catalogue(HEADS, bundles={"together": bundle}))
    telemetry.head_ended("together", 1, "ok", 0.01)

    assert [1, 1] == [read(telemetry)[series] for _ in range(2)]
    telemetry.watch_catalogue(lambda: Catalogue(HEADS))
    assert series not in read(telemetry)
