"""The API over ASGI, on a real database in a folder of the test."""

import csv
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from starlette.testclient import TestClient

from clients.wire.catalogue import Catalogue, CatalogueHead, Manifest, TrunkRef, encode
from head_service.control.api import router
from head_service.control.app import create_app
from head_service.control.errors import StorageFull
from head_service.control.keep import Kept, open_kept
from head_service.control.keys import SCOPES, Caller
from head_service.control.settings import ServeSettings
from head_service.control.words import Outcome

CANARY = "CANARY-f3a9"
LIVE = Manifest(name="spam", version=1, labels=("ham", "spam"), width=4, trunk=TrunkRef("t", "sha256:0"))
TAGS = msgspec.structs.replace(LIVE, name="tags", task="multi_label", labels=("a", "b"))
PRICE = msgspec.structs.replace(LIVE, name="price", task="regression", labels=("value",))
PAGES = msgspec.structs.replace(LIVE, name="pages", preprocess=("html-strip/1",))
GOOD = {"head": "spam", "data": {"path": "rows.csv"}}
FEEDBACK = {"text": "win a prize", "label": "spam", "head": "spam"}


class ByName:
    """A key is a name, with the scopes after it."""

    def caller_of(self, authorization: str) -> Caller:
        from clients import Unauthenticated

        name, _, scopes = authorization.partition(":")
        if not name:
            raise Unauthenticated("a key is needed")
        return Caller(name, frozenset(scopes.split(",")) & SCOPES)


@pytest.fixture
def settings(tmp_path: Path) -> ServeSettings:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.csv").write_text("text,label\na,x\n")
    heads = tmp_path / "heads"
    heads.mkdir()
    (heads / "catalogue.json").write_bytes(
        encode(Catalogue({head.name: CatalogueHead(1, {1: head}) for head in (LIVE, TAGS, PRICE, PAGES)}))
    )
    return ServeSettings(
        home=tmp_path / "control",
        repository=heads,
        data_dir=tmp_path / "data",
        max_feedback_per_day=5,
        feedback_per_second=1,
        max_upload_bytes=1_000,
        max_body_bytes=10_000,
        max_text_characters=500,
        auth_failures_per_minute=3,
        docs=True,
    )


@pytest.fixture
def kept(settings: ServeSettings) -> Iterator[Kept]:
    found = open_kept(settings)
    yield found
    found.close()


@pytest.fixture
def api(settings: ServeSettings, kept: Kept) -> Iterator[TestClient]:
    with TestClient(create_app(settings, kept, ByName()), headers={"authorization": "ann:train,feedback"}) as client:
        yield client


def error_of(answer, status: int) -> str:
    """The code of an error, which must be in the one shape."""
    assert status == answer.status_code, answer.text
    assert len(answer.content) < 2_048
    assert CANARY not in answer.text
    error = answer.json()["error"]
    assert {"code", "message", "request_id"} == error.keys()
    assert error["request_id"] == answer.headers["x-request-id"]
    return error["code"]


def test_a_run_is_submitted_found_and_workers_are_woken(api, kept):
    answer = api.post("/v1/runs", json={**GOOD, "seed": 3})
    run = answer.json()

    assert 201 == answer.status_code
    assert ("queued", "spam", 3) == (run["state"], run["head"], run["order"]["seed"])
    assert run == api.get(f"/v1/runs/{run['id']}").json()
    assert [run] == api.get("/v1/runs").json()["runs"]
    assert run["id"] == kept.wakeup.next()


def test_an_idempotency_key_gives_the_same_run_again_even_where_its_data_is_gone(api, tmp_path: Path):
    headers = {"idempotency-key": "k-1"}
    first, again = (api.post("/v1/runs", json=GOOD, headers=headers) for _ in range(2))

    assert (201, 200) == (first.status_code, again.status_code)
    assert first.json() == again.json()
    (tmp_path / "data" / "rows.csv").unlink()
    assert first.json() == api.post("/v1/runs", json=GOOD, headers=headers).json()
    assert "conflict" == error_of(api.post("/v1/runs", json={**GOOD, "seed": 1}, headers=headers), 409)
    assert "invalid_argument" == error_of(api.post("/v1/runs", json=GOOD, headers={"idempotency-key": "a b"}), 400)


def test_runs_come_by_the_page(api):
    ids = [api.post("/v1/runs", json=GOOD).json()["id"] for _ in range(3)]

    page = api.get("/v1/runs", params={"limit": 2}).json()
    rest = api.get("/v1/runs", params={"limit": 2, "before": page["next_before"]}).json()

    assert ids[::-1] == [run["id"] for run in page["runs"] + rest["runs"]]
    assert rest["next_before"] is None
    assert [] == api.get("/v1/runs", params={"state": "failed"}).json()["runs"]
    for params in ({"limit": 0}, {"limit": CANARY}, {"state": CANARY}, {"before": -1}):
        error_of(api.get("/v1/runs", params=params), 400)


def test_a_log_is_followed_by_offset_until_it_is_complete(api, kept):
    run_id = api.post("/v1/runs", json=GOOD).json()["id"]
    lease = kept.runs.claim("w", 30)
    kept.runs.say(lease, ["one", "two"])
    first = api.get(f"/v1/runs/{run_id}/logs").json()
    kept.runs.say(lease, ["three"])
    kept.runs.finish(lease, Outcome(kind="succeeded"))
    second = api.get(f"/v1/runs/{run_id}/logs", params={"offset": first["next_offset"]}).json()

    assert (["one", "two"], 2, False) == ([line["line"] for line in first["lines"]], first["next_offset"], first["is_complete"])
    assert (["three"], 3, True) == ([line["line"] for line in second["lines"]], second["next_offset"], second["is_complete"])


def test_a_run_is_cancelled_and_cancelling_again_changes_nothing(api):
    run_id = api.post("/v1/runs", json=GOOD).json()["id"]

    assert ["cancelled", "cancelled"] == [api.post(f"/v1/runs/{run_id}/cancel").json()["state"] for _ in range(2)]


def test_an_upload_is_trained_on_by_its_owner_alone(api):
    upload = api.post("/v1/data", content=b"text,label\na,b\n", headers={"content-type": "text/csv"})
    order = {"head": "spam", "data": {"upload": upload.json()["id"]}}

    assert 201 == upload.status_code
    assert 201 == api.post("/v1/runs", json=order).status_code
    assert "not_found" == error_of(api.post("/v1/runs", json=order, headers={"authorization": "bob:train"}), 404)
    error_of(api.post("/v1/data", content=b"x" * 1_001, headers={"content-type": "text/csv"}), 413)
    error_of(api.post("/v1/data", content=iter([b"x" * 600] * 2), headers={"content-type": "text/csv"}), 413)
    error_of(api.post("/v1/data", content=b"x", headers={"content-type": CANARY}), 415)
    error_of(api.post("/v1/data", content=b"x", headers={"content-type": "text/csv", "content-encoding": "gzip"}), 415)


def test_feedback_is_kept_counted_and_exported(api):
    first = api.post("/v1/feedback", json=FEEDBACK, headers={"idempotency-key": "k"})
    again = api.post("/v1/feedback", json=FEEDBACK, headers={"idempotency-key": "k"})
    api.post("/v1/feedback", json={**FEEDBACK, "text": "lunch, at\ntwelve?", "label": " ham "})

    assert (201, True, 200, False) == (first.status_code, first.json()["is_new"], again.status_code, again.json()["is_new"])
    counts = api.get("/v1/feedback/counts", params={"head": "spam"}).json()
    assert {"head": "spam", "rows": 2, "texts": 2, "labels": {"ham": 1, "spam": 1}, "conflicts": 0, "ties": 0} == counts
    rows = csv.DictReader(io.StringIO(api.get("/v1/feedback/export", params={"head": "spam"}).text, newline=""))
    assert {"win a prize": "spam", "lunch, at\ntwelve?": "ham"} == {row["text"]: row["label"] for row in rows}
    lines = api.get("/v1/feedback/export", params={"head": "spam", "form": "jsonl"}).text.splitlines()
    assert 2 == len(lines)
    error_of(api.get("/v1/feedback/export", params={"head": "spam", "form": CANARY}), 400)
    error_of(api.get("/v1/feedback/counts", params={"head": f"../{CANARY}"}), 400)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"label": CANARY}, 400),
        ({"label": " "}, 400),
        ({"text": " \u200b\n"}, 400),
        ({"text": f"{CANARY}\x00"}, 400),
        ({"text": CANARY * 100}, 400),
        ({"head": "nosuch"}, 404),
        ({"head": f"../{CANARY}"}, 400),
        ({CANARY: 1}, 400),
        ({"text": [CANARY]}, 400),
    ],
)
def test_feedback_that_cannot_be_kept_is_refused_and_not_echoed(api, change, status):
    error_of(api.post("/v1/feedback", json={**FEEDBACK, **change}), status)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        *(
            ({"head": "price", "label": label}, "its label is a number such as 3.5")
            for label in ("1_000", "1e39", "\u0661\u0662")
        ),
        ({"head": "pages", "text": "<br>"}, "nothing is left of the text after html-strip/1"),
        ({"label": 201 * "x"}, "a label is longer than 200 characters"),
    ],
)
def test_feedback_that_no_head_could_learn_from_is_refused_and_not_counted(settings, kept, said, why):
    allowing = settings.model_copy(update={"allow_new_labels": True})
    with TestClient(create_app(allowing, kept, ByName()), headers={"authorization": "ann:train,feedback"}) as api:
        answer = api.post("/v1/feedback", json={**FEEDBACK, **said})

    assert "invalid_argument" == error_of(answer, 400)
    assert why in answer.json()["error"]["message"]
    assert {} == kept.feedback.num_rows()


def test_feedback_says_one_label_or_several(api):
    answers = [api.post("/v1/feedback", json={"head": "tags", "text": f"text {n}", **said}) for n, said in enumerate(SAID)]

    assert [201, 201, 201] == [answer.status_code for answer in answers[:3]]
    for answer in answers[3:]:
        error_of(answer, 400)
    lines = api.get("/v1/feedback/export", params={"head": "tags", "form": "jsonl"}).text.splitlines()
    assert {"text 0": ["a", "b"], "text 1": [], "text 2": ["a"]} == {row["text"]: row["label"] for row in map(json.loads, lines)}
    assert {"a": 2, "b": 1} == api.get("/v1/feedback/counts", params={"head": "tags"}).json()["labels"]


SAID = (
    {"labels": [" b", "a", "b"]},
    {"labels": []},
    {"label": "a"},
    {},
    {"label": "a", "labels": ["a"]},
    {"labels": ["a", " "]},
    {"labels": ["none"]},
    {"labels": "a"},
)


def test_feedback_is_bounded_by_the_day(api):
    answers = [api.post("/v1/feedback", json={**FEEDBACK, "text": f"text {n}"}) for n in range(7)]

    assert [201] * 5 + [429] * 2 == [answer.status_code for answer in answers]
    assert "overloaded" == error_of(answers[-1], 429)
    assert int(answers[-1].headers["retry-after"]) >= 1
    assert 201 == api.post("/v1/feedback", json=FEEDBACK, headers={"authorization": "bob:feedback"}).status_code


def test_feedback_is_bounded_by_rate(api):
    answers = [api.post("/v1/feedback", json={**FEEDBACK, "label": "none"}) for _ in range(20)]

    assert {400, 429} == {answer.status_code for answer in answers}


def test_a_full_disk_is_507_and_nothing_is_acknowledged(api, kept, monkeypatch):
    def full(_):
        raise StorageFull("there is no room left for this; nothing was kept", retry_after=30.0)

    monkeypatch.setattr(type(kept.feedback), "_keep_all", lambda _, rows: full(rows))

    answer = api.post("/v1/feedback", json=FEEDBACK)

    assert "storage_full" == error_of(answer, 507)
    assert "30" == answer.headers["retry-after"]
    monkeypatch.undo()
    assert 201 == api.post("/v1/feedback", json=FEEDBACK).status_code


def test_retraining_is_a_run_on_the_feedback_that_does_not_go_live_by_itself(api):
    error_of(api.post("/v1/feedback/retrain", json={"head": "spam"}), 400)
    api.post("/v1/feedback", json=FEEDBACK)

    run = api.post("/v1/feedback/retrain", json={"head": "spam", "data": {"path": "rows.csv"}}).json()

    assert ("queued", 1, "version") == (run["state"], run["order"]["feedback_until"], run["order"]["publish"])
    error_of(api.post("/v1/runs", json={**GOOD, "feedback_until": 1}), 400)


def test_retraining_asked_for_again_is_the_same_run_whatever_feedback_came_meanwhile(api):
    body, key = {"head": "spam", "data": {"path": "rows.csv"}}, {"idempotency-key": "once"}
    api.post("/v1/feedback", json=FEEDBACK)
    first = api.post("/v1/feedback/retrain", json=body, headers=key)
    api.post("/v1/feedback", json={**FEEDBACK, "text": "another text"})
    again = api.post("/v1/feedback/retrain", json=body, headers=key)

    assert first.json()["id"] == again.json()["id"]
    assert (201, 200) == (first.status_code, again.status_code)
    error_of(api.post("/v1/feedback/retrain", json={**body, "publish": "live"}, headers=key), 409)


OPEN = {("GET", "/healthz"), ("GET", "/readyz")}
SCOPE = {"/metrics": "admin", "/v1/feedback": "feedback"}
ROUTES = [(method, route.path) for route in router.routes for method in sorted(route.methods)]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_but_health_takes_a_key_with_its_scope(api, method, path):
    asked = path.replace("{run_id}", "a" * 32)

    def ask(authorization: str):
        return api.request(method, asked, params={"head": "spam"}, headers={"authorization": authorization})

    if (method, path) in OPEN:
        assert 200 == ask("").status_code
        return
    scope = SCOPE.get(path, "train")
    assert "unauthenticated" == error_of(ask(""), 401)
    assert "permission_denied" == error_of(ask(f"bob:{','.join(SCOPES - {scope, 'admin'})}"), 403)
    assert ask(f"bob:{scope}").status_code not in {401, 403}


def test_the_api_page_lists_the_routes_and_is_off_by_default(api, settings, kept):
    paths = api.get("/openapi.json").json()["paths"]
    assert {path for _, path in ROUTES} == paths.keys()
    assert 200 == api.get("/docs").status_code

    with TestClient(create_app(settings.model_copy(update={"docs": False}), kept, ByName())) as plain:
        for path in ("/docs", "/redoc", "/openapi.json"):
            assert "not_found" == error_of(plain.get(path), 404)


@pytest.mark.parametrize("path", ["/v1/runs/{}", "/v1/runs/{}/logs"])
def test_somebody_elses_run_is_404_and_admin_sees_all(api, path):
    run_id = api.post("/v1/runs", json=GOOD).json()["id"]

    error_of(api.get(path.format(run_id), headers={"authorization": "bob:train"}), 404)
    error_of(api.post(f"/v1/runs/{run_id}/cancel", headers={"authorization": "bob:train"}), 404)
    assert 200 == api.get(path.format(run_id), headers={"authorization": "root:admin"}).status_code


def test_too_many_bad_keys_are_429_and_good_ones_go_on(api):
    answers = [api.get("/v1/runs", headers={"authorization": ""}).status_code for _ in range(5)]

    assert [401] * 3 + [429] * 2 == answers
    assert 200 == api.get("/v1/runs").status_code


HOSTILE = {
    "empty body": b"",
    "not JSON": b"{",
    "nothing": b"{}",
    "a list": b"[]",
    "wrong type": b'{"head": {"a": "' + CANARY.encode() + b'"}}',
    "unknown field": b'{"head": "spam", "' + CANARY.encode() + b'": 1}',
    "bad name": b'{"head": "' + CANARY.encode() + b'"}',
    "path out": b'{"head": "spam", "data": {"path": "../' + CANARY.encode() + b'.csv"}}',
    "absolute path": b'{"head": "spam", "data": {"path": "/etc/' + CANARY.encode() + b'"}}',
    "NUL in path": b'{"head": "spam", "data": {"path": "\\u0000.csv"}}',
    "upload that is a path": b'{"head": "spam", "data": {"upload": "../../../../../../etc/passwd"}}',
    "no data": b'{"head": "spam"}',
    "bad task": b'{"head": "spam", "task": "' + CANARY.encode() + b'"}',
    "bad view": b'{"head": "spam", "view": {"pooling": "' + CANARY.encode() + b'"}}',
    "negative seed": b'{"head": "spam", "seed": -1}',
    "huge number": b'{"head": "spam", "seed": ' + b"9" * 5_000 + b"}",
    "NaN": b'{"head": "spam", "seed": NaN}',
    "invalid UTF-8": b'{"head": "\xff' + CANARY.encode() + b'"}',
    "lone surrogate": b'{"head": "\\ud800"}',
    "too long": b'{"head": "' + b"a" * 20_000 + b'"}',
    "deep where it is read": b'{"data":' + b"[" * 4_000 + b"]" * 4_000 + b"}",
    "deep where it is skipped": b'{"x":' + b"[" * 4_000 + b"]" * 4_000 + b"}",
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_bodies_get_a_short_4xx_that_does_not_echo_them(api, body):
    for path in ("/v1/runs", "/v1/feedback", "/v1/feedback/retrain"):
        answer = api.post(path, content=body)

        assert 400 <= answer.status_code < 500
        error_of(answer, answer.status_code)


@pytest.mark.parametrize("path", ["/nowhere", "/v1/runs/", f"/v1/runs/{CANARY}", "/v1/runs/..%2f..%2fetc", "/v1/runs/%00"])
def test_unknown_paths_are_told_in_the_same_shape(api, path):
    error_of(api.get(path), 404)
    assert "method_not_allowed" == error_of(api.put("/v1/runs"), 405)


def test_a_fault_is_told_without_its_words(api, kept, monkeypatch, caplog):
    def broken(*_, **__):
        raise ValueError(CANARY)

    monkeypatch.setattr(type(kept.runs), "page", broken)
    with caplog.at_level(logging.DEBUG):
        assert "internal" == error_of(api.get("/v1/runs"), 500)
    assert CANARY not in caplog.text


def test_a_broken_catalogue_is_503(api, settings):
    (Path(settings.repository) / "catalogue.json").write_text("{")

    assert "unavailable" == error_of(api.post("/v1/feedback", json=FEEDBACK), 503)


def test_texts_and_keys_are_in_no_log_and_no_metric(api, caplog):
    with caplog.at_level(logging.DEBUG):
        api.post("/v1/feedback", json={**FEEDBACK, "text": CANARY})
        api.post("/v1/feedback", json={**FEEDBACK, "text": CANARY, "label": CANARY})
        api.get("/v1/runs", headers={"authorization": f"{CANARY}:train"})
    metrics = api.get("/metrics", headers={"authorization": "root:admin"}).text

    assert CANARY not in caplog.text
    assert CANARY not in metrics


def test_metrics_tell_runs_queue_and_feedback(api, kept):
    api.post("/v1/runs", json=GOOD)
    api.post("/v1/runs", json=GOOD)
    kept.runs.finish(kept.runs.claim("w", 30), Outcome(kind="refused"))
    api.post("/v1/feedback", json=FEEDBACK)

    text = api.get("/metrics", headers={"authorization": "root:admin"}).text

    for line in (
        'trunkline_control_runs{state="queued"} 1.0',
        'trunkline_control_runs{state="refused"} 1.0',
        "trunkline_control_queue_messages 2.0",
        'trunkline_control_run_seconds_count{state="refused"} 1.0',
        'trunkline_control_feedback_rows{head="spam"} 1.0',
        "trunkline_control_feedback_seconds_count 1.0",
        'trunkline_control_requests_total{route="/v1/runs",status="201"} 2.0',
    ):
        assert line in text
    assert "trunkline_control_oldest_queued_seconds" in text


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "::", "example.org"])
def test_beyond_loopback_it_takes_keys_or_the_will_to_do_without(host, tmp_path):
    with pytest.raises(ValueError, match="--keys"):
        ServeSettings(host=host)
    ServeSettings(host=host, insecure=True)
    ServeSettings(host=host, keys=tmp_path / "keys.json")
    for near in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        ServeSettings(host=near)


def test_an_order_keeps_the_versions_of_its_steps_and_unknown_ones_are_refused(api):
    order = {**GOOD, "preprocess": ["nfkc", "lower/1"], "long_text": "max", "level_separator": "/"}
    found = api.post("/v1/runs", json=order).json()["order"]

    assert (["nfkc/1", "lower/1"], "max", "/") == (found["preprocess"], found["long_text"], found["level_separator"])
    error_of(api.post("/v1/runs", json={**GOOD, "preprocess": [CANARY]}), 400)
    error_of(api.post("/v1/runs", json={**GOOD, "preprocess": ["lower"] * 33}), 400)
    error_of(api.post("/v1/runs", json={**GOOD, "long_text": CANARY}), 400)
