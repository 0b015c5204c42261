"""What a newcomer does, on the real encoder."""

import csv
import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import tensorflow as tf

from clients import EmbeddingClient, HeadResult
from clients.wire.catalogue import decode_catalogue
from tests.e2e.conftest import RunningStack
from trunkline import Client, paths

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

R8_NEEDED = 0.960


def test_raw_text_goes_in_and_labels_come_out(stack: RunningStack) -> None:
    with Client(stack.addresses["ready"]) as client:
        [result] = client.classify("oil prices rose as opec agreed to cut crude output")

    assert {"sentiment", "topic"} <= result.heads.keys()
    topic = result.heads["topic"]
    assert isinstance(topic, HeadResult)
    assert topic.label == "crude"
    assert not result.truncated


def test_a_text_seen_before_is_answered_from_what_was_kept_and_the_metrics_say_so(stack: RunningStack) -> None:
    asked = {"text": "opec ministers agreed to raise crude output again", "heads": ["topic"]}
    first, again = (httpx.post(f"{stack.addresses['ready']}/v1/classify", json=asked).json()["results"][0] for _ in range(2))
    metrics = httpx.get(f"{stack.addresses['ready']}/metrics").text

    assert again["cached"]
    assert first["heads"] == again["heads"]
    version = first["heads"]["topic"]["version"]
    assert 'trunkline_gateway_cache_lookups_total{head="topic",result="hit"}' in metrics
    for name in ("trunkline_gateway_answered_texts_total", "trunkline_head_window_texts"):
        assert f'{name}{{head="topic",version="{version}"}}' in metrics


def test_accuracy_on_the_official_reuters_split_measured_through_the_gateway(stack: RunningStack) -> None:
    with (paths.cache_dir() / "demo-1" / "topic-test.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = []
    with Client(stack.addresses["ready"], timeout=60) as client:
        for start in range(0, len(rows), 128):
            results = client.classify([row["text"] for row in rows[start : start + 128]], heads=["topic"])
            found += [getattr(result.heads["topic"], "label", None) for result in results]
    accuracy = np.mean([label == row["label"] for label, row in zip(found, rows, strict=True)])

    assert len(rows) == 2189
    assert accuracy >= R8_NEEDED, accuracy


def test_an_export_loads_with_plain_tensorflow_and_gives_the_gateways_scores(stack: RunningStack) -> None:
    text = "the company said quarterly net profit rose to 41 mln dlrs"
    answer = httpx.post(f"{stack.addresses['ready']}/v1/classify", json={"text": text, "heads": ["topic"], "scores": True}).json()
    said = answer["results"][0]["heads"]["topic"]
    version = stack.home / "repository" / "topic" / str(said["version"])
    with EmbeddingClient(stack.addresses["embedding-grpc"]) as client:
        vector = client.embed([text]).vectors[0]
    model = tf.saved_model.load(str(version))
    scores = model.signatures["serving_default"](embedding=tf.constant([vector]))["scores"][0]
    labels = (version / "assets" / "labels.txt").read_text().split()
    plain = dict(zip(labels, scores.numpy().tolist(), strict=True))

    assert plain.keys() == said["scores"].keys()
    for label, score in said["scores"].items():
        assert abs(plain[label] - score) < 1e-5


def test_a_head_trained_beside_the_running_stack_is_live_without_a_restart(stack: RunningStack, tmp_path: Path) -> None:
    data = tmp_path / "mood.csv"
    good = [
        f"what a lovely {word}, thank you so much" for word in ("day", "meal", "gift", "song", "walk", "view", "idea", "cake")
    ]
    bad = [
        f"this {word} is broken and I want my money back"
        for word in ("phone", "chair", "lamp", "car", "boot", "bag", "pen", "tv")
    ]
    rows = [(text, "happy") for text in good] + [(text, "angry") for text in bad]
    with data.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    pid = stack.pid_of("gateway")

    trained = stack.trunkline("train", str(data), "--head", "mood")
    listed = stack.trunkline("heads")
    asked = stack.trunkline("classify", "my new radio is broken, give me my money back", "--heads", "mood")

    assert trained.returncode == 0, trained.stderr
    assert "mood" in listed.stdout
    assert asked.stdout.split()[:2] == ["mood", "angry"], asked.stdout + asked.stderr
    assert pid == stack.pid_of("gateway")


def test_posted_rows_become_a_head_that_answers_through_the_gateway(stack: RunningStack) -> None:
    places = ("beach", "lake", "museum", "castle", "island", "forest", "valley", "harbour")
    dishes = ("soup", "bread", "pasta", "salad", "curry", "pie", "rice", "stew")
    rows = [f"we want to visit the {place} on our holiday,travel" for place in places]
    rows += [f"how long does the {dish} have to cook,food" for dish in dishes]
    running = {name: stack.pid_of(name) for name in ("gateway", "head_service.serving", "embedding_service")}
    with httpx.Client(base_url=stack.addresses["control"]) as control:
        body = "\n".join(["text,label", *rows]).encode()
        upload = control.post("/v1/data", content=body, headers={"content-type": "text/csv"}).json()
        run = control.post("/v1/runs", json={"head": "plans", "data": {"upload": upload["id"]}}).json()
        ended = _until(
            lambda: control.get(f"/v1/runs/{run['id']}").json(), lambda now: now["finished_at"] is not None, seconds=60
        )
    with Client(stack.addresses["ready"]) as client:
        _until(lambda: {head["name"] for head in client.heads()}, lambda names: "plans" in names)
        [result] = client.classify("add the onions and let the stew cook slowly", heads=["plans"])

    assert (ended["state"], ended["result"]["is_live"]) == ("succeeded", True), ended
    assert getattr(result.heads["plans"], "label", None) == "food"
    assert running == {name: stack.pid_of(name) for name in running}
    assert "succeeded" in stack.trunkline("runs", "show", run["id"]).stdout


def test_bad_training_data_is_told_in_words_and_nothing_is_published(stack: RunningStack, tmp_path: Path) -> None:
    data = tmp_path / "bad.csv"
    data.write_text("text,label\nsame,a\nother,b\nsame,b\n,a\n")

    trained = stack.trunkline("train", str(data), "--head", "bad")

    assert trained.returncode == 1
    assert "lines 2, 4" in trained.stderr
    assert "line 5" in trained.stderr
    assert "Traceback" not in trained.stderr
    assert "bad" not in decode_catalogue((stack.home / "repository" / "catalogue.json").read_bytes()).heads


def test_a_head_of_another_trunk_is_refused_with_the_reason(stack: RunningStack) -> None:
    path = stack.home / "repository" / "catalogue.json"
    original = path.read_text()
    content = json.loads(original)
    stranger = json.loads(json.dumps(content["heads"]["sentiment"]))
    for manifest in stranger["versions"].values():
        manifest["name"] = "stranger"
        manifest["trunk"]["fingerprint"] = "sha256:" + "0" * 64
    content["heads"]["stranger"] = stranger
    _replace(path, json.dumps(content))
    try:
        answer = _until(lambda: _heads_of(stack), lambda heads: "stranger" in heads)
        asked = httpx.post(f"{stack.addresses['ready']}/v1/classify", json={"text": "hello there"}).json()
    finally:
        _replace(path, original)

    assert "another trunk" in answer["stranger"]["refused"]
    said = asked["results"][0]["heads"]
    assert said["stranger"]["error"]["code"] == "failed_precondition"
    assert said["sentiment"]["label"]


def test_classifying_a_file_goes_on_where_it_stopped(stack: RunningStack, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"text number {number}\n" for number in range(150)))
    out = tmp_path / "out.jsonl"

    first = stack.trunkline("classify", "--file", str(texts), "--out", str(out), "--heads", "topic")
    whole = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(whole[:70]) + whole[70][:20])
    second = stack.trunkline("classify", "--file", str(texts), "--out", str(out), "--heads", "topic")

    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["line"] for line in lines] == list(range(1, 151))


class Caller:
    """Asks the gateway again and again from a thread, and keeps what it saw: (status, seconds)."""

    def __init__(self, url: str, patience_ms: int) -> None:
        self.seen: list[tuple[int, float]] = []
        self._url, self._patience_ms = url, patience_ms
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> "Caller":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _ask(self) -> None:
        with httpx.Client(base_url=self._url, timeout=30) as http:
            while not self._stop.is_set():
                started = time.monotonic()
                body = {"text": f"wheat exports {started}", "timeout_ms": self._patience_ms, "heads": ["topic"]}
                answer = http.post("/v1/classify", json=body)
                self.seen.append((self._status(answer), time.monotonic() - started))

    @staticmethod
    def _status(answer: httpx.Response) -> int:
        """A head's own error counts as 503, as the caller has no label then."""
        if answer.status_code == 200 and "error" in answer.json()["results"][0]["heads"]["topic"]:
            return 503
        return answer.status_code


@pytest.mark.parametrize("module", ["embedding_service", "head_service.serving"])
def test_a_killed_backend_under_load_hangs_nobody_and_the_stack_heals(stack: RunningStack, module: str) -> None:
    killed = stack.pid_of(module)
    with Caller(stack.addresses["ready"], 3_000) as one, Caller(stack.addresses["ready"], 3_000) as two:
        _until(lambda: len(one.seen) + len(two.seen), lambda count: count > 20)
        os.kill(killed, signal.SIGKILL)
        at_kill = len(one.seen)
        _until(lambda: [status for status, _ in one.seen[at_kill:]], lambda after: any(status != 200 for status in after))
        broken = len(one.seen)
        _until(lambda: [status for status, _ in one.seen[broken:]], lambda after: after[-5:] == [200] * 5, seconds=90)
    seen = one.seen + two.seen

    assert {status for status, _ in seen} <= {200, 503, 504}
    assert max(seconds for _, seconds in seen) < 3.5
    assert stack.pid_of(module) != killed


def test_the_idle_gateway_is_small(stack: RunningStack) -> None:
    assert stack.idle_gateway <= 120e6, stack.idle_gateway


def test_the_services_tell_that_they_are_ready(stack: RunningStack) -> None:
    for name in ("ready", "embedding"):
        assert httpx.get(f"{stack.addresses[name]}/readyz").status_code == 200
    heads = httpx.get(f"{stack.addresses['heads']}/v1/models/topic").json()
    assert heads["model_version_status"][0]["state"] == "AVAILABLE"


def test_ctrl_c_drains_and_leaves_nothing_running(stack: RunningStack) -> None:
    """Run last, see conftest."""
    children = psutil.Process(stack.process.pid).children(recursive=True)
    stack.process.send_signal(signal.SIGINT)
    said, _ = stack.process.communicate(timeout=30)

    assert stack.process.returncode == 0
    assert "Traceback" not in said
    assert re.search("stopping the services", said)
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert not (stack.home / "stack.json").exists()


def _heads_of(stack: RunningStack) -> dict[str, dict[str, object]]:
    return {head["name"]: head for head in httpx.get(f"{stack.addresses['ready']}/v1/heads").json()["heads"]}


def _replace(path: Path, content: str) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(content)
    temporary.replace(path)


def _until(look, good, seconds: float = 30):  # type: ignore[no-untyped-def]
    """What *look* sees once it is *good*."""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        seen = look()
        if good(seen):
            return seen
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s; last seen: {seen}")
