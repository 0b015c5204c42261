import gzip
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.wire.rpc.messages import HEAD, MessageError, MessageReader, inflated, prefixed
from tests.clients.wire.rpc.test_frames import cut, places


def compressed(message: bytes, encoding: str) -> bytes:
    content = gzip.compress(message) if encoding == "gzip" else zlib.compress(message)
    return HEAD.pack(1, len(content)) + content


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=120), st.booleans()), max_size=8), places, st.sampled_from(("gzip", "deflate")))
def test_messages_cut_anywhere_come_out_whole(messages: list[tuple[bytes, bool]], places: list[int], encoding: str) -> None:
    travelling = [compressed(message, encoding) if small else prefixed(message) for message, small in messages]
    reader = MessageReader(200, encoding)
    num_fed, got = 0, []

    for piece in cut(b"".join(travelling), places):
        got += list(reader.feed(piece))
        num_fed += len(piece)
        assert num_fed - sum(map(len, travelling[: len(got)])) == reader.num_kept

    assert [message for message, _ in messages] == got
    assert all(type(message) is bytes for message in got)
    assert 0 == reader.num_kept


def test_a_message_that_comes_in_many_pieces_is_kept_in_one_place() -> None:
    message = bytes(range(256)) * 80_000
    content, size = prefixed(message), 16_384
    reader = MessageReader(len(message))
    assert [] == list(reader.feed(content[:size]))
    kept = reader._kept

    for start in range(size, len(content) - size, size):
        assert [] == list(reader.feed(content[start : start + size]))
        assert kept is reader._kept
        assert start + size == len(kept) == reader.num_kept

    (got,) = reader.feed(content[start + size :])
    assert message == got
    assert kept is not reader._kept
    assert 0 == len(reader._kept)


def test_many_messages_in_one_piece_leave_nothing_behind() -> None:
    reader = MessageReader(10)

    assert [b""] * 200_000 == reader.cut(prefixed(b"") * 200_000)
    assert 0 == len(reader._kept) == reader.num_kept


def test_a_message_is_refused_by_its_head() -> None:
    assert [] == list(MessageReader(100).feed(HEAD.pack(0, 100)))
    with pytest.raises(MessageError, match="larger than 100 bytes") as raised:
        list(MessageReader(100).feed(HEAD.pack(0, 101)))
    assert raised.value.is_too_large

    with pytest.raises(MessageError, match="no gRPC message") as raised:
        list(MessageReader(100).feed(HEAD.pack(2, 1)))
    assert not raised.value.is_too_large


def test_messages_that_came_with_a_wrong_one_are_not_given() -> None:
    with pytest.raises(MessageError):
        MessageReader(100).cut(prefixed(b"first") + HEAD.pack(255, 0))


@pytest.mark.parametrize("encoding", ["", "identity", "br", "GZIP"])
def test_a_message_compressed_in_an_unknown_way_is_an_error(encoding: str) -> None:
    with pytest.raises(MessageError, match="its encoding is") as raised:
        list(MessageReader(100, encoding).feed(compressed(b"x", "gzip")))
    assert not raised.value.is_too_large


def test_an_encodings_name_is_told_in_part() -> None:
    with pytest.raises(MessageError) as raised:
        inflated(b"", "x" * 30_000, 10)

    assert 200 > len(str(raised.value))


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_bomb_is_let_out_to_the_bound_and_no_further(encoding: str) -> None:
    bomb = compressed(bytes(5_000_000), encoding)
    assert 10_000 > len(bomb)

    with pytest.raises(MessageError, match="larger than 10000 bytes") as raised:
        list(MessageReader(10_000, encoding).feed(bomb))

    assert raised.value.is_too_large
    assert [bytes(5_000_000)] == list(MessageReader(5_000_000, encoding).feed(bomb))


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_what_is_not_whole_or_goes_on_is_no_compressed_message(encoding: str) -> None:
    whole = compressed(b"a message", encoding)[HEAD.size :]
    other = compressed(b"another", encoding)[HEAD.size :]

    assert b"a message" == inflated(whole, encoding, 9)
    for wrong in (b"", whole[:-1], whole[1:], whole + b"x", whole + other, b"\0" * 20):
        with pytest.raises(MessageError) as raised:
            inflated(wrong, encoding, 9)
        assert not raised.value.is_too_large


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(("gzip", "deflate", "")), places)
def test_garbage_gives_messages_or_one_kind_of_error(content: bytes, encoding: str, places: list[int]) -> None:
    reader = MessageReader(100, encoding)
    try:
        got = [message for piece in cut(content, places) for message in reader.feed(piece)]
    except MessageError:
        return
    assert all(len(message) <= 100 for message in got)
    assert reader.num_kept <= len(content)
