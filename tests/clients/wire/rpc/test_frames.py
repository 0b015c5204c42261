import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.wire.rpc import frames as h2
from clients.wire.rpc.frames import Frame, FrameReader, ProtocolError


def cut(content: bytes, places: list[int]) -> list[bytes]:
    """*content* in pieces, cut at *places*, counted from its beginning again where they are beyond it."""
    stops = sorted({place % (len(content) + 1) for place in places} | {0, len(content)})
    return [content[start:stop] for start, stop in itertools.pairwise(stops)]


kinds = st.integers(0, 255)
stream_ids = st.integers(0, h2.MAX_STREAM_ID)
frames = st.builds(Frame, kinds, st.integers(0, 255), stream_ids, st.binary(max_size=200))
places = st.lists(st.integers(0, 5_000), max_size=20)


@settings(max_examples=80, deadline=None)
@given(st.lists(frames, max_size=8), places)
def test_frames_cut_anywhere_come_out_as_they_went_in(sent: list[Frame], places: list[int]) -> None:
    content = b"".join(h2.frame(*one) for one in sent)
    reader = FrameReader(200)

    got = [one for piece in cut(content, places) for one in reader.feed(piece)]

    assert sent == got
    assert all(type(one.payload) is bytes for one in got)
    assert not reader.is_within_frame


@settings(max_examples=60, deadline=None)
@given(frames, st.integers(1, 300))
def test_a_frame_that_is_not_whole_is_waited_for(one: Frame, missing: int) -> None:
    content = h2.frame(*one)
    reader = FrameReader(200)
    stop = max(0, len(content) - missing)

    assert [] == list(reader.feed(content[:stop]))
    assert reader.is_within_frame == (stop > 0)
    assert [one] == list(reader.feed(content[stop:]))


def test_the_reserved_bit_of_a_stream_is_not_read() -> None:
    (one,) = FrameReader(10).feed(h2.head(h2.DATA, 0, 2**31 | 5, 0))

    assert 5 == one.stream_id


def test_a_frame_larger_than_it_may_be_is_refused_before_it_has_come() -> None:
    assert [] == list(FrameReader(100).feed(h2.head(h2.DATA, 0, 1, 100)))
    with pytest.raises(ProtocolError) as raised:
        list(FrameReader(100).feed(h2.head(h2.DATA, 0, 1, 101)))

    assert h2.FRAME_SIZE_ERROR == raised.value.code


def test_the_largest_frame_there_is_can_be_read() -> None:
    payload = bytes(2**24 - 1)

    (one,) = FrameReader(2**24 - 1).feed(h2.frame(h2.DATA, 0, 1, payload))

    assert payload == one.payload


def test_a_frame_that_comes_byte_by_byte_is_kept_in_one_place() -> None:
    reader = FrameReader(h2.DEFAULT_FRAME_BYTES)
    content = h2.frame(h2.DATA, 0, 1, bytes(5_000))
    assert [] == list(reader.feed(content[: h2.HEAD_BYTES]))
    kept = reader._kept

    for place in range(h2.HEAD_BYTES, len(content) - 1):
        assert [] == list(reader.feed(content[place : place + 1]))
        assert kept is reader._kept

    assert 1 == len(list(reader.feed(content[-1:])))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=100), st.integers(0, 255), st.booleans(), st.binary(min_size=5, max_size=5))
def test_padding_and_priority_are_taken_off(content: bytes, num_padding: int, is_prioritised: bool, priority: bytes) -> None:
    flags = h2.PADDED | (h2.PRIORITISED if is_prioritised else 0)
    payload = bytes([num_padding]) + (priority if is_prioritised else b"") + content + bytes(num_padding)

    assert content == h2.unpadded(h2.HEADERS, flags, payload)
    assert content == h2.unpadded(h2.HEADERS, h2.PRIORITISED, priority + content)
    assert payload[1 : len(payload) - num_padding] == h2.unpadded(h2.DATA, flags, payload)
    assert content == h2.unpadded(h2.DATA, h2.END_STREAM, content)


@pytest.mark.parametrize(
    ("kind", "flags", "payload", "code"),
    [
        (h2.DATA, h2.PADDED, b"", h2.FRAME_SIZE_ERROR),
        (h2.DATA, h2.PADDED, b"\x01", h2.PROTOCOL_ERROR),
        (h2.DATA, h2.PADDED, b"\x04abc", h2.PROTOCOL_ERROR),
        (h2.HEADERS, h2.PRIORITISED, b"abcd", h2.FRAME_SIZE_ERROR),
        (h2.HEADERS, h2.PRIORITISED | h2.PADDED, b"\x00abcd", h2.FRAME_SIZE_ERROR),
        (h2.HEADERS, h2.PRIORITISED | h2.PADDED, b"\x02abcdex", h2.PROTOCOL_ERROR),
    ],
)
def test_padding_beyond_the_payload_is_an_error(kind: int, flags: int, payload: bytes, code: int) -> None:
    with pytest.raises(ProtocolError) as raised:
        h2.unpadded(kind, flags, payload)

    assert code == raised.value.code


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1)), max_size=10))
def test_settings_are_read_as_they_were_written(values: list[tuple[int, int]]) -> None:
    (one,) = FrameReader(100).feed(h2.settings(values))

    assert (h2.SETTINGS, 0, 0) == one[:3]
    assert values == h2.read_settings(one.payload)


@settings(max_examples=40, deadline=None)
@given(stream_ids, st.integers(0, 2**32 - 1), st.binary(max_size=30))
def test_the_small_frames_are_read_as_they_were_written(stream_id: int, code: int, why: bytes) -> None:
    content = h2.goaway(stream_id, code, why) + h2.rst_stream(stream_id, code) + h2.window_update(stream_id, code)

    goaway, reset, update = FrameReader(100).feed(content)

    assert (stream_id, code, why) == h2.read_goaway(goaway.payload)
    assert (h2.GOAWAY, h2.RST_STREAM, h2.WINDOW_UPDATE) == (goaway.kind, reset.kind, update.kind)
    assert (0, stream_id, stream_id) == (goaway.stream_id, reset.stream_id, update.stream_id)
    assert code == h2.read_u32(reset.payload) == h2.read_u32(update.payload)


def test_small_frames_of_a_wrong_size_are_an_error() -> None:
    for read, payload in (
        (h2.read_settings, bytes(5)),
        (h2.read_settings, bytes(13)),
        (h2.read_u32, bytes(3)),
        (h2.read_u32, bytes(5)),
        (h2.read_goaway, bytes(7)),
    ):
        with pytest.raises(ProtocolError) as raised:
            read(payload)
        assert h2.FRAME_SIZE_ERROR == raised.value.code


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.integers(1, 120), st.sampled_from((0, h2.END_STREAM)))
def test_a_header_block_goes_in_as_many_frames_as_it_takes(block: bytes, max_bytes: int, flags: int) -> None:
    first, *rest = FrameReader(max_bytes).feed(h2.header_frames(block, 7, flags, max_bytes))

    assert block == b"".join(one.payload for one in (first, *rest))
    assert (h2.HEADERS, flags) == (first.kind, first.flags & ~h2.END_HEADERS)
    assert all(h2.CONTINUATION == one.kind and not one.flags & ~h2.END_HEADERS for one in rest)
    assert [*([False] * len(rest)), True] == [bool(one.flags & h2.END_HEADERS) for one in (first, *rest)]
    assert {7} == {one.stream_id for one in (first, *rest)}
    assert max(1, -(-len(block) // max_bytes)) == 1 + len(rest)
