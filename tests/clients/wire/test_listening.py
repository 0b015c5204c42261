import errno
import socket
from typing import Any

import pytest

from clients.wire.listening import TOO_FEW_FILES, ListenError, listen, why_not


def test_a_listener_takes_connections_at_a_free_port_and_does_not_hold_small_answers_back() -> None:
    with listen("127.0.0.1", 0, "--port") as listener, socket.create_connection(listener.getsockname()) as caller:
        taken, _ = listener.accept()
        with taken:
            assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            caller.sendall(b"x")
            assert taken.recv(1) == b"x"


@pytest.mark.parametrize(("host", "callers"), [("::1", ["::1"]), ("::", ["::1", "127.0.0.1"]), ("localhost", ["127.0.0.1"])])
def test_addresses_of_ipv6_are_listened_on_and_all_of_them_with_those_of_ipv4(host: str, callers: list[str]) -> None:
    with listen(host, 0, "--port") as listener:
        for caller in callers:
            socket.create_connection((caller, listener.getsockname()[1])).close()


def test_a_port_that_is_taken_is_named_with_the_flag_that_sets_it() -> None:
    with listen("127.0.0.1", 0, "--port") as first:
        port = first.getsockname()[1]
        with pytest.raises(ListenError, match=f"^port {port} is taken; .* another with --admin-port "):
            listen("127.0.0.1", port, "--admin-port")


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid", "a..b", f"{64 * 'x'}.example", "2001:db8::1", "::x"])
def test_what_is_no_address_here_is_not_told_as_a_taken_port(host: str) -> None:
    with pytest.raises(ListenError, match="is no address of this machine; choose another with --host") as caught:
        listen(host, 0, "--port")
    assert repr(host) in str(caught.value)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EMFILE, TOO_FEW_FILES),
        (errno.ENFILE, TOO_FEW_FILES),
        (errno.EACCES, "port 80 is not ours to open; choose one above 1023 with --port"),
        (errno.EPERM, "port 80 is not ours to open; choose one above 1023 with --port"),
        (errno.ENOBUFS, "port 80 cannot be opened (no room); choose another with --port"),
    ],
)
def test_each_reason_is_told_as_what_it_is(monkeypatch: pytest.MonkeyPatch, number: int, said: str) -> None:
    class Refused(OSError):
        def __str__(self) -> str:
            return "no room"

    def refuse(*_: Any, **__: Any) -> socket.socket:
        raise Refused(number, "no room")

    monkeypatch.setattr(socket, "create_server", refuse)
    with pytest.raises(ListenError) as caught:
        listen("127.0.0.1", 80, "--port")
    assert said == str(caught.value)


def test_an_error_that_says_nothing_is_told_all_the_same() -> None:
    assert why_not(None, "127.0.0.1", 80, "--port") == "port 80 cannot be opened (None); choose another with --port"
