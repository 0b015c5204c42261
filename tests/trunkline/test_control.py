"""The commands against the real API on a real port, in a thread of this process."""

import contextlib
import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest
import uvicorn
from typer.testing import CliRunner

from clients import InvalidRequest, InvalidResponse, NotFound, Unavailable
from clients.wire.catalogue import Catalogue, CatalogueHead, Manifest, TrunkRef, encode
from head_service.control.app import create_app
from head_service.control.keep import Kept, open_kept
from head_service.control.labelled import render
from head_service.control.settings import ServeSettings
from head_service.control.words import Outcome, RunResult
from trunkline.cli import app

LIVE = Manifest(name="spam", version=1, labels=("ham", "spam"), width=4, trunk=TrunkRef("t", "sha256:0"))
TAGS = msgspec.structs.replace(LIVE, name="tags", task="multi_label", labels=("billing", "urgent"))


@contextlib.contextmanager
def serving(settings: ServeSettings, kept: Kept) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(create_app(settings, kept), log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch) -> Iterator[Kept]:
    heads = tmp_path / "heads"
    heads.mkdir()
    (heads / "catalogue.json").write_bytes(
        encode(Catalogue({"spam": CatalogueHead(1, {1: LIVE}), "tags": CatalogueHead(1, {1: TAGS})}))
    )
    settings = ServeSettings(home=tmp_path / "control", repository=heads)
    found = open_kept(settings)
    with serving(settings, found) as url:
        monkeypatch.setenv("TRUNKLINE_CONTROL_URL", url)
        yield found
    found.close()


def trunkline(*arguments: str, status: int = 0) -> str:
    ended = CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments, catch_exceptions=False)
    assert status == ended.exit_code, ended.output
    return ended.output.strip()


def test_a_run_is_submitted_listed_shown_followed_and_cancelled(tmp_path: Path, kept: Kept):
    file = tmp_path / "rows.csv"
    file.write_text("text,label\na,x\n")
    run_id = trunkline("runs", "submit", "spam", str(file), "--publish", "version", "--label-column", "label")
    lease = kept.runs.claim("w", 30)
    assert lease is not None
    kept.runs.say(lease, ["fitting"])
    kept.runs.renew(lease, 30, ("embedding", 2, 8))

    assert "embedding 2/8" in trunkline("runs", "list", "--head", "spam")
    assert "fitting" == trunkline("runs", "logs", run_id)
    kept.runs.finish(lease, Outcome(kind="refused", message="worse", result=RunResult(version=3)))
    assert "fitting\nrefused: worse" in trunkline("runs", "logs", run_id, "--follow", status=1)
    shown = trunkline("runs", "show", run_id)
    assert "refused" in shown
    assert "version" in shown
    assert "it is refused" == trunkline("runs", "cancel", run_id)


def test_feedback_is_given_counted_exported_and_trained_on(tmp_path: Path, kept: Kept):
    for text, label in (("win", "spam"), ("lunch", "ham"), ("win", "ham")):
        trunkline("feedback", "give", "spam", label, text)

    assert "3 rows, 2 texts, 1 with several labels, 1 of them tied" in trunkline("feedback", "counts", "spam")
    trunkline("feedback", "export", "spam", str(tmp_path / "out.csv"))
    assert b"text,label\r\nlunch,ham\r\n" == (tmp_path / "out.csv").read_bytes()
    trunkline("feedback", "give", "tags", "urgent|billing", "pay me", "--several")
    assert '["billing", "urgent"]' in "".join(render(kept.feedback.dataset("tags", 10**9), "jsonl"))
    run_id = trunkline("feedback", "retrain", "spam")
    assert (3, "version") == (kept.runs.get(run_id).order.feedback_until, kept.runs.get(run_id).order.publish)


def test_what_is_refused_is_told_by_the_tree_of_errors(tmp_path: Path, kept: Kept, monkeypatch):
    with pytest.raises(NotFound, match="no such run"):
        trunkline("runs", "show", "a" * 32)
    with pytest.raises(InvalidRequest, match="either FILE or --path"):
        trunkline("runs", "submit", "spam")
    with pytest.raises(InvalidRequest, match="unknown kind"):
        trunkline("runs", "submit", "spam", str(tmp_path / "a.txt"))
    with pytest.raises(InvalidRequest, match="ham, spam"):
        trunkline("feedback", "give", "spam", "eggs", "text")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody = f"http://127.0.0.1:{listener.getsockname()[1]}"
    monkeypatch.setenv("TRUNKLINE_CONTROL_URL", nobody)
    with pytest.raises(Unavailable, match="does not answer"):
        trunkline("runs", "list")


class Elsewhere(http.server.BaseHTTPRequestHandler):
    """Not a control plane: a page for whatever is asked; it notes what that was."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.send_header("content-length", "6")
        self.end_headers()
        self.wfile.write(b"<html>")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def elsewhere() -> Iterator[str]:
    Elsewhere.asked.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(10)


def test_what_is_no_control_plane_is_told_in_a_sentence(elsewhere: str):
    with pytest.raises(InvalidResponse, match="no control plane"):
        trunkline("runs", "list", "--control", elsewhere)


@pytest.mark.parametrize("url", ["http://h:port", "control:8200", "127.0.0.1:8200", "ftp://control"])
def test_a_url_that_makes_no_sense_is_told_in_a_sentence(url: str):
    with pytest.raises(InvalidRequest, match="no URL"):
        trunkline("runs", "list", "--control", url)


def test_no_proxy_is_asked_for_a_control_plane_on_this_machine(kept: Kept, elsewhere: str, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", elsewhere)
    monkeypatch.setenv("ALL_PROXY", elsewhere)

    assert "run" in trunkline("runs", "list")
    assert not Elsewhere.asked


def test_a_run_id_of_odd_characters_asks_for_no_other_path(elsewhere: str):
    with pytest.raises(InvalidResponse):
        trunkline("runs", "show", "../feedback/counts?head=spam", "--control", elsewhere)

    assert ["/v1/runs/..%2Ffeedback%2Fcounts%3Fhead%3Dspam"] == Elsewhere.asked
