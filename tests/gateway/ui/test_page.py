"""The page in headless Chromium, where Playwright and a browser are installed."""

import asyncio
import contextlib
import shutil
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvicorn

from clients import Unavailable
from clients.wire.catalogue import CatalogueHead
from gateway.routes import State
from tests.gateway.page_fakes import HEADS, entry, fake_gateway, manifest

async_api: Any = pytest.importorskip("playwright.async_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")

SECRET = "tk-s3cret"
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


@dataclass
class Visit:
    """A page in a browser, what it said on its console, and the gateway behind it."""

    page: Any
    state: State
    url: str
    said: list[str]

    async def ask(self, text: str) -> None:
        """Type *text*, ask by the keyboard, and wait for the answer."""
        request = self.page.locator("#fact-request")
        before = await request.text_content()
        await self.page.fill("#text", text)
        await self.page.press("#text", "Control+Enter")
        await async_api.expect(request).not_to_have_text(before)


@contextlib.asynccontextmanager
async def visit(folder: Path, heads: dict[str, CatalogueHead] | None = None, **options: Any) -> AsyncIterator[Visit]:
    async with fake_gateway(folder, heads=heads) as (app, state), async_api.async_playwright() as playwright:
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=1))
        serving = asyncio.create_task(server.serve([listener]))
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            page = await browser.new_page(**options)
            said: list[str] = []
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
            await page.goto(url)
            await page.wait_for_selector("#service.ready")
            await page.wait_for_selector("#rows li")
            yield Visit(page, state, url, said)
        finally:
            await browser.close()
            server.should_exit = True
            await serving
            listener.close()


async def test_a_text_gets_its_labels_stages_and_facts_by_the_keyboard_alone(tmp_path: Path) -> None:
    async with visit(tmp_path) as visited:
        page = visited.page
        await page.keyboard.press("Tab")
        assert "Skip to the text" == await page.evaluate("document.activeElement.textContent")
        await page.keyboard.press("Enter")
        await visited.ask("one two three")

        assert (
            await page.locator("#status").text_content()
            == "5 heads answered in " + (await page.locator("tr[data-stage=total_ms] .number").text_content()) + "."
        )
        assert 5 == await page.locator("#rows details:visible").count()
        share = await page.locator("#rows [data-head=topic] summary .share").text_content()
        assert 0 < float(share.split()[0].rstrip("%\u202f")) <= 100
        assert ("5", "read whole") == (await page.text_content("#fact-tokens"), await page.text_content("#fact-cut"))
        await page.focus("#rows [data-head=topic] summary")
        await page.keyboard.press("Enter")
        assert 7 == await page.locator("#rows [data-head=topic] .scores li:visible").count()
        assert "trunkline_gateway_texts_total 1.0" in visited.state.telemetry.render(inside=0, catalogue_age=0).decode()
        assert [] == visited.said


async def test_what_is_typed_is_shown_as_it_is_and_never_done(tmp_path: Path) -> None:
    heads = {"odd": entry(manifest("odd", 1, (HOSTILE, "other")))}
    async with visit(tmp_path, heads) as visited:
        await visited.ask(HOSTILE)
        await visited.page.click("#rows summary")

        assert "Trunkline" == await visited.page.title()
        assert HOSTILE in await visited.page.locator("#history li").first.text_content()
        assert HOSTILE in await visited.page.locator("#rows .scores").text_content()
        assert 0 == await visited.page.locator("main img, main script").count()
        assert [] == visited.said


async def test_a_head_in_error_is_told_beside_the_others_and_kept_among_the_errors(tmp_path: Path) -> None:
    async with visit(tmp_path) as visited:
        await visited.page.get_by_label("slow").check(force=True)
        await visited.ask("one two")

        assert "head 'slow' did not answer in time" == await visited.page.text_content("#rows [data-head=slow] .failed .label")
        assert "5 heads answered" in await visited.page.text_content("#status")
        request = await visited.page.text_content("#fact-request")
        assert f"request {request}" in await visited.page.text_content("#errors li")


async def test_a_request_that_fails_is_told_with_its_id(tmp_path: Path) -> None:
    async with visit(tmp_path) as visited:

        async def unavailable(*_: object) -> object:
            raise Unavailable("10.0.0.7 refused")

        visited.state.pipeline.classify = unavailable  # type: ignore[method-assign, assignment]
        await visited.page.fill("#text", "one")
        await visited.page.click("#submit")
        await visited.page.wait_for_selector("#errors li")

        assert "not available" in await visited.page.text_content("#status")
        told = await visited.page.text_content("#errors li")
        assert "503 · unavailable · request " in told
        assert "10.0.0.7" not in told


async def test_two_versions_of_a_head_are_compared(tmp_path: Path) -> None:
    async with visit(tmp_path) as visited:
        await visited.page.fill("#text", "one two three")
        await visited.page.click("#compare-submit")
        await visited.page.wait_for_selector("#compare-rows tr")

        assert ("v4", "v5") == (
            await visited.page.text_content("#compare-one"),
            await visited.page.text_content("#compare-other"),
        )
        assert 2 == await visited.page.locator("#compare-rows tr").count()
        assert (await visited.page.text_content("#compare-status")).strip()


async def test_a_comparison_goes_when_another_text_is_asked(tmp_path: Path) -> None:
    async with visit(tmp_path) as visited:
        await visited.page.fill("#text", "one two three")
        await visited.page.click("#compare-submit")
        await visited.page.wait_for_selector("#compare-rows tr")
        await visited.ask("one two three")
        assert 2 == await visited.page.locator("#compare-rows tr").count()
        await visited.ask("another")

        assert 0 == await visited.page.locator("#compare-rows tr").count()
        assert not await visited.page.locator("#compare-scroll").is_visible()
        assert "" == await visited.page.text_content("#compare-status")


async def test_what_an_answer_has_beside_its_label_is_shown_where_it_is_there(tmp_path: Path) -> None:
    deep = msgspec.structs.replace(manifest("deep", 1, ("sports/football", "sports/tennis")), label_separator="/")
    async with visit(tmp_path, {**HEADS, "deep": entry(deep)}) as visited:
        await visited.ask("one  two")
        assert "white space collapsed" == await visited.page.text_content("#fact-notes")
        shown = visited.page.locator("#rows details")
        for place in range(await shown.count()):
            await shown.nth(place).locator("summary").click()
        assert (await visited.page.text_content("[data-head=deep] .path")).startswith("sports › ")
        assert 1 == await visited.page.locator("#rows .path").count()
        # Of several labels the confidence is that of all of them; of one label it is the score.
        assert "confidence in all of it" in await visited.page.text_content("[data-head=tone] .confidence")
        assert 1 == await visited.page.locator("#rows .confidence").count()

        await visited.ask("one two")
        assert "nothing" == await visited.page.text_content("#fact-notes")


async def test_the_key_goes_with_requests_and_is_kept_only_when_asked(tmp_path: Path) -> None:
    async with visit(tmp_path) as visited:
        sent: list[str | None] = []
        visited.page.on(
            "request", lambda request: "classify" in request.url and sent.append(request.headers.get("authorization"))
        )
        await visited.page.click("#key-box summary")
        await visited.page.fill("#key", SECRET)
        await visited.ask("one")
        assert [f"Bearer {SECRET}"] == sent
        assert 0 == await visited.page.evaluate("sessionStorage.length + localStorage.length")
        await visited.page.check("#key-keep")
        assert SECRET == await visited.page.evaluate("sessionStorage.getItem('trunkline.key')")
        await visited.page.reload()
        assert SECRET == await visited.page.input_value("#key")
        await visited.page.click("#key-box summary")
        await visited.page.uncheck("#key-keep")
        assert 0 == await visited.page.evaluate("sessionStorage.length + localStorage.length")


async def test_texts_of_the_session_can_be_asked_again_and_forgotten(tmp_path: Path) -> None:
    async with visit(tmp_path) as visited:
        await visited.ask("the first")
        await visited.ask("the second")
        await visited.page.click("#history li:nth-child(2) button")
        assert "the first" == await visited.page.input_value("#text")
        await visited.page.click("#forget")
        assert 0 == await visited.page.locator("#history li").count()
        assert 0 == await visited.page.evaluate("sessionStorage.length + localStorage.length")


@pytest.mark.parametrize("width", [320, 390, 1280, 2200])
async def test_nothing_moves_when_the_answer_comes_and_nothing_sticks_out(tmp_path: Path, width: int) -> None:
    async with visit(tmp_path, viewport={"width": width, "height": 900}) as visited:
        moving = "document.querySelectorAll('#rows > li, #stages tr, .facts dt, .card')"
        places = f"[...{moving}].map(one => one.getBoundingClientRect().top)"
        await visited.page.fill("#text", "word " * 400)
        # The list of texts below grows by what was asked; all else stays.
        before = await visited.page.evaluate(places)
        await visited.ask("word " * 400)

        assert before == await visited.page.evaluate(places)
        assert "cut at its end" == await visited.page.text_content("#fact-cut")
        assert width >= await visited.page.evaluate("document.documentElement.scrollWidth")
