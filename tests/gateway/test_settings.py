import pytest
from pydantic import ValidationError

from gateway.settings import Settings, addresses_of


def test_several_replicas_are_named_with_commas_between() -> None:
    settings = Settings(embedding_address="one:1, two:2", heads_address="three:3")

    assert ["one:1", "two:2"] == addresses_of(settings.embedding_address)
    assert ["three:3"] == addresses_of(settings.heads_address)


@pytest.mark.parametrize("addresses", ["", "one:1,", ",one:1", "one:1,,two:2", "one:1, one:1"])
def test_an_address_that_is_empty_or_there_twice_is_refused(addresses: str) -> None:
    with pytest.raises(ValidationError, match="address is"):
        Settings(heads_address=addresses)
