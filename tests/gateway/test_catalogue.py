from pathlib import Path

from gateway.catalogue import CataloguePoller, FileFetch


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
