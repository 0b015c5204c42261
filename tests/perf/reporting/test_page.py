import re
from itertools import pairwise
from pathlib import Path

import pytest

from perf.reporting.figures import DARK, SERIES, drawings, looks_of
from perf.reporting.files import HTML_NAME, JSON_NAME, save_results, write_pages
from perf.reporting.page import render_page
from perf.results import Results, read
from tests.head_service.training.report.reading import Page
from tests.perf.samples import HOSTILE, TITLES, answers_of, results_of, void_run, without

FIGURES = {"plan-throughput", "latency-throughput", "latency-cdf", "heads-scaling", "waterfall", "cost"}


@pytest.fixture(scope="module")
def html() -> str:
    return render_page(results_of())


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_the_page_is_well_formed_and_asks_nobody_for_anything(html: str, page: Page) -> None:
    assert [] == page.problems
    assert not page.names & {"script", "link", "iframe", "object", "embed", "form", "base", "a"}
    assert all(address.startswith("data:image/svg+xml;base64,") for address in page.addresses)
    assert not re.search(r"url\(|@import|expression\(", html)
    [policy] = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    assert "default-src 'none'" in policy


def test_titles_are_shown_and_never_done(html: str, page: Page) -> None:
    assert "<script" not in html
    assert HOSTILE in page.text
    assert "<b>no network</b>" in page.text


def test_figures_have_words_and_load_nothing(page: Page) -> None:
    assert len(FIGURES) == len(page.all("img"))
    assert all(len(picture["alt"]) > 40 for picture in page.all("img"))
    for svg in page.pictures:
        addresses = set(re.findall(r'(?:https?|ftp|file|data):[^\s"<]*', re.sub(r">[^<]*<", "><", svg)))
        assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_headings_are_in_order_and_tables_have_captions(page: Page) -> None:
    levels = [int(name[1]) for name, _ in page.elements if re.fullmatch(r"h[1-6]", name)]

    assert 1 == levels[0]
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert len(page.all("table")) == len(page.all("caption")) == len(page.all("thead"))


def test_a_void_run_shows_why_and_no_number(html: str, page: Page) -> None:
    assert "VOID: the generator was late" in page.text
    assert "777" not in html
    assert all("777" not in re.sub(r"<path[^>]*>|<use[^>]*>", "", svg) for svg in page.pictures)


def test_who_is_not_ranked_stands_apart_and_in_no_figure(page: Page) -> None:
    assert "Not ranked: SHORT, 1 head, 32 in flight" in page.text
    assert "150 of 1,500" in page.text
    assert not any("Plan two" in svg for svg in page.pictures)


def test_a_page_of_nothing_is_a_page(empty: Results) -> None:
    page = Page(render_page(empty))

    assert [] == page.problems
    assert "Nothing was measured." in page.text
    assert not page.all("img")


@pytest.mark.parametrize("gone", ["plan-four", "plan-one-torch"])
def test_a_system_that_is_missing_breaks_nothing(gone: str) -> None:
    page = Page(render_page(without(results_of(waterfall=()), gone)))

    assert [] == page.problems
    assert ("Plan four was not measured." in page.text) == (gone == "plan-four")


def test_runs_that_are_all_void_draw_nothing() -> None:
    assert not {"plan-throughput", "latency-cdf", "cost"} & set(drawings(results_of(runs=(void_run(),))))


def test_every_system_looks_the_same_everywhere_and_plan_four_comes_first() -> None:
    looks = looks_of(results_of())

    assert set(TITLES) == set(looks)
    assert next(iter(SERIES)) == looks["plan-four"].colour
    assert len(TITLES) == len({(look.colour, look.marker) for look in looks.values()})
    assert next(iter(SERIES)) not in {look.colour for look in looks_of(without(results_of(), "plan-four")).values()}
    assert set(SERIES) <= set(DARK)


def test_more_systems_than_colours_differ_by_marker() -> None:
    systems = [f"system-{number}" for number in range(14)]
    results = results_of(answers=tuple(answers_of(system) for system in systems), titles={}, runs=(), bounds=(), footprints=())

    assert 14 == len({(look.colour, look.marker) for look in looks_of(results).values()})


def test_equal_results_are_equal_pages(html: str) -> None:
    assert html == render_page(results_of())


def test_files_are_written_whole_and_read_again(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    path = save_results(results_of(), folder)
    page = write_pages(results_of(), folder)

    assert results_of() == read(path)
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert {JSON_NAME, HTML_NAME, *(f"{name}.png" for name in FIGURES)} == {each.name for each in folder.iterdir()}
    assert all((folder / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in FIGURES)
