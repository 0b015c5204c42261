import httpx
import pytest

from clients.wire.addresses import host_port, is_http_url
from clients.wire.rpc.sockets import parse_address


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "::", "2001:db8::7", "trunk.example"])
def test_a_host_and_its_port_are_read_as_they_were_written(host: str) -> None:
    address = host_port(host, 8_080)

    assert ("", host, 8_080) == parse_address(address)
    assert (host, 8_080) == ((url := httpx.URL(f"http://{address}")).host, url.port)
    assert is_http_url(f"http://{address}")
