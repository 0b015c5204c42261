"""The page as a strict reader sees it, without a browser."""

import re
from pathlib import Path

import pytest

from tests.gateway.page_fakes import client_of, fake_gateway
from tests.head_service.training.report.reading import Page

FOLDER = Path(__file__).resolve().parents[3] / "gateway" / "ui"
HTML, STYLE, SCRIPT, ICON = ((FOLDER / name).read_text() for name in ("page.html", "page.css", "page.js", "icon.svg"))


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(HTML)


def test_the_page_is_well_formed_and_asks_nobody_else_for_anything(page: Page) -> None:
    assert [] == page.problems
    assert {"ui/icon.svg", "ui/page.css", "ui/page.js", "docs", "metrics", "#text"} == set(page.addresses)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", HTML + STYLE)
    assert not re.search(r"https?:", SCRIPT)
    assert ["http://www.w3.org/2000/svg"] == re.findall(r'https?:[^"]*', ICON)


def test_nothing_in_the_page_needs_a_policy_that_lets_markup_run_or_style(page: Page) -> None:
    for name, attributes in page.elements:
        assert not any(key.startswith("on") or key == "style" for key in attributes), name
        assert name != "style"
    assert [{"src": "ui/page.js", "type": "module"}] == page.all("script")


def test_what_people_type_never_becomes_markup() -> None:
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function|srcdoc", SCRIPT)
    assert "localStorage" not in SCRIPT


def test_every_field_has_a_label_and_every_name_the_script_uses_is_there(page: Page) -> None:
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    labelled = {attributes["for"] for attributes in page.all("label") if "for" in attributes}
    fields = [attributes["id"] for name in ("textarea", "select") for attributes in page.all(name)]

    assert {"text", "key"} <= labelled
    assert {"text", "compare-head", "compare-a", "compare-b"} == set(fields)
    assert set(re.findall(r'byId\("([\w-]+)"\)', SCRIPT)) <= ids
    assert {attributes["aria-describedby"] for _, attributes in page.elements if "aria-describedby" in attributes} <= ids
    assert all(table for table in page.all("caption"))
    assert len(page.all("caption")) == len(page.all("table"))


def test_the_style_is_for_light_and_dark_and_for_those_who_want_no_motion() -> None:
    assert "prefers-color-scheme: dark" in STYLE
    assert "prefers-reduced-motion: no-preference" in STYLE
    assert "forced-colors: active" in STYLE
    assert ":focus-visible" in STYLE
    outside = re.sub(r"@media \(prefers-reduced-motion.*?\n}", "", STYLE, flags=re.DOTALL)
    assert "transition" not in outside
    assert "animation" not in outside


def luminance(colour: str) -> float:
    """WCAG 2.2's relative luminance."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("number", [0, 1], ids=["light", "dark"])
def test_words_stand_out_from_what_is_behind_them(number: int) -> None:
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)[number]))

    for ink in ("ink", "muted", "accent", "wrong"):
        for behind in ("paper", "card", "field"):
            assert contrast(colours[ink], colours[behind]) >= 4.5, (ink, behind)
    assert contrast(colours["accent"], colours["tint"]) >= 4.5
    assert contrast(colours["accent-ink"], colours["accent"]) >= 4.5
    for mark in ("bar", "other", "edge"):
        assert contrast(colours[mark], colours["card"]) >= 3.0, mark


async def test_files_are_sent_with_a_policy_and_only_when_they_have_changed(tmp_path: Path) -> None:
    async with fake_gateway(tmp_path) as (app, _), client_of(app) as http:
        for path, kind in (
            ("/", "text/html"),
            ("/ui/page.css", "text/css"),
            ("/ui/page.js", "text/javascript"),
            ("/ui/icon.svg", "image/"),
        ):
            answer = await http.get(path)
            assert answer.headers["content-type"].startswith(kind)
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert "unsafe" not in answer.headers["content-security-policy"]
            again = await http.get(path, headers={"if-none-match": answer.headers["etag"]})
            assert (304, b"") == (again.status_code, again.content)


async def test_the_page_is_no_part_of_the_documented_api(tmp_path: Path) -> None:
    async with fake_gateway(tmp_path) as (app, _), client_of(app) as http:
        assert not [path for path in (await http.get("/openapi.json")).json()["paths"] if path == "/" or path.startswith("/ui")]
