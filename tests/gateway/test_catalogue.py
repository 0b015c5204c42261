import asyncio
import base64
import contextlib
from pathlib import Path

import pytest

from clients.wire.catalogue import Catalogue
from gateway.catalogue import CataloguePoller, FileFetch, UrlFetch


@pytest.mark.parametrize("broken", [b'{"heads": {"caf\xe9": {}}}', b"[" * 100_000, b"\xff\xfe", b""])
async def test_what_is_no_catalogue_is_complained_of_and_nothing_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: bytes
) -> None:
    path = tmp_path / "catalogue.json"
    path.write_bytes(broken)
    poller = CataloguePoller(FileFetch(path), poll_seconds=1)

    await poller.refresh()

    assert not poller.is_loaded
    assert ["the catalogue cannot be read"] == [message.partition(" (")[0] for message in caplog.messages]


async def test_a_catalogue_whose_stable_version_is_missing_never_replaces_a_good_one(tmp_path: Path) -> None:
    path = tmp_path / "catalogue.json"
    path.write_text('{"heads": {}}')
    poller = CataloguePoller(FileFetch(path), poll_seconds=1)
    await poller.refresh()
    path.write_text('{"heads": {"topic": {"stable": 2, "versions": {}}}}')
    await poller.refresh()

    assert poller.is_loaded
    assert {} == poller.catalogue.heads


async def test_a_broken_catalogue_is_not_in_order_at_the_next_poll_either(tmp_path: Path) -> None:
    path = tmp_path / "catalogue.json"
    path.write_text('{"heads": {}}')
    poller = CataloguePoller(FileFetch(path), poll_seconds=1)
    await poller.refresh()
    path.write_text("{ no catalogue at all")
    await poller.refresh()
    broken_for = poller.age
    await poller.refresh()

    assert poller.age > broken_for
    path.write_text('{"heads":  {}}')
    await poller.refresh()
    assert poller.age < broken_for


async def test_a_name_and_password_in_the_url_are_sent_and_in_no_complaint(caplog: pytest.LogCaptureFixture) -> None:
    asked: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        fetch = UrlFetch(f"http://somebody:SECRET@127.0.0.1:{port}/catalogue.json")
        await CataloguePoller(fetch, poll_seconds=1).refresh()
        await fetch.close()

    assert base64.b64encode(b"somebody:SECRET") in asked[0]
    assert "403" in caplog.text
    assert "SECRET" not in caplog.text


async def test_what_is_wrong_is_said_once_until_it_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "catalogue.json"
    poller = CataloguePoller(FileFetch(path), poll_seconds=1)

    async def said() -> int:
        caplog.clear()
        for _ in range(3):
            await poller.refresh()
        return len(caplog.messages)

    assert 1 == await said()
    assert 0 == await said()
    path.write_text("{ no catalogue at all")
    assert 1 == await said()
    path.write_text('{"heads": {}}')
    assert 0 == await said()
    path.unlink()
    assert 1 == await said()


class StumblingFollower:
    """Cannot take the first catalogue it hears of."""

    def __init__(self) -> None:
        self.heard = 0
        self.has_taken = asyncio.Event()

    def follow(self, catalogue: Catalogue) -> None:
        self.heard += 1
        if self.heard == 1:
            raise KeyError("a fault of ours")
        self.has_taken.set()


async def test_a_follower_that_fails_does_not_end_the_polling(tmp_path: Path) -> None:
    path, follower = tmp_path / "catalogue.json", StumblingFollower()
    path.write_text('{"heads": {}}')
    poller = CataloguePoller(FileFetch(path), poll_seconds=0.001, followers=[follower])
    polling = asyncio.create_task(poller.run())
    async with asyncio.timeout(5):
        while not follower.heard:
            await asyncio.sleep(0.001)
        path.write_text('{"heads":  {}}')
        await follower.has_taken.wait()
    polling.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await polling
