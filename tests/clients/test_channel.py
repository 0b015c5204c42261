import pytest

from clients import InvalidRequest
from clients._channel import call_metadata, channel_options, is_loopback


@pytest.mark.parametrize("address", ["127.0.0.1:80", "127.9.9.9", "localhost:1", "localhost", "[::1]:80", "::1", "unix:/run/x"])
def test_this_machine_is_known_by_any_of_its_names(address):
    assert is_loopback(address)


@pytest.mark.parametrize("address", ["10.0.0.1:80", "localhost.example:80", "dns:///heads:80", "[::2]:80"])
def test_another_machine_is_not_this_one(address):
    assert not is_loopback(address)


def test_proxies_are_off_for_this_machine_alone():
    assert ("grpc.enable_http_proxy", 0) in channel_options("127.0.0.1:80")
    assert ("grpc.enable_http_proxy", 0) not in channel_options("heads:80")


def test_a_callers_options_come_last_and_so_win():
    assert channel_options("heads:80", [("grpc.enable_retries", 1)])[-1] == ("grpc.enable_retries", 1)


@pytest.mark.parametrize(
    ("request_id", "traceparent", "metadata"),
    [
        ("", "", None),
        ("r-1", "", (("x-request-id", "r-1"),)),
        ("", "00-t-p-01", (("traceparent", "00-t-p-01"),)),
        ("r-1", "00-t-p-01", (("x-request-id", "r-1"), ("traceparent", "00-t-p-01"))),
    ],
)
def test_a_call_carries_the_ids_it_has(request_id, traceparent, metadata):
    assert metadata == call_metadata(request_id, traceparent)


@pytest.mark.parametrize(("request_id", "traceparent"), [("é", ""), ("", "é"), ("a\nb", ""), ("", "a\r\nb: c")])
def test_ids_that_cannot_travel_are_refused(request_id, traceparent):
    with pytest.raises(InvalidRequest):
        call_metadata(request_id, traceparent)
