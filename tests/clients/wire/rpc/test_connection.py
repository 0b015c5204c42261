import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from hpack import Decoder
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.wire.rpc import frames as h2
from clients.wire.rpc.connection import Bounds, Connection, Stream, peer_name
from clients.wire.rpc.frames import FrameReader, ProtocolError
from clients.wire.rpc.headers import Field, block, literal

HEAD = block(((":path", "/a"),))
SMALL = Bounds(
    max_header_bytes=2_000, max_frame_bytes=20_000, stream_window=65_535, connection_window=100_000, max_control_frames=50
)


class FakeTransport(asyncio.Transport):
    """Keeps what is written until it is taken; pauses its protocol at *high* bytes."""

    def __init__(self, high: int = 2**40, extra: dict[str, Any] | None = None) -> None:
        super().__init__(extra or {})
        self.high = high
        self.written = bytearray()
        self.num_taken = 0
        self.is_closed = False
        self.is_aborted = False
        self.is_paused = False
        self.protocol: Connection | None = None

    def write(self, data: Any) -> None:
        self.written += data
        if len(self.written) > self.high and not self.is_paused and self.protocol is not None:
            self.is_paused = True
            self.protocol.pause_writing()

    def take(self, num_bytes: int) -> bytes:
        data = bytes(self.written[:num_bytes])
        self.num_taken += len(data)
        del self.written[:num_bytes]
        if self.is_paused and len(self.written) <= self.high // 2 and self.protocol is not None:
            self.is_paused = False
            self.protocol.resume_writing()
        return data

    def get_write_buffer_size(self) -> int:
        return len(self.written)

    @property
    def num_gone(self) -> int:
        return self.num_taken

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_aborted = True


class Told(Stream):
    """Keeps what it was told."""

    __slots__ = ("codes", "content", "fields", "lost", "num_unread")

    def __init__(self, connection: Connection, stream_id: int) -> None:
        super().__init__(connection, stream_id)
        self.fields: list[list[Field]] = []
        self.content = bytearray()
        self.num_unread = 0
        self.codes: list[int] = []
        self.lost: list[str] = []

    def on_headers(self, fields: list[Field], *, is_end: bool) -> None:
        self.fields.append(fields)

    def on_data(self, content: bytes, *, is_end: bool) -> None:
        self.content += content
        if isinstance(self.connection, End) and self.connection.is_slow:
            self.num_unread += len(content)
            self.keep(len(content))

    def on_reset(self, code: int) -> None:
        self.codes.append(code)

    def on_lost(self, why: str) -> None:
        self.lost.append(why)

    def read(self) -> None:
        size, self.num_unread = self.num_unread, 0
        self.consumed(size)


class End(Connection):
    """Takes every stream; *is_slow*: what arrives waits until it is read."""

    def __init__(self, bounds: Bounds = SMALL, *, is_slow: bool = False, high: int = 2**40) -> None:
        super().__init__(bounds)
        self.is_slow = is_slow
        self.told: dict[int, Told] = {}
        self.num_over = 0
        self.num_down = 0
        self.wire = FakeTransport(high)
        self.connection_made(self.wire)
        self.wire.protocol = self
        ours = ((h2.INITIAL_WINDOW_SIZE, bounds.stream_window), (h2.MAX_FRAME_SIZE, bounds.max_frame_bytes))
        self.write(h2.settings(ours) + h2.window_update(0, bounds.connection_window - h2.DEFAULT_WINDOW))

    @property
    def last_taken_id(self) -> int:
        return self.last_id

    def open_stream(self, stream_id: int, fields: list[Field], *, is_end: bool) -> None:
        stream = self.begin(stream_id)
        stream.is_ended_there = is_end
        stream.on_headers(fields, is_end=is_end)

    def begin(self, stream_id: int) -> Told:
        self.last_id = max(self.last_id, stream_id)
        stream = self.told[stream_id] = Told(self, stream_id)
        self.streams[stream_id] = stream
        return stream

    def on_stream_over(self) -> None:
        self.num_over += 1

    def on_down(self) -> None:
        self.num_down += 1

    def sent(self) -> list[h2.Frame]:
        return list(FrameReader(2**24).feed(self.wire.take(len(self.wire.written))))


def scripted(bounds: Bounds = SMALL, *, high: int = 2**40, greeting: tuple[tuple[int, int], ...] = ()) -> End:
    """An end whose other end has said hello, and is what the test writes."""
    end = End(bounds, high=high)
    end.take(h2.settings(greeting))
    end.sent()
    return end


def opened(end: End, stream_id: int = 1, flags: int = 0) -> Told:
    end.take(h2.header_frames(HEAD, stream_id, flags, 16_384))
    return end.told[stream_id]


def refused(end: End, *data: bytes) -> int:
    with pytest.raises(ProtocolError) as raised:
        end.take(b"".join(data))
    return raised.value.code


class Wire:
    """Two ends, and what either may have on its way, counted apart from them."""

    def __init__(self, caller: "Reading", answerer: "Reading") -> None:
        self.ends = {caller: answerer, answerer: caller}
        self._readers = {end: FrameReader(2**24) for end in self.ends}
        self._left: dict[tuple[End, int], int] = {}

    def carry(self, source: End, num_bytes: int) -> None:
        target = self.ends[source]
        data = source.wire.take(num_bytes)
        for one in self._readers[source].feed(data):
            self._count(source, target, one)
        target.take(data)

    def _count(self, source: End, target: End, one: h2.Frame) -> None:
        left, bounds = self._left, target.bounds
        if one.kind == h2.WINDOW_UPDATE and one.stream_id:
            place = (target, one.stream_id)
            left[place] = left.get(place, source.bounds.stream_window) + h2.read_u32(one.payload)
        elif one.kind == h2.DATA:
            assert len(one.payload) <= bounds.max_frame_bytes
            for place, window in (((source, one.stream_id), bounds.stream_window), ((source, 0), bounds.connection_window)):
                left[place] = left.get(place, window) - len(one.payload)
                assert left[place] >= 0
        elif one.kind == h2.WINDOW_UPDATE:
            place = (target, 0)
            # The first one is what the connection's window has beside the default.
            left[place] = left[place] + h2.read_u32(one.payload) if place in left else source.bounds.connection_window

    def settle(self) -> None:
        while any(end.wire.written for end in self.ends) or any(end.num_waiting_to_read() for end in self.ends):
            for end in self.ends:
                self.carry(end, 2**40)
                end.read_all()


class Reading(End):
    """Reads when it is told to."""

    def num_waiting_to_read(self) -> int:
        return sum(stream.num_unread for stream in self.told.values())

    def read_all(self) -> None:
        for stream in self.told.values():
            stream.read()


a_bounds = st.builds(
    Bounds,
    stream_window=st.sampled_from((1, 2, 7, 100, 5_000, 65_535, 200_000, 1_000_000)),
    connection_window=st.sampled_from((65_536, 70_000, 300_000)),
    max_frame_bytes=st.sampled_from((16_384, 20_000, 1_048_576)),
)
messages = st.lists(st.tuples(st.integers(0, 3), st.sampled_from((0, 1, 10, 5_000, 70_000, 150_000)), st.booleans()), max_size=8)
steps = st.lists(st.tuples(st.booleans(), st.sampled_from((1, 9, 50, 3_000, 100_000)), st.booleans()), max_size=30)
highs = st.sampled_from((0, 100, 20_000, 2**40))


@settings(max_examples=60, deadline=None)
@given(a_bounds, a_bounds, messages, steps, highs, st.booleans())
def test_all_data_arrive_in_order_within_every_window(
    ours: Bounds,
    theirs: Bounds,
    messages: list[tuple[int, int, bool]],
    steps: list[tuple[bool, int, bool]],
    high: int,
    is_slow: bool,
) -> None:
    caller, answerer = Reading(ours, is_slow=is_slow, high=high), Reading(theirs, is_slow=is_slow, high=high)
    wire = Wire(caller, answerer)
    wire.settle()
    for stream_id in (1, 3, 5, 7):
        caller.send_headers(caller.begin(stream_id), HEAD, is_end=False)
    wire.settle()
    expected: dict[tuple[End, int], bytes] = {(end, stream_id): b"" for end in wire.ends for stream_id in (1, 3, 5, 7)}

    moves = iter(steps)
    for number, (place, size, is_ours) in enumerate(messages):
        source, stream_id = (caller if is_ours else answerer), 2 * place + 1
        # Some hundred frames are enough.
        content = bytes([number + 1]) * min(size, 200 * wire.ends[source].bounds.stream_window)
        expected[source, stream_id] += content
        source.send_data(source.told[stream_id], content, is_end=False)
        for from_caller, num_bytes, reads in [step for step, _ in zip(moves, range(3), strict=False)]:
            wire.carry(caller if from_caller else answerer, num_bytes)
            if reads:
                caller.read_all()
                answerer.read_all()
    wire.settle()

    for (source, stream_id), content in expected.items():
        assert content == wire.ends[source].told[stream_id].content
    for source, target in wire.ends.items():
        assert {} == source.waiting
        assert source.send_window + target._owed == target.receive_window + target._owed == target.bounds.connection_window
        for stream_id, stream in source.told.items():
            other = target.told[stream_id]
            assert (0, 0) == (stream.num_unsent, len(stream.unsent))
            assert stream.send_window + other._owed == other.receive_window + other._owed == target.bounds.stream_window
    for end in (caller, answerer):
        for stream in end.told.values():
            end.send_headers(stream, block([("end", "1")]), is_end=True)
    wire.settle()
    for end in (caller, answerer):
        assert ({}, 4) == (end.streams, end.num_over)
        assert all(stream.fields[-1] == [("end", "1")] for stream in end.told.values())


def credit(end: End, stream_id: int = 1, size: int = 1_000_000) -> None:
    end.take(h2.window_update(stream_id, size))


def data_bytes(frames: list[h2.Frame], stream_id: int | None = None) -> int:
    return sum(len(one.payload) for one in frames if one.kind == h2.DATA and stream_id in {None, one.stream_id})


def test_a_window_shrunk_below_nothing_is_paid_back_first() -> None:
    end = scripted(greeting=((h2.INITIAL_WINDOW_SIZE, 1_000),))
    stream = opened(end)
    end.send_data(stream, bytes(1_500), is_end=False)
    assert 1_000 == data_bytes(end.sent())

    end.take(h2.settings(((h2.INITIAL_WINDOW_SIZE, 200),)))
    assert -800 == stream.send_window
    credit(end, size=800)
    assert 0 == data_bytes(end.sent())
    credit(end, size=1)
    assert 1 == data_bytes(end.sent())
    end.take(h2.settings(((h2.INITIAL_WINDOW_SIZE, 100_000), (h2.INITIAL_WINDOW_SIZE, 300))))
    assert 100 == data_bytes(end.sent())
    assert 399 == stream.num_unsent


@pytest.mark.parametrize("high", [100, 2**40])
def test_the_connections_window_bounds_all_streams_together(high: int) -> None:
    bounds = Bounds(stream_window=1_000_000, connection_window=70_000)
    caller, answerer = Reading(bounds, high=high), Reading(bounds, high=high)
    wire = Wire(caller, answerer)
    wire.settle()
    for stream_id in (1, 3):
        caller.send_headers(caller.begin(stream_id), HEAD, is_end=False)
        caller.send_data(caller.told[stream_id], bytes(200_000), is_end=False)
    assert 0 <= caller.send_window
    wire.settle()

    assert [200_000, 200_000] == [len(answerer.told[stream_id].content) for stream_id in (1, 3)]
    assert {} == caller.waiting


def test_a_stream_that_waits_is_ended_by_its_trailers_after_its_data() -> None:
    end = scripted(greeting=((h2.INITIAL_WINDOW_SIZE, 10),))
    stream = opened(end, flags=h2.END_STREAM)
    end.send_data(stream, bytes(15), is_end=False)
    end.send_headers(stream, HEAD, is_end=True)
    assert [h2.DATA] == [one.kind for one in end.sent()]

    credit(end)
    assert [(h2.DATA, 0), (h2.HEADERS, h2.END_STREAM | h2.END_HEADERS)] == [one[:2] for one in end.sent()]
    assert ({}, {}, 1) == (end.streams, end.waiting, end.num_over)


def test_nothing_but_what_is_short_is_written_while_the_transport_is_paused() -> None:
    end = scripted(high=100)
    stream = opened(end)
    end.pause_writing()
    end.send_data(stream, bytes(50), is_end=False)
    assert not end.can_send_at_once(stream, 1)
    credit(end)
    credit(end, 0)
    assert 0 == data_bytes(end.sent())

    end.resume_writing()
    assert 50 == data_bytes(end.sent())


def test_streams_take_turns_when_the_connections_window_is_short() -> None:
    end = scripted(greeting=((h2.INITIAL_WINDOW_SIZE, 1_000_000),))
    streams = [opened(end, stream_id) for stream_id in (1, 3, 5)]
    for stream in streams:
        end.send_data(stream, bytes(500_000), is_end=False)
    assert {1} == {one.stream_id for one in end.sent() if one.kind == h2.DATA}

    turns = []
    for _ in range(4):
        credit(end, 0, 1_000)
        turns += [one.stream_id for one in end.sent() if one.kind == h2.DATA]

    assert [1, 3, 5, 1] == turns


def test_a_reset_in_the_middle_forgets_what_was_to_be_sent() -> None:
    end = scripted()
    stream = opened(end)
    end.send_data(stream, bytes(100_000), is_end=True)
    end.sent()

    end.take(h2.rst_stream(1, h2.CANCEL))
    credit(end, 0)
    credit(end)
    end.send_data(stream, b"more", is_end=False)
    end.send_headers(stream, HEAD, is_end=True)

    assert ([h2.CANCEL], 0, {}, 1) == (stream.codes, stream.num_unsent, end.waiting, end.num_over)
    assert [] == end.sent()


def test_data_of_a_stream_that_is_over_are_credited_to_the_connection_alone() -> None:
    end = scripted()
    stream = opened(end)
    end.reset(stream, h2.CANCEL)
    end.sent()

    for _ in range(20):
        end.take(h2.frame(h2.DATA, 0, 1, bytes(16_384)))

    assert {0} == {one.stream_id for one in end.sent()}
    assert end.receive_window + end._owed == SMALL.connection_window
    assert b"" == stream.content


def test_a_stream_that_is_over_gets_no_credit_for_what_is_read_later() -> None:
    end = scripted()
    end.is_slow = True
    stream = opened(end)
    for _ in range(3):
        end.take(h2.frame(h2.DATA, 0, 1, bytes(16_384)))
    end.reset(stream, h2.CANCEL)
    end.sent()

    stream.read()

    assert [] == end.sent()


def test_a_slow_reader_slows_the_writer() -> None:
    end = scripted()
    end.is_slow = True
    stream = opened(end)
    num_sent = 0
    while stream.receive_window >= 5_000:
        end.take(h2.frame(h2.DATA, 0, 1, bytes(5_000)))
        num_sent += 5_000

    assert SMALL.stream_window * 3 // 2 > num_sent
    end.sent()
    stream.read()
    assert [(h2.WINDOW_UPDATE, 1)] == [(one.kind, one.stream_id) for one in end.sent()]
    assert SMALL.stream_window == stream.receive_window


def test_padding_is_credited_and_not_given() -> None:
    end = scripted()
    stream = opened(end)
    for _ in range(100):
        end.take(h2.frame(h2.DATA, h2.PADDED, 1, b"\xff" + b"ab" + bytes(255)))

    assert b"ab" * 100 == stream.content
    assert stream.receive_window + stream._owed == SMALL.stream_window


@pytest.mark.parametrize(
    ("code", "data"),
    [
        (h2.FLOW_CONTROL_ERROR, (h2.window_update(1, h2.MAX_WINDOW),)),
        (h2.FLOW_CONTROL_ERROR, (h2.window_update(0, h2.MAX_WINDOW),)),
        (h2.FLOW_CONTROL_ERROR, (h2.window_update(1, 100_000), h2.settings(((h2.INITIAL_WINDOW_SIZE, h2.MAX_WINDOW),)))),
        (h2.FLOW_CONTROL_ERROR, (h2.settings(((h2.INITIAL_WINDOW_SIZE, 2**31),)),)),
        (h2.FLOW_CONTROL_ERROR, tuple(h2.frame(h2.DATA, 0, 1, bytes(20_000)) for _ in range(1))),
        (h2.PROTOCOL_ERROR, (h2.window_update(1, 0),)),
        (h2.PROTOCOL_ERROR, (h2.window_update(0, 2**31),)),
        (h2.FRAME_SIZE_ERROR, (h2.frame(h2.WINDOW_UPDATE, 0, 0, bytes(5)),)),
        (h2.PROTOCOL_ERROR, (h2.window_update(3, 1),)),
        (h2.PROTOCOL_ERROR, (h2.window_update(2, 1),)),
        (h2.PROTOCOL_ERROR, (h2.rst_stream(3, 0),)),
        (h2.PROTOCOL_ERROR, (h2.rst_stream(0, 0),)),
        (h2.PROTOCOL_ERROR, (h2.frame(h2.DATA, 0, 0, b"x"),)),
        (h2.PROTOCOL_ERROR, (h2.frame(h2.DATA, 0, 3, b"x"),)),
        (h2.PROTOCOL_ERROR, (h2.frame(h2.DATA, h2.PADDED, 1, b"\x05"),)),
        (h2.PROTOCOL_ERROR, (h2.frame(h2.HEADERS, h2.END_HEADERS, 0, HEAD),)),
        (h2.PROTOCOL_ERROR, (h2.frame(h2.CONTINUATION, h2.END_HEADERS, 1, HEAD),)),
        (h2.PROTOCOL_ERROR, (h2.frame(h2.HEADERS, 0, 3, HEAD), h2.frame(h2.PING, 0, 0, bytes(8)))),
        (h2.PROTOCOL_ERROR, (h2.frame(h2.HEADERS, 0, 3, HEAD), h2.frame(0x77, 0, 3))),
        (h2.PROTOCOL_ERROR, (h2.frame(h2.HEADERS, 0, 3, HEAD), h2.frame(h2.CONTINUATION, 0, 1))),
        (h2.PROTOCOL_ERROR, (h2.frame(h2.HEADERS, 0, 3, HEAD), h2.frame(h2.HEADERS, 0, 3))),
        (h2.COMPRESSION_ERROR, (h2.frame(h2.HEADERS, h2.END_HEADERS, 3, b"\x80"),)),
        (h2.STREAM_CLOSED, (h2.frame(h2.DATA, h2.END_STREAM, 1), h2.frame(h2.DATA, 0, 1, b"x"))),
        (h2.STREAM_CLOSED, (h2.frame(h2.DATA, h2.END_STREAM, 1), h2.header_frames(HEAD, 1, 0, 100))),
        (h2.PROTOCOL_ERROR, (h2.frame(h2.SETTINGS, 0, 1),)),
        (h2.FRAME_SIZE_ERROR, (h2.frame(h2.SETTINGS, 0, 0, bytes(5)),)),
        (h2.FRAME_SIZE_ERROR, (h2.frame(h2.SETTINGS, h2.ACK, 0, bytes(6)),)),
        (h2.PROTOCOL_ERROR, (h2.settings(((h2.MAX_FRAME_SIZE, 16_383),)),)),
        (h2.PROTOCOL_ERROR, (h2.settings(((h2.MAX_FRAME_SIZE, 2**24),)),)),
        (h2.PROTOCOL_ERROR, (h2.settings(((h2.ENABLE_PUSH, 2),)),)),
        (h2.ENHANCE_YOUR_CALM, (h2.settings([(h2.INITIAL_WINDOW_SIZE, 5)] * 65),)),
        (h2.PROTOCOL_ERROR, (h2.frame(h2.PING, 0, 1, bytes(8)),)),
        (h2.FRAME_SIZE_ERROR, (h2.frame(h2.PING, 0, 0, bytes(7)),)),
        (h2.PROTOCOL_ERROR, (h2.frame(h2.GOAWAY, 0, 1, bytes(8)),)),
        (h2.FRAME_SIZE_ERROR, (h2.frame(h2.GOAWAY, 0, 0, bytes(7)),)),
        (h2.PROTOCOL_ERROR, (h2.frame(h2.PUSH_PROMISE, h2.END_HEADERS, 1, bytes(4)),)),
        (h2.PROTOCOL_ERROR, (h2.frame(h2.PRIORITY, 0, 0, bytes(5)),)),
        (h2.FRAME_SIZE_ERROR, (h2.frame(h2.PRIORITY, 0, 1, bytes(4)),)),
        (h2.FRAME_SIZE_ERROR, (h2.head(h2.DATA, 0, 1, 20_001),)),
    ],
)
def test_what_breaks_the_protocol_ends_the_connection_with_its_code(code: int, data: tuple[bytes, ...]) -> None:
    end = scripted()
    opened(end)
    if code == h2.FLOW_CONTROL_ERROR and data[0][3] == h2.DATA:
        end.told[1].receive_window = 19_999

    assert code == refused(end, *data)


def test_more_data_than_the_connection_has_credit_for_are_an_error() -> None:
    end = scripted()
    opened(end)
    end.receive_window = 10

    end.take(h2.frame(h2.DATA, 0, 1, bytes(10)))
    assert h2.FLOW_CONTROL_ERROR == refused(end, h2.frame(h2.DATA, 0, 1, b"x"))


@pytest.mark.parametrize("first", [h2.frame(h2.PING, 0, 0, bytes(8)), h2.frame(h2.SETTINGS, h2.ACK, 0), h2.frame(0x77, 0, 0)])
def test_the_first_frame_is_settings(first: bytes) -> None:
    assert h2.PROTOCOL_ERROR == refused(End(), first)


def test_what_nobody_knows_is_ignored() -> None:
    end = scripted()
    end.take(h2.frame(0x77, 0xFF, 9, b"what") + h2.settings(((0x99, 2**32 - 1),)) + h2.frame(h2.PRIORITY, 0, 9, bytes(5)))

    assert [(h2.SETTINGS, h2.ACK)] == [one[:2] for one in end.sent()]


def test_what_comes_late_for_a_stream_that_is_over_is_ignored() -> None:
    end = scripted()
    end.reset(opened(end), h2.CANCEL)
    end.sent()

    end.take(h2.frame(h2.DATA, 0, 1, b"x") + h2.window_update(1, 5) + h2.rst_stream(1, 0))
    end.take(h2.header_frames(b"\x40" + literal("late", "1")[1:], 1, h2.END_STREAM, 100))
    end.take(h2.frame(h2.HEADERS, h2.END_HEADERS, 3, b"\xbe"))

    assert [] == end.sent()
    assert [[("late", "1")]] == end.told[3].fields


def floods() -> Iterator[Any]:
    empty = h2.frame(h2.DATA, 0, 1)
    yield pytest.param(h2.frame(h2.PING, 0, 0, bytes(8)), id="pings")
    yield pytest.param(h2.settings(()), id="settings")
    yield pytest.param(h2.rst_stream(1, 0), id="resets")
    yield pytest.param(h2.frame(h2.PRIORITY, 0, 1, bytes(5)), id="priorities")
    yield pytest.param(empty, id="empty data")
    yield pytest.param(h2.frame(h2.DATA, h2.PADDED, 1, b"\x03" + bytes(3)), id="padding")
    yield pytest.param(h2.rst_stream(1, 0) + empty, id="empty data of no stream")
    yield pytest.param(h2.rst_stream(1, 0) + h2.header_frames(HEAD, 1, 0, 100), id="headers of no stream")
    yield pytest.param(h2.goaway(1, 0), id="goodbyes")


@pytest.mark.parametrize("frames", list(floods()))
def test_a_flood_of_frames_that_say_nothing_ends_the_connection(frames: bytes) -> None:
    end = scripted()
    opened(end)
    end.take(frames * 20)

    assert h2.ENHANCE_YOUR_CALM == refused(end, frames * 51)


def test_frames_that_say_nothing_are_counted_anew_after_a_while_unless_answers_pile_up() -> None:
    end, ping = scripted(), h2.frame(h2.PING, 0, 0, bytes(8))
    for _ in range(3):
        end.take(ping * 45)
        end.heard_at += 11.0
    end.take(ping)
    end.pause_writing()
    end.heard_at += 11.0

    assert h2.ENHANCE_YOUR_CALM == refused(end, ping * 50)


def test_a_header_block_in_many_frames_is_bounded() -> None:
    empty = h2.frame(h2.CONTINUATION, 0, 1)
    assert h2.ENHANCE_YOUR_CALM == refused(scripted(), h2.frame(h2.HEADERS, 0, 1) + empty * 51)
    large = h2.frame(h2.HEADERS, 0, 1, bytes(4_000)) + h2.frame(h2.CONTINUATION, 0, 1, bytes(4_001))
    assert h2.ENHANCE_YOUR_CALM == refused(scripted(), large)


def test_a_header_block_in_many_frames_is_read_as_one() -> None:
    end = scripted()
    for one in FrameReader(100).feed(h2.header_frames(HEAD * 20, 1, h2.END_STREAM, 7)):
        end.take(h2.frame(*one))

    assert [[(":path", "/a")] * 20] == end.told[1].fields
    assert end.told[1].is_ended_there


def test_unfinished_messages_of_all_streams_are_bounded() -> None:
    end = scripted()
    opened(end)
    end.num_kept = SMALL.max_kept_bytes
    end.take(h2.frame(h2.DATA, 0, 1, b"x"))
    end.num_kept += 1

    assert h2.ENHANCE_YOUR_CALM == refused(end, h2.frame(h2.DATA, 0, 1, b"x"))


def test_a_peer_that_wants_a_smaller_table_hears_of_it_once() -> None:
    end = scripted()
    first, second = opened(end, 1), opened(end, 3)
    end.take(h2.settings(((h2.HEADER_TABLE_SIZE, 0), (h2.HEADER_TABLE_SIZE, 4_096))))
    assert not end.can_send_at_once(first, 1)
    end.send_headers(first, HEAD, is_end=False)
    end.take(h2.settings(((h2.HEADER_TABLE_SIZE, 0),)))
    end.send_headers(second, HEAD, is_end=False)
    decoder = Decoder()
    decoder.max_allowed_table_size = 0

    one, two = [one.payload for one in end.sent() if one.kind == h2.HEADERS]

    assert [(":path", "/a")] == [tuple(field) for field in decoder.decode(one)]
    assert HEAD == two
    assert end.can_send_at_once(first, 1)


def test_settings_are_acknowledged_and_pings_answered() -> None:
    end = scripted()
    end.take(h2.settings(((h2.MAX_FRAME_SIZE, 30_000), (h2.MAX_CONCURRENT_STREAMS, 3))) + h2.frame(h2.PING, 0, 0, b"12345678"))

    assert [(h2.SETTINGS, h2.ACK, 0, b""), (h2.PING, h2.ACK, 0, b"12345678")] == end.sent()
    assert (30_000, 3) == (end.peer_frame_bytes, end.peer_max_streams)


# With a loop: what waits, and hanging up


@contextlib.asynccontextmanager
async def crowded(num_waiting: int = 1) -> AsyncIterator[tuple[End, Told, list[asyncio.Task[None]]]]:
    end = scripted()
    stream = opened(end)
    end.send_data(stream, bytes(600_000), is_end=False)
    tasks = [asyncio.create_task(stream.has_room()) for _ in range(num_waiting)]
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        yield end, stream, tasks
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_all_who_wait_for_room_get_it_also_when_one_leaves() -> None:
    async with crowded(3) as (end, stream, tasks):
        tasks[1].cancel()
        await asyncio.sleep(0)
        credit(end, 1, 10_000)
        await asyncio.sleep(0)
        assert not tasks[0].done()
        credit(end)
        credit(end, 0)
    assert [False, True, False] == [task.cancelled() for task in tasks]
    assert 0 == stream.num_unsent


@pytest.mark.parametrize("way", ["reset here", "reset there", "lost"])
async def test_who_waits_for_room_does_not_wait_for_a_stream_that_is_over(way: str) -> None:
    async with crowded(2) as (end, stream, _):
        if way == "reset here":
            end.reset(stream, h2.CANCEL)
        elif way == "reset there":
            end.take(h2.rst_stream(1, h2.CANCEL))
        else:
            end.connection_lost(None)
    assert (0, {}) == (stream.num_unsent, end.waiting)


async def test_a_wrong_frame_is_answered_by_a_goodbye_that_says_what_was_taken() -> None:
    end = scripted()
    opened(end, 1)
    opened(end, 3)
    end.take(h2.rst_stream(3, h2.CANCEL))
    end.sent()

    end.data_received(h2.frame(h2.PING, 0, 0) + h2.frame(h2.PING, 0, 0, bytes(8)))
    end.data_received(h2.frame(h2.PING, 0, 0, bytes(8)))

    (goodbye,) = end.sent()
    assert (3, h2.FRAME_SIZE_ERROR, b"a ping of a wrong size") == h2.read_goaway(goodbye.payload)
    assert end.wire.is_closed
    end.connection_lost(None)
    assert ["a ping of a wrong size"] == end.told[1].lost
    assert [] == end.told[3].lost


async def test_who_takes_nothing_of_what_is_left_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clients.wire.rpc.connection._LINGER_SECONDS", 0.0)
    end = scripted()
    end.write(bytes(100))
    end.close("all is said")
    for _ in range(5):
        end.wire.take(1)
        await asyncio.sleep(0)
        assert not end.wire.is_aborted

    async with asyncio.timeout(10):
        while not end.wire.is_aborted:
            await asyncio.sleep(0)
    end.connection_lost(None)


def test_a_peer_is_named_as_grpc_names_it() -> None:
    for address, name in (
        (("1.2.3.4", 5), "ipv4:1.2.3.4:5"),
        (("::1", 5, 0, 0), "ipv6:[::1]:5"),
        ("", "unix:"),
        (None, "unix:"),
    ):
        assert name == peer_name(FakeTransport(extra={"peername": address}))
