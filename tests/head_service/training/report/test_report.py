import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from clients.wire.catalogue import Task
from head_service.training.metrics import Headline, evaluate
from head_service.training.report import HTML_NAME, JSON_NAME, LiveVersion, build_report, write_report
from head_service.training.report.facts import MAX_ERRORS, MAX_POINTS, MAX_TEXT_LENGTH, shortened
from head_service.training.report.files import decode_report, encode_report
from head_service.training.report.page import render_page
from tests.head_service.training.report.reading import Page
from tests.head_service.training.report.samples import HOSTILE, facts_of, held_out, report_of

SHAPES: dict[str, dict[str, Any]] = {
    "single_label": {},
    "single_label without texts": {"with_texts": False},
    "39 labels": {"labels": [f"label {n}" for n in range(39)], "skill": 5.0},
    "40 labels": {"labels": [f"label {n}" for n in range(40)], "skill": 5.0},
    "multi_label": {"task": "multi_label", "labels": ["joy", "fear", HOSTILE[:60]]},
    "regression": {"task": "regression"},
    "no error": {"skill": 100.0},
    "five texts": {"count": 5},
}


@pytest.fixture(scope="module")
def pages() -> dict[str, tuple[str, Page]]:
    rendered = {name: render_page(report_of(**shape)) for name, shape in SHAPES.items()}
    return {name: (html, Page(html)) for name, html in rendered.items()}


@pytest.mark.parametrize("name", SHAPES)
def test_the_page_is_well_formed_and_asks_nobody_for_anything(pages: dict[str, tuple[str, Page]], name: str) -> None:
    html, page = pages[name]

    assert [] == page.problems
    assert html.startswith("<!DOCTYPE html>")
    assert not page.names & {"script", "link", "iframe", "object", "embed", "form", "base", "a"}
    assert all(address.startswith("data:image/svg+xml;base64,") for address in page.addresses)
    assert not re.search(r"url\(|@import|expression\(", html)
    assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)
    [policy] = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    assert "default-src 'none'" in policy


@pytest.mark.parametrize("name", SHAPES)
def test_pictures_have_words_and_tables_have_captions(pages: dict[str, tuple[str, Page]], name: str) -> None:
    _, page = pages[name]

    assert all(len(picture["alt"]) > 30 for picture in page.all("img"))
    assert len(page.all("table")) == len(page.all("caption")) == len(page.all("thead"))
    assert all(heading["scope"] in {"row", "col"} for heading in page.all("th"))
    assert [{"lang": "en"}] == page.all("html")
    assert any("width=device-width" in meta.get("content", "") for meta in page.all("meta"))


@pytest.mark.parametrize("name", SHAPES)
def test_pictures_are_drawn_for_light_and_dark_and_load_nothing(pages: dict[str, tuple[str, Page]], name: str) -> None:
    _, page = pages[name]

    assert 2 * len(page.all("img")) == len(page.pictures) == 2 * len(page.all("source"))
    for svg in page.pictures:
        addresses = set(re.findall(r'(?:https?|ftp|file|data):[^\s"<]*', re.sub(r">[^<]*<", "><", svg)))
        assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
        assert "<script" not in svg


def test_what_a_stranger_wrote_is_shown_and_never_done(pages: dict[str, tuple[str, Page]]) -> None:
    html, page = pages["single_label"]

    assert "<script" not in html
    assert '<script src="https://example.org/x.js">alert(1)</script>' in page.text
    assert "\u202e" not in html
    assert "\x00" not in html
    assert any("$x^2$ sport" in svg for svg in page.pictures)


def test_texts_can_be_left_out_of_page_and_data() -> None:
    report = report_of(with_texts=False)

    for written in (render_page(report), encode_report(report).decode()):
        assert "alert(1)" not in written
        assert "what somebody wrote" not in written
    assert all(error.line for error in report.errors)
    assert "The texts are left out" in render_page(report)


def test_a_matrix_is_a_picture_up_to_39_labels_and_a_table_of_confusions_beyond(pages: dict[str, tuple[str, Page]]) -> None:
    assert any(picture["alt"].startswith("Confusion matrix") for picture in pages["39 labels"][1].all("img"))
    many = pages["40 labels"][1]
    assert not any(picture["alt"].startswith("Confusion matrix") for picture in many.all("img"))
    assert "With 40 labels a matrix cannot be read" in many.text
    assert "The labels most often confused" in many.text


def test_each_task_shows_what_is_its_own(pages: dict[str, tuple[str, Page]]) -> None:
    several, numbers = pages["multi_label"][1], pages["regression"][1]

    assert "Threshold" in several.text
    assert "R²" in numbers.text
    assert "Answers over true values" in numbers.text
    assert "Label distribution" not in numbers.text
    assert "every held-out text was answered rightly" in pages["no error"][1].text


@pytest.mark.parametrize("task", ["single_label", "multi_label", "regression"])
def test_errors_are_the_worst_first_and_bounded(task: Task) -> None:
    report = report_of(task)

    losses = [error.loss for error in report.errors]
    assert sorted(losses, reverse=True) == losses
    assert len(losses) == MAX_ERRORS <= report.num_errors
    assert all(error.truth != error.found for error in report.errors)
    assert len(report.points) <= MAX_POINTS


def test_a_scatter_of_many_texts_is_thinned() -> None:
    assert MAX_POINTS == len(report_of("regression", count=3_000).points)


def test_a_long_text_is_cut() -> None:
    assert "a" * MAX_TEXT_LENGTH == shortened("a" * MAX_TEXT_LENGTH)
    assert f"{'a' * MAX_TEXT_LENGTH}…" == shortened("a" * (MAX_TEXT_LENGTH + 1))
    assert len(shortened("x \n" * 1_000_000)) <= MAX_TEXT_LENGTH + 1


def test_the_live_version_is_compared_with_care() -> None:
    report = report_of()
    assert report.live is not None
    other_data = msgspec.structs.replace(report, live=msgspec.structs.replace(report.live, same_data=False))
    far = msgspec.structs.replace(report.live.evaluation, headline=Headline("accuracy", 0.2, 0.1, 0.3))
    far_behind = msgspec.structs.replace(report, live=LiveVersion(3, far, same_data=True))
    same = msgspec.structs.replace(report, live=LiveVersion(3, report.evaluation, same_data=True))

    assert "on different texts, so a difference between them says little" in Page(render_page(other_data)).text
    assert "This version is better: the live one is outside its interval" in Page(render_page(far_behind)).text
    assert "the difference may be chance" in Page(render_page(same)).text
    assert " better" not in Page(render_page(same)).text
    assert "live version" not in Page(render_page(msgspec.structs.replace(report, live=None))).text


@pytest.mark.parametrize("task", ["single_label", "multi_label", "regression"])
def test_the_same_training_leaves_the_same_bytes(task: Task) -> None:
    first, second = report_of(task, count=60), report_of(task, count=60)

    assert encode_report(first) == encode_report(second)
    assert render_page(first) == render_page(second)


@pytest.mark.parametrize("task", ["single_label", "multi_label", "regression"])
def test_both_files_are_written_and_the_data_comes_back(tmp_path: Path, task: Task) -> None:
    report = report_of(task, count=60)

    page = write_report(report, tmp_path / "reports" / "7")

    assert {HTML_NAME, JSON_NAME} == {path.name for path in page.parent.iterdir()}
    assert report == decode_report((page.parent / JSON_NAME).read_bytes())
    assert render_page(report) == page.read_text()


def test_a_name_in_any_script_and_of_any_length_can_be_drawn() -> None:
    labels = ["😀 смайл", "标签", "\x07\x0b bell", "م" * 200, "]]>&amp;<!--", "-"]

    page = Page(render_page(report_of(labels=labels, count=60)))

    assert [] == page.problems
    assert page.pictures


def test_a_single_text_makes_a_report() -> None:
    for task in ("single_label", "multi_label", "regression"):
        data = held_out(task, ["a", "b"], 1)
        names = ["value"] if task == "regression" else ["a", "b"]
        scores = np.array([[0.25, 0.75]], np.float32)[:, : len(names)]
        evaluation = evaluate(task, names, scores, data.truth(names))

        assert [] == Page(render_page(build_report(facts_of(), evaluation, data, scores))).problems


def test_matplotlib_is_imported_by_the_page_alone() -> None:
    script = "import sys, head_service.training.report; print({'matplotlib', 'jinja2', 'tensorflow'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60)

    assert "set()" == found.stdout.strip()
    root = Path(__file__).resolve().parents[4]
    sources = {path for package in ("head_service", "clients", "gateway") for path in (root / package).rglob("*.py")}
    importing = {path for path in sources if re.search(r"^\s*(import|from) matplotlib", path.read_text(), re.MULTILINE)}
    assert {"pictures.py"} == {path.name for path in importing}
