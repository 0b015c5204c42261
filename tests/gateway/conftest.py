import pytest

from clients.wire.text import TextEncoder
from tests.gateway.fakes import FakeTrunks, encoder


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    return encoder(tmp_path_factory.mktemp("tokens"))


@pytest.fixture
def trunks(tokens: TextEncoder) -> FakeTrunks:
    return FakeTrunks(tokens)
